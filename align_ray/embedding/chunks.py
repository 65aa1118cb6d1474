"""Chunks of documents: rows of the data set to be scored, and the files their scores are in.

Without torch, which the tasks that read and write documents need not load.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.alignment.documents import document_scores
from align_ray.config import digest
from align_ray.corpora.draw import around_completion, encode
from align_ray.corpora.records import unmarked
from align_ray.fisher.tokens import PADDING

CHUNK = pa.schema(
    {
        "file": pa.string(),
        "against": pa.string(),
        "ids": pa.binary(),
        "keys": pa.list_(pa.binary(16)),
        "texts": pa.list_(pa.large_string()),
        "tokens": pa.list_(pa.int64()),
        "counts": pa.string(),
    }
)
"""A row of the data set that is scored, one chunk of sequences: the file its scores go to; the name of the target
embeddings they are taken against; ids, int32 [n, T] as bytes, PADDING on the right (empty: already scored); of every
document its key, text and number of tokens; and what was counted while reading, as JSON."""


def chunk_of(
    file: str, against: str, ids: np.ndarray, documents: list[tuple[bytes, str]], tokens: list[int], counts: str = "{}"
) -> pa.Table:
    """One row of CHUNK."""
    keys, texts = [key for key, _ in documents], [unmarked(text) for _, text in documents]
    row = [file, against, ids.astype("<i4").tobytes(), keys, texts, tokens, counts]
    return pa.table([[value] for value in row], schema=CHUNK)


def tokenised(texts: list[str], tokenizer: Any, length: int) -> tuple[np.ndarray, list[int]]:
    """The first T tokens of every text (of one with a completion those around it), int32 [n, T] with PADDING, and the
    number of tokens of the whole texts."""
    ids = np.full((len(texts), length), PADDING, dtype=np.int32)
    counts = []
    for row, text in zip(ids, texts, strict=True):
        tokens = encode(tokenizer, text)
        completes = bool((tokens < PADDING).any())
        kept = tokens[around_completion(tokens, length)] if completes else tokens[:length]
        row[: len(kept)] = kept
        counts.append(len(tokens))
    return ids, counts


def scored_schema(targets: int) -> pa.Schema:
    """Schema of a file of scores, those in the order of the configuration's targets."""
    columns = {"key": pa.binary(16), "text": pa.large_string(), "tokens": pa.int64(), "loss": pa.float64()}
    return pa.schema({**columns, "scores": pa.list_(pa.float64(), targets)})


def chunk_to_score(
    folder: str, found: list[tuple[bytes, str]], stored: set[str], tokenizer: Any, length: int
) -> pa.Table:
    """A row of CHUNK for documents (key, text); without text and token ids where its scores are stored."""
    name = chunk_name(found)
    if name in stored:
        return chunk_of(f"{folder}/{name}", "", np.zeros(0, np.int32), [(key, "") for key, _ in found], [])
    ids, tokens = tokenised([text for _, text in found], tokenizer, length)
    return chunk_of(f"{folder}/{name}", "", ids, found, tokens)


def keys_of(batch: pa.RecordBatch) -> np.ndarray:
    """Document keys of a file of scores, S16 [n]."""
    return np.array(batch["key"].to_pylist(), "S16")


def word_chunk(found: list[tuple[bytes, str]], tokenizer: Any, ratios: np.ndarray) -> pa.Table:
    """What is stored of documents (key, text) that are scored by their words (`alignment/documents.py`)."""
    ids = [encode(tokenizer, text) for _, text in found]
    scores = document_scores(ids, ratios)
    columns = [
        [key for key, _ in found],
        [unmarked(text) for _, text in found],
        [len(i) for i in ids],
        [None] * len(ids),
        list(scores),
    ]
    return pa.table(columns, schema=scored_schema(ratios.shape[1]))


def chunk_name(found: list[tuple[bytes, str]]) -> str:
    """The name of the file with the scores of documents (key, text)."""
    return f"{digest([key.hex() for key, _ in found], 32)}.parquet"


def holds(keys: np.ndarray, key: bytes) -> bool:
    """Whether a document's key is among the sorted `keys`, S16 [n]."""
    at = int(np.searchsorted(keys, key))
    return at < len(keys) and keys[at] == key.rstrip(b"\0")  # numpy gives a key without the zeros at its end


def scores_for(batch: pa.RecordBatch, target: int) -> np.ndarray:
    """Scores for the target in that place of the configuration, float64 [n]."""
    values = batch["scores"]
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)[:, target]

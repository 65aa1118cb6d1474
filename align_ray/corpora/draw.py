"""Draw documents and cut them into batches of token sequences.

Documents are drawn by a keyed hash of their content: those with the smallest keys are the sample. The sample therefore
depends on (seed, content) alone, not on file order, block layout or number of workers, and exact duplicates, which
share a key, count once. Batches share no document, so that they are independent units for an interval.
"""

import dataclasses
import hashlib
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from align_ray.config import Corpus, Sampling
from align_ray.corpora.sources import documents
from align_ray.corpora.tasks import on_tasks, read_task, read_tasks
from align_ray.errors import CorpusError, mistake, named
from align_ray.fisher.trunk import PADDING
from align_ray.progress import counted

DOCUMENT_SEQUENCES = 8
"""A document contributes at most this many sequences, so that no long document fills a batch alone."""
CHARACTERS_PER_TOKEN = 12
"""Upper bound used to decide how much text to keep before it is tokenised; English and code have 3 to 5."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Documents of a corpus in the order of their keys, and what was met while reading it whole."""

    documents: list[tuple[bytes, str]]
    counts: dict[str, int]


def document_key(seed: int, text: str) -> bytes:
    """16-byte BLAKE2b of the text, keyed by the seed."""
    return hashlib.blake2b(text.encode("utf-8", errors="replace"), key=str(seed).encode(), digest_size=16).digest()


def smallest(pairs: Iterable[tuple[bytes, str]], characters: int, count: int = 0) -> list[tuple[bytes, str]]:
    """The documents with the smallest keys, in that order, until they are `count` and hold `characters` characters;
    duplicates once.

    The result over a union is the result over the parts' results, so that every task may keep its own and the driver
    merge them.
    """
    heap: list[tuple[int, bytes, str]] = []  # largest key on top
    held: set[bytes] = set()
    total = 0
    for key, text in pairs:
        if key in held or (total >= characters and len(heap) >= count and -int.from_bytes(key) <= heap[0][0]):
            continue
        held.add(key)
        heapq.heappush(heap, (-int.from_bytes(key), key, text))
        total += len(text)
        while total - len(heap[0][2]) >= characters and len(heap) > count:
            _, dropped, dropped_text = heapq.heappop(heap)
            held.discard(dropped)
            total -= len(dropped_text)
    return [(key, text) for _, key, text in sorted(heap, reverse=True)]


def draw_corpora(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int
) -> Iterator[tuple[Corpus, Drawn]]:
    """Draw documents of every (corpus, tokens, least), one corpus after the other: so many that they hold `tokens`
    tokens, but at least `least`, where the corpus has them.

    All corpora are read once, by the tasks of one Ray Data set of about 64 MiB each. A task keeps the smallest keys of
    its part; the driver holds the sample of one corpus at a time.
    """
    length = DOCUMENT_SEQUENCES * sampling.sequence_length * CHARACTERS_PER_TOKEN
    characters = {corpus.name: tokens * CHARACTERS_PER_TOKEN for corpus, tokens, _ in wanted}
    # Where a document gives one sequence, there must be as many; `cut` leaves out short ones, so twice that.
    sequences = {"pack": 0, "pad": 1, "cut": 2}[sampling.packing]
    least = {
        corpus.name: max(documents, sequences * -(-tokens // sampling.sequence_length))
        for corpus, tokens, documents in wanted
    }

    def read(batch: dict[str, np.ndarray]) -> dict[str, list]:
        counts: Counter = Counter()
        corpus, fragments = read_task(batch)
        keyed = ((document_key(seed, t), t[:length]) for t in documents(corpus, fragments, counts))
        kept, error = [], ""
        try:
            kept = smallest(keyed, characters[corpus.name], least[corpus.name])
        except CorpusError as reason:  # returned, not raised: Ray would wrap it in the worker's traceback
            error = named(reason)
        return {
            "corpus": [corpus.name],
            "keys": [[key for key, _ in kept]],
            "texts": [[text.encode("utf-8", errors="replace") for _, text in kept]],
            "counts": [json.dumps(counts)],
            "error": [error],
        }

    by_name = {corpus.name: corpus for corpus, *_ in wanted}
    tasks = read_tasks(list(by_name.values()))
    done = counted(on_tasks(tasks, read).iter_rows(), "parts of corpora read", len(tasks))
    for name, part in itertools.groupby(done, key=lambda row: row["corpus"]):  # rows keep their order
        counts: Counter = Counter()
        found = smallest(_documents_of(part, counts), characters[name], least[name])
        yield by_name[name], Drawn(found, dict(counts))


def _documents_of(part: Iterable[dict], counts: Counter) -> Iterator[tuple[bytes, str]]:
    """(key, text) of the rows of one corpus; adds up the tasks' counts. Raises CorpusError where a task met one."""
    for row in part:
        if row["error"]:
            raise mistake(row["error"])
        counts.update(json.loads(row["counts"]))
        yield from zip(row["keys"], (t.decode() for t in row["texts"]), strict=True)


def packed_rows(drawn: list[tuple[bytes, str]], tokenizer, sampling: Sampling, most: int) -> np.ndarray:
    """Up to `most` sequences of T tokens, int32 [n, T], no token of a document twice: documents in the order given,
    each its first DOCUMENT_SEQUENCES * T tokens, joined end to end with the end-of-text token between and cut. For
    training, where sequences of one document may stand side by side; as independent units take `make_batches`."""
    length = sampling.sequence_length
    separator = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for _, text in drawn:
        if len(stream) >= most * length:
            break
        tokens = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        stream += [*tokens[: DOCUMENT_SEQUENCES * length], *separator]
    rows = min(most, len(stream) // length)
    return np.array(stream[: rows * length], dtype=np.int32).reshape(rows, length)


def make_batches(
    drawn: list[tuple[bytes, str]], tokenizer, sampling: Sampling, batches: int, counts: Counter
) -> np.ndarray:
    """Tokenise documents in the order given and fill up to `batches` batches of B sequences of T tokens:
    int32 [batches, B, T]. No two batches share a document.

    `pack` joins documents with the end-of-text token between them; what is left of a document when its batch is full is
    dropped. `cut` takes the first T tokens of each and counts `shorter_than_sequence`; `pad` fills those up.
    `sampled_tokens` and `sampled_bytes` count all documents looked at, for an estimate of the corpus' size in tokens.
    """
    length, size = sampling.sequence_length, sampling.batch_size
    separator = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids: list[np.ndarray] = []
    batch: list[int] = []
    for _, text in drawn:
        if len(ids) == batches:
            break
        tokens = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        counts["sampled_tokens"] += len(tokens)
        counts["sampled_bytes"] += len(text.encode("utf-8", errors="replace"))
        if sampling.packing == "cut" and len(tokens) < length:
            counts["shorter_than_sequence"] += 1
            continue
        if sampling.packing == "pack":
            batch += [*tokens[: DOCUMENT_SEQUENCES * length], *separator]
        else:
            batch += [*tokens[:length], *[PADDING] * (length - len(tokens))]
        if len(batch) >= size * length:
            ids.append(np.array(batch[: size * length], dtype=np.int32).reshape(size, length))
            batch = []
    return np.stack(ids) if ids else np.zeros((0, size, length), np.int32)

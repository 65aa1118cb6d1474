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
from typing import Any

import numpy as np

from align_ray.config import Corpus, Sampling
from align_ray.corpora.rows import Rows, firsts
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
class Document:
    """A drawn document, as its tokens."""

    key: bytes
    ids: np.ndarray
    """int32 [n]: the tokens of its excerpt (see `excerpt`)."""
    bytes: int
    """Of the excerpt, as UTF-8."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Documents of a corpus in the order of their keys, and what was met while reading it whole."""

    documents: list[Document]
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


def excerpt(key: bytes, text: str, sampling: Sampling) -> str:
    """What is looked at of a document: all, or of a long one a stretch that surely holds DOCUMENT_SEQUENCES sequences,
    at a position that its key decides (`cut` and `pad`, which take the first tokens: at the beginning)."""
    span = DOCUMENT_SEQUENCES * sampling.sequence_length * CHARACTERS_PER_TOKEN
    room = len(text) - span
    if room <= 0:
        return text
    start = _number(key) % (room + 1) if sampling.packing == "pack" else 0
    return text[start : start + span]


def _number(key: bytes) -> int:
    """A number that a key fixes; not of its first bytes, which are small in what is drawn."""
    return int.from_bytes(key[6:14])


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """The tokens of a text, without any special one around them, int32 [n]."""
    if hasattr(tokenizer, "encode_batch_fast"):  # the `tokenizers` part of a fast tokenizer: no transformers needed
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
    return np.array(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"], np.int32)


def portable(tokenizer: Any) -> Any:
    """What of a tokenizer `encode` needs, as it is sent to tasks: reading should not have to import transformers."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return tokenizer
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def tokenised(key: bytes, text: str, tokenizer: Any) -> Document:
    """A document as its tokens, from (the excerpt of) its text."""
    return Document(key, encode(tokenizer, text), len(text.encode("utf-8", errors="replace")))


def draw_texts(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int
) -> Iterator[tuple[Corpus, list[tuple[bytes, str]], dict[str, int]]]:
    """As `draw_corpora`, with the (key, excerpt) of documents instead of their tokens, up to three times as many."""
    return _draw(wanted, sampling, seed, None)


def draw_corpora(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int, tokenizer: Any
) -> Iterator[tuple[Corpus, Drawn]]:
    """Draw documents of every (corpus, tokens, least), one corpus after the other: so many that sequences of `tokens`
    tokens can be cut of them, but at least `least` documents, where the corpus has them.

    All corpora are read once, by the tasks of one Ray Data set of about 64 MiB each. A task keeps the smallest keys of
    its part and makes tokens of them; the driver sees no text, and holds the sample of one corpus at a time.
    """
    sizes = {corpus.name: (tokens, least) for corpus, tokens, least in wanted}
    for corpus, rows, counts in _draw(wanted, sampling, seed, portable(tokenizer)):
        documents: dict[bytes, Document] = {}
        for key, data in rows:
            length, ids = int.from_bytes(data[:8]), np.frombuffer(data[8:], "<i4").astype(np.int32)
            documents.setdefault(key, Document(key, ids, length))
        yield corpus, Drawn(_enough([documents[k] for k in sorted(documents)], sampling, *sizes[corpus.name]), counts)


def _enough(documents: Iterable[Document], sampling: Sampling, tokens: int, least: int) -> list[Document]:
    """The first documents, until they are `least` and sequences of `tokens` tokens can be cut of them."""
    found: list[Document] = []
    held = 0
    for document in documents:
        if held >= tokens and len(found) >= least:
            break
        found.append(document)
        held += min(len(document.ids), DOCUMENT_SEQUENCES * sampling.sequence_length)
    return found


def _draw(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int, tokenizer: Any
) -> Iterator[tuple[Corpus, Any, dict[str, int]]]:
    """By corpus: (key, UTF-8 or tokens) of every task's documents, smallest keys first, duplicates once where they
    are text; and the counts."""
    characters = {corpus.name: tokens * CHARACTERS_PER_TOKEN for corpus, tokens, _ in wanted}
    # Where a document gives one sequence, there must be as many; `cut` leaves out short ones, so twice that.
    sequences = {"pack": 0, "pad": 1, "cut": 2}[sampling.packing]
    least = {
        corpus.name: max(documents, sequences * -(-tokens // sampling.sequence_length))
        for corpus, tokens, documents in wanted
    }
    asked = {corpus.name: tokens for corpus, tokens, _ in wanted}

    def read(batch: dict[str, np.ndarray]) -> dict[str, list]:
        counts: Counter = Counter()
        corpus, fragments = read_task(batch)
        keyed = ((document_key(seed, text), text) for text in documents(corpus, fragments, counts))
        kept, error = [], ""
        try:
            kept = smallest(
                ((key, excerpt(key, text, sampling)) for key, text in keyed),
                characters[corpus.name],
                least[corpus.name],
            )
        except CorpusError as reason:  # returned, not raised: Ray would wrap it in the worker's traceback
            error = named(reason)
        if tokenizer is None:
            data = [text.encode("utf-8", errors="replace") for _, text in kept]
        else:
            made = (tokenised(key, text, tokenizer) for key, text in kept)
            data = [
                d.bytes.to_bytes(8) + d.ids.astype("<i4").tobytes()
                for d in _enough(made, sampling, asked[corpus.name], least[corpus.name])
            ]
        return {
            "corpus": [corpus.name],
            "keys": [[key for key, _ in kept[: len(data)]]],
            "data": [data],
            "counts": [json.dumps(counts)],
            "error": [error],
        }

    by_name = {corpus.name: corpus for corpus, *_ in wanted}
    tasks = read_tasks(list(by_name.values()))
    done = counted(on_tasks(tasks, read).iter_rows(), "parts of corpora read", len(tasks))
    for name, part in itertools.groupby(done, key=lambda row: row["corpus"]):  # rows keep their order
        counts: Counter = Counter()
        rows: Any = list(_documents_of(part, counts))
        if tokenizer is None:
            texts = ((key, data.decode()) for key, data in rows)
            rows = smallest(texts, characters[name], least[name])
        yield by_name[name], rows, dict(counts)


def _documents_of(part: Iterable[dict], counts: Counter) -> Iterator[tuple[bytes, bytes]]:
    """(key, data) of the rows of one corpus; adds up the tasks' counts. Raises CorpusError where a task met one."""
    for row in part:
        if row["error"]:
            raise mistake(row["error"])
        counts.update(json.loads(row["counts"]))
        yield from zip(row["keys"], row["data"], strict=True)


@dataclasses.dataclass
class _Cutter:
    """Cuts documents into rows: whole windows of T tokens, up to `most` a document; what is left of one goes together
    with the next ones' ends, end-of-text between."""

    length: int
    separator: list[int]
    most: int = DOCUMENT_SEQUENCES
    alone: bool = False
    """No document in two rows, so that rows are independent: the end of one that does not fit is dropped."""
    pending: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.int64))

    def cut(self, document: Document) -> Iterator[np.ndarray]:
        """Rows of (token, document, place), int64 [T, 3], that a document completes."""
        name, n = int.from_bytes(document.key[:8].ljust(8, b"\0"), signed=True), len(document.ids)
        tokens = np.stack([document.ids.astype(np.int64), np.full(n, name), np.arange(n)], axis=1)
        windows = n // self.length
        if windows > self.most:
            rng = np.random.default_rng(_number(document.key))
            start = int(rng.integers(n - windows * self.length + 1))
            starts, rest = start + self.length * np.sort(rng.choice(windows, self.most, replace=False)), tokens[:0]
        else:
            starts, rest = self.length * np.arange(windows), tokens[windows * self.length :]
        yield from (tokens[i : i + self.length] for i in starts)
        if not len(rest) or (self.alone and windows):
            return
        end = np.array([(token, name, n) for token in self.separator], dtype=np.int64).reshape(-1, 3)
        self.pending = np.concatenate([self.pending, rest, end])
        if len(self.pending) >= self.length:
            yield self.pending[: self.length]
            self.pending = self.pending[self.length :] if not self.alone else self.pending[:0]


def _separator(tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def cut_rows(drawn: Iterable[Document], tokenizer: Any, sampling: Sampling, most: int, alone: bool = False) -> Rows:
    """Up to `most` rows of T tokens, no token of a document twice: of each document, in the order given, up to
    DOCUMENT_SEQUENCES windows, of a longer one at positions that its key decides; ends and short documents are joined,
    with the end-of-text token between, but do not see each other (`Rows.positions`).

    `alone`: no document in two rows, so that rows are independent of each other, as held-out ones must be.
    """
    length = sampling.sequence_length
    cutter = _Cutter(length, _separator(tokenizer), 1 if alone else DOCUMENT_SEQUENCES, alone)
    rows = list(itertools.islice((row for document in drawn for row in cutter.cut(document)), most))
    ids, documents, places = np.array(rows, dtype=np.int64).reshape(-1, length, 3).transpose(2, 0, 1)
    return Rows(ids.astype(np.int32), documents, places.astype(np.int32), ~firsts(documents))


def make_batches(
    drawn: Iterable[Document], tokenizer: Any, sampling: Sampling, batches: int, counts: Counter
) -> np.ndarray:
    """Fill up to `batches` batches of B sequences of T tokens with documents in the order given: int32 [batches, B, T].
    No two batches share a document.

    `pack` cuts rows as `cut_rows` does; what is left of a document when its batch is full is dropped. `cut` takes the
    first T tokens of each and counts `shorter_than_sequence`; `pad` fills those up. `sampled_tokens` and
    `sampled_bytes` count all documents looked at, for an estimate of the corpus' size in tokens.
    """
    length, size = sampling.sequence_length, sampling.batch_size
    ids: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    cutter = _Cutter(length, _separator(tokenizer))
    for document in drawn:
        if len(ids) == batches:
            break
        counts["sampled_tokens"] += len(document.ids)
        counts["sampled_bytes"] += document.bytes
        if sampling.packing == "cut" and len(document.ids) < length:
            counts["shorter_than_sequence"] += 1
            continue
        if sampling.packing == "pack":
            batch += [row[:, 0] for row in cutter.cut(document)]
        else:
            batch.append(np.r_[document.ids[:length], np.full(max(0, length - len(document.ids)), PADDING)])
        if len(batch) >= size:
            ids.append(np.array(batch[:size], dtype=np.int32))
            batch, cutter = [], _Cutter(length, _separator(tokenizer))
    return np.stack(ids) if ids else np.zeros((0, size, length), np.int32)

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
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from align_ray.config import Sampling
from align_ray.config_corpora import Corpus
from align_ray.corpora.overlap import Sketch
from align_ray.corpora.records import MARK, counted_characters, parts_of, unmarked
from align_ray.corpora.rejects import Counts
from align_ray.corpora.rows import FILLED, Rows, firsts
from align_ray.corpora.sources import documents
from align_ray.corpora.tasks import on_tasks, read_task, read_tasks
from align_ray.errors import CorpusError, mistake, named
from align_ray.fisher.probe import chat_template_of
from align_ray.fisher.tokens import PADDING, as_context, plain_ids
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
    """int32 [n]: the tokens of its excerpt (see `excerpt`), written as in `fisher/tokens.py`."""
    bytes: int
    """Of the excerpt, as UTF-8."""

    @property
    def completes(self) -> bool:
        """Whether it is a prompt with a completion, or a conversation: never cut into windows."""
        return bool((self.ids < PADDING).any())


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Documents of a corpus in the order of their keys, and what was met while reading it whole."""

    documents: list[Document]
    counts: dict[str, int]
    rejects: list[dict[str, str]]
    """Records that were left out, the first ones (see `rejects.py`)."""
    sketch: np.ndarray
    """Of all documents (see `overlap.py`)."""


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
    at a position that its key decides (`cut` and `pad`, which take the first tokens: at the beginning). Of a record
    with a completion the stretch around the beginning of the last one."""
    span = DOCUMENT_SEQUENCES * sampling.sequence_length * CHARACTERS_PER_TOKEN
    room = len(text) - span
    if room <= 0:
        return text
    if MARK in text:
        *_, begin, end = (i for i, character in enumerate(text) if character == MARK)
        start = min(max(0, end + 1 - span), max(0, begin - span // 2))
        inside = MARK if text.count(MARK, 0, start) % 2 else ""
        kept = inside + text[start : start + span]
        return kept if kept.count(MARK) % 2 == 0 else kept + MARK
    start = _number(key) % (room + 1) if sampling.packing == "pack" else 0
    return text[start : start + span]


def _number(key: bytes) -> int:
    """A number that a key fixes; not of its first bytes, which are small in what is drawn."""
    return int.from_bytes(key[6:14])


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """The tokens of a text, without any special one around them, int32 [n]; those of a marked text that are only
    context as `fisher/tokens.py` writes them. A token counts where its first character does."""
    plain = unmarked(text)
    if isinstance(tokenizer, Tokenizer):
        encoding = tokenizer.encode(plain, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        if MARK not in text:
            return ids
        begins = np.array([begin for begin, _ in encoding.offsets], dtype=np.int64)
        counts = np.append(counted_characters(text), False)[np.minimum(begins, len(plain))]
        return np.where(counts, ids, as_context(ids))
    parts = [np.zeros(0, np.int32)]
    for piece, of_completion in parts_of(text):
        tokens = tokenizer(piece, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        made = np.array(tokens, dtype=np.int32)
        parts.append(made if of_completion else as_context(made))
    return np.concatenate(parts)


def portable(tokenizer: Any) -> Any:
    """What of a tokenizer `encode` needs, as it is sent to tasks: reading should not have to import transformers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return tokenizer
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def tokenised(key: bytes, text: str, tokenizer: Any) -> Document:
    """A document as its tokens, from (the excerpt of) its text."""
    return Document(key, encode(tokenizer, text), len(unmarked(text).encode("utf-8", errors="replace")))


def draw_texts(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int, chat_template: str | None
) -> Iterator[tuple[Corpus, list[tuple[bytes, str]], Counts, Sketch]]:
    """As `draw_corpora`, with the (key, excerpt) of documents instead of their tokens, up to three times as many."""
    return _draw(wanted, sampling, seed, None, chat_template)


def draw_corpora(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int, tokenizer: Any
) -> Iterator[tuple[Corpus, Drawn]]:
    """Draw documents of every (corpus, tokens, least), one corpus after the other: so many that sequences of `tokens`
    tokens can be cut of them, but at least `least` documents, where the corpus has them.

    All corpora are read once, by the tasks of one Ray Data set of about 64 MiB each. A task keeps the smallest keys of
    its part and makes tokens of them, SURPLUS times its share of the sample; the driver sees no text, and holds about
    the sample of one corpus at a time. Keys are as good as random, so that a task hardly ever has more of the sample
    than that; one that may have is read again.
    """
    for corpus, found, counts, sketch in _draw(
        wanted, sampling, seed, portable(tokenizer), chat_template_of(tokenizer)
    ):
        yield corpus, Drawn(found, dict(counts), counts.rejects, sketch.settle())


def _enough(documents: Iterable[Document], sampling: Sampling, tokens: int, least: int) -> list[Document]:
    """The first documents, until they are `least` and sequences of `tokens` tokens can be cut of them."""
    found: list[Document] = []
    held = 0
    for document in documents:
        if held >= tokens and len(found) >= least:
            break
        found.append(document)
        held += _held([document], sampling)
    return found


def _held(documents: list[Document], sampling: Sampling) -> int:
    """Tokens of the sequences that can be cut of them."""
    most = [1 if d.completes else DOCUMENT_SEQUENCES for d in documents]
    return sum(min(len(d.ids), m * sampling.sequence_length) for d, m in zip(documents, most, strict=True))


def _least(sampling: Sampling, corpus: Corpus, tokens: int, documents: int) -> int:
    """Documents that must be drawn: where each gives one sequence, as records with completions do, as many as there
    are sequences; `cut` leaves out short ones, so twice that."""
    whole = corpus.mask == "completion" and (corpus.chat is not None or corpus.completion is not None)
    sequences = 1 if whole else {"pack": 0, "pad": 1, "cut": 2}[sampling.packing]
    return max(documents, sequences * -(-tokens // sampling.sequence_length))


SURPLUS = 3
"""Times its share of the sample that a task hands over, and at least FEWEST documents: of n that are expected of it,
more than that are there once in 10^4 at n = 4, and less often at any other."""
FEWEST = 12


def _draw(
    wanted: list[tuple[Corpus, int, int]], sampling: Sampling, seed: int, tokenizer: Any, chat_template: str | None
) -> Iterator[tuple[Corpus, Any, Counts, Sketch]]:
    """By corpus: the drawn documents, or without a tokenizer the (key, text) of `smallest`; and the counts."""
    asked = {corpus.name: tokens for corpus, tokens, _ in wanted}
    least = {corpus.name: _least(sampling, corpus, tokens, documents) for corpus, tokens, documents in wanted}

    def read(batch: dict[str, np.ndarray]) -> dict[str, list]:
        counts, sketch = Counts(), Sketch()
        corpus, fragments = read_task(batch)
        share, below = float(batch["share"][0]), bytes.fromhex(str(batch["below"][0]))
        tokens, number = asked[corpus.name], least[corpus.name]
        if share < 1:
            tokens, number = math.ceil(share * tokens), max(FEWEST, math.ceil(share * number))
        seen = 0

        def keyed() -> Iterator[tuple[bytes, str]]:
            nonlocal seen
            for text in documents(corpus, fragments, counts):
                sketch.add(text)
                key = document_key(seed, text)
                if below and key > below:
                    continue
                seen += 1
                yield key, excerpt(key, text, sampling)

        kept, error = [], ""
        try:
            kept = smallest(keyed(), tokens * CHARACTERS_PER_TOKEN, number)
        except CorpusError as reason:  # returned, not raised: Ray would wrap it in the worker's traceback
            error = named(reason)
        if tokenizer is None:
            data = [text.encode("utf-8", errors="replace") for _, text in kept]
        else:
            made = (tokenised(key, text, tokenizer) for key, text in kept)
            data = [
                d.bytes.to_bytes(8) + d.ids.astype("<i4").tobytes() for d in _enough(made, sampling, tokens, number)
            ]
        keys = [key for key, _ in kept[: len(data)]]
        return {
            "corpus": [corpus.name],
            "keys": [keys],
            "data": [data],
            "until": [keys[-1].hex() if keys and share < 1 and len(keys) < seen else ""],
            "counts": [json.dumps(counts)],
            "rejects": [json.dumps(counts.rejects)],
            "sketch": [sketch.settle().astype("<u8").tobytes()],
            "error": [error],
        }

    by_name = {corpus.name: corpus for corpus, *_ in wanted}
    tasks = [dict(task, below="") for task in with_shares(read_tasks(list(by_name.values()), chat_template))]
    rows = counted(on_tasks(tasks, read).iter_rows(), "parts of corpora read", len(tasks))
    for name, part in itertools.groupby(zip(tasks, rows, strict=True), key=lambda pair: pair[1]["corpus"]):
        counts, sketch = Counts(), Sketch()
        sample = _Sample(sampling, asked[name], least[name], tokenizer is None)
        cut = []  # tasks that may hold more of the sample, and the key up to which all of theirs is there
        for task, row in part:  # rows keep the order of the tasks
            if row["error"]:
                raise mistake(row["error"])
            counts.update(json.loads(row["counts"]))
            counts.rejects += json.loads(row["rejects"])
            sketch.settle(np.frombuffer(row["sketch"], "<u8"))
            sample.add(zip(row["keys"], row["data"], strict=True))
            cut += [(task, bytes.fromhex(row["until"]))] if row["until"] else []
        last = sample.settle()
        again = [dict(task, share=1.0, below=last.hex()) for task, until in cut if not last or until < last]
        for row in on_tasks(again, read).iter_rows() if again else []:
            if row["error"]:
                raise mistake(row["error"])
            sample.add(zip(row["keys"], row["data"], strict=True))
        sample.settle()
        yield by_name[name], sample.found, counts, sketch


def with_shares(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks with `share`: the part of its corpus' sample that each hands over, 1 where sizes are not known."""
    sizes = [(task["corpus"], [f["bytes"] for f in json.loads(task["fragments"])]) for task in tasks]
    totals: Counter = Counter()
    unknown = {corpus for corpus, parts in sizes if not all(parts)}
    for corpus, parts in sizes:
        totals[corpus] += sum(parts)
    shares = [
        1.0 if corpus in unknown else min(1.0, SURPLUS * sum(parts) / max(1, totals[corpus])) for corpus, parts in sizes
    ]
    return [dict(task, share=share) for task, share in zip(tasks, shares, strict=True)]


@dataclasses.dataclass
class _Sample:
    """The documents with the smallest keys of what was added, pruned whenever it has doubled."""

    sampling: Sampling
    tokens: int
    least: int
    texts: bool
    found: list[Any] = dataclasses.field(default_factory=list)
    """Documents, or (key, text)."""
    last: bytes = b""
    """The largest key of the sample, once it is full: what lies above is not taken up any more."""
    waiting: dict[bytes, bytes] = dataclasses.field(default_factory=dict)

    def add(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, data in rows:
            if not self.last or key <= self.last:
                self.waiting[key] = data
        if sum(map(len, self.waiting.values())) > 8 * self.tokens + 2**20:  # 4 bytes a token
            self.settle()

    def settle(self) -> bytes:
        """Takes up what was added; `last`."""
        if self.texts:
            texts = ((key, data.decode()) for key, data in self.waiting.items())
            characters = self.tokens * CHARACTERS_PER_TOKEN
            self.found = smallest(itertools.chain(self.found, texts), characters, self.least)
            full = sum(len(text) for _, text in self.found) >= characters and len(self.found) >= self.least
        else:
            known = {d.key: d for d in self.found}
            for key, data in self.waiting.items():
                if key not in known:
                    ids = np.frombuffer(data[8:], "<i4").astype(np.int32)
                    known[key] = Document(key, ids, int.from_bytes(data[:8]))
            self.found = _enough([known[key] for key in sorted(known)], self.sampling, self.tokens, self.least)
            full = _held(self.found, self.sampling) >= self.tokens and len(self.found) >= self.least
        self.waiting = {}
        if full:
            last: Any = self.found[-1]
            self.last = last[0] if self.texts else last.key
        return self.last


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
        if document.completes:
            if len(kept := tokens[around_completion(document.ids, self.length)]):
                yield from self._whole(kept)
            return
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
        self.pending = np.concatenate([self.pending, rest, self._end(name, n)])
        if len(self.pending) >= self.length:
            yield self.pending[: self.length]
            self.pending = self.pending[self.length :] if not self.alone else self.pending[:0]

    def _whole(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The pending row, filled up, where a record with a completion does not fit into it any more."""
        if tokens[-1, 0] not in self.separator:  # a chat template may have written it
            tokens = np.concatenate([tokens, self._end(tokens[0, 1], tokens[-1, 2] + 1)])[: self.length]
        if len(self.pending) + len(tokens) > self.length:
            yield self.filled(self.pending)
            self.pending = self.pending[:0]
        self.pending = np.concatenate([self.pending, tokens])
        if len(self.pending) == self.length:
            yield self.pending
            self.pending = self.pending[:0]

    def last(self) -> Iterator[np.ndarray]:
        """What is pending, where it holds records with completions: each of them is a row as it is."""
        if (self.pending[:, 0] < PADDING).any():
            yield self.filled(self.pending)

    def filled(self, tokens: np.ndarray) -> np.ndarray:
        """A row of T tokens, padding on the right."""
        missing = self.length - len(tokens)
        return np.concatenate([tokens, np.tile(np.array([[PADDING, FILLED, 0]]), (missing, 1))])

    def _end(self, name: int, place: int) -> np.ndarray:
        return np.array([(token, name, place) for token in self.separator], dtype=np.int64).reshape(-1, 3)


def around_completion(ids: np.ndarray, length: int) -> slice:
    """Where T tokens of a record with a completion are taken: all of a short one, else the end of its last completion
    with as much before as there is room for; of a completion that is too long itself its beginning, after one token of
    context."""
    counted = np.flatnonzero(ids >= 0)
    stop = int(counted[-1]) + 1 if len(counted) else 0
    context = np.flatnonzero(ids[:stop] < PADDING)
    start = int(context[-1]) + 1 if len(context) else 0
    begin = max(0, start - 1) if stop - start >= length else max(0, stop - length)
    return slice(begin, min(stop, begin + length))


def _completion_is_cut(ids: np.ndarray, length: int) -> bool:
    taken = around_completion(ids, length)
    return bool((ids[taken.stop :] >= 0).any())


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
    made = itertools.chain((row for document in drawn for row in cutter.cut(document)), cutter.last())
    rows = np.array(list(itertools.islice(made, most)), dtype=np.int64).reshape(-1, length, 3)
    ids, documents, places = rows.transpose(2, 0, 1)
    scored = ~firsts(documents) & (ids >= 0)
    kept = scored.any(axis=1)  # a row in which nothing counts is no row
    found = Rows(plain_ids(ids).astype(np.int32), documents, places.astype(np.int32), scored)
    return found[np.flatnonzero(kept)]


def make_batches(
    drawn: Iterable[Document], tokenizer: Any, sampling: Sampling, batches: int, counts: Counter
) -> np.ndarray:
    """Fill up to `batches` batches of B sequences of T tokens with documents in the order given: int32 [batches, B, T].
    No two batches share a document.

    `pack` cuts rows as `cut_rows` does; what is left of a document when its batch is full is dropped. `cut` takes the
    first T tokens of each and counts `shorter_than_sequence`; `pad` fills those up. A record with a completion is a
    row of its own, filled up (`completion_cut` counts those whose completion does not fit). `sampled_tokens` and
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
        if sampling.packing == "cut" and len(document.ids) < length and not document.completes:
            counts["shorter_than_sequence"] += 1
            continue
        if document.completes:
            if not (document.ids >= 0).any():
                counts["no_completion"] += 1
                continue
            counts["completion_cut"] += _completion_is_cut(document.ids, length)
        if sampling.packing == "pack" and not document.completes:
            batch += [row[:, 0] for row in cutter.cut(document)]
        else:
            kept = (
                document.ids[around_completion(document.ids, length)] if document.completes else document.ids[:length]
            )
            batch.append(np.r_[kept, np.full(max(0, length - len(kept)), PADDING)])
        if len(batch) >= size:
            ids.append(np.array(batch[:size], dtype=np.int32))
            batch, cutter = [], _Cutter(length, _separator(tokenizer))
    return np.stack(ids) if ids else np.zeros((0, size, length), np.int32)

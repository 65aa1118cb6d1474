"""Contamination: which candidate documents hold text of a target, by hashed n-grams of 13 words (as GPT-3's and later
filters).

All documents of every corpus are read once more, by Ray Data tasks that keep counts alone. A candidate's alignment with
a target is then taken again without the documents of its sample that share an n-gram with it.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from align_ray.alignment.coefficients import batch_matrix, main_blocks
from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.intervals import two_sample_mean
from align_ray.alignment.words import Extent, Size, cross_entropy_values
from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.context import Study
from align_ray.corpora.overlap import WORD
from align_ray.corpora.records import unmarked
from align_ray.corpora.sources import documents
from align_ray.corpora.tasks import on_tasks, read_task, read_tasks
from align_ray.embedding.evidence import Evidence
from align_ray.embedding.pool import embed_batches
from align_ray.embedding.units import units_of
from align_ray.fisher.tokens import texts_of
from align_ray.progress import counted

WORDS = 13
MOST_NGRAMS = 20_000_000
"""Kept of a target, 160 MB; a larger target is represented by those with the smallest hashes."""
PIECE = 2**15
"""Bytes of text that are hashed at once: the arrays of short documents together, of a long one in parts."""
BITS = 16
"""Of the first test, for every n-gram: it lets one in so many pass that no target holds."""
_BASE = 0x9E3779B97F4A7C15
_POWERS, _INVERSES = (
    np.cumprod(np.r_[np.uint64(1), np.full(2 * PIECE, base, np.uint64)], dtype=np.uint64)
    for base in (_BASE, pow(_BASE, -1, 2**64))
)
_RUN_POWERS = np.cumprod(np.full(WORDS, 0xC2B2AE3D27D4EB4F, np.uint64))
_LOWER = np.array([ord(chr(b).lower()) if b < 0x80 else b for b in range(256)], np.uint8)
_IN_WORD = np.array([b >= 0x80 or chr(b).isalnum() or chr(b) == "_" for b in range(256)])


def ngram_hashes(text: str) -> np.ndarray:
    """64-bit hashes of all runs of WORDS words, case and punctuation aside, uint64 [n]; [] for a shorter text."""
    return next(ngrams_of([text]))[0]


def ngrams_of(texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """`ngram_hashes` of many texts, PIECE bytes or one text at a time: the hashes, int64 [n] of which text of this
    part each is, and how many texts it holds."""
    waiting: list[np.ndarray] = []
    held = 0
    for text in texts:
        waiting.append(_bytes(text))
        held += len(waiting[-1])
        if held >= PIECE:
            yield _ngrams(waiting)
            waiting, held = [], 0
    if waiting:
        yield _ngrams(waiting)


def _bytes(text: str) -> np.ndarray:
    """UTF-8 in which what `_IN_WORD` finds are the words of WORD, in lower case."""
    if text.isascii():
        return _LOWER[np.frombuffer(text.encode(), np.uint8)]
    words = " ".join(WORD.findall(text.lower()))
    return np.frombuffer(words.encode("utf-8", errors="replace"), np.uint8)


def _ngrams(texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    gap = np.zeros(1, np.uint8)  # between texts, so that no word is of two
    data = np.concatenate([part for text in texts for part in (text, gap)])
    ends = np.cumsum([len(text) + 1 for text in texts])
    words, starts = _words(data)
    runs = max(0, len(words) - WORDS + 1)
    mixed = np.zeros(runs, np.uint64)
    for i, power in enumerate(_RUN_POWERS):  # one column after the other: all at once would be WORDS times the memory
        mixed += words[i : i + runs] * power
    mixed ^= mixed >> np.uint64(29)
    of = np.searchsorted(ends, starts, side="right")
    whole = of[:runs] == of[WORDS - 1 :] if runs else np.zeros(0, bool)
    return mixed[whole], of[:runs][whole], len(texts)


def _words(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every word, uint64, and where it begins. A polynomial of the bytes modulo 2^64, of all words of PIECE
    bytes at once as differences of running sums, then mixed (splitmix64's last step, Steele et al. 2014)."""
    inside = np.zeros(len(data) + 2, bool)
    np.take(_IN_WORD, data, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        begin = starts[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + PIECE, side="right")))
        end = min(ends[last - 1], begin + 2 * PIECE)  # of a longer word the beginning
        sums = np.zeros(end - begin + 1, np.uint64)
        np.cumsum((data[begin:end] + np.uint64(1)) * _POWERS[: end - begin], out=sums[1:])
        mine = starts[first:last] - begin
        hashes[first:last] = (sums[np.minimum(ends[first:last], end) - begin] - sums[mine]) * _INVERSES[mine]
        first = last
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(27)), starts


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """The n-grams of all targets in one table: a text is looked up once, however many targets there are."""

    targets: list[str]
    keys: np.ndarray
    """Hashes, uint64 [G], sorted, each once."""
    first: np.ndarray
    """int64 [G + 1]: n-gram g is one of the targets `owners[first[g] : first[g + 1]]`."""
    owners: np.ndarray
    """int32."""
    bits: np.ndarray
    """uint8, a Bloom filter of one hash (Bloom 1970): bit h of it is set where an n-gram's hash begins with h."""
    shift: int

    @classmethod
    def of(cls, known: dict[str, np.ndarray]) -> "Ngrams":
        """Of sorted distinct hashes by target."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *known.values()])
        owners = np.repeat(np.arange(len(known), dtype=np.int32), [len(h) for h in known.values()])
        order = np.argsort(hashes, kind="stable")
        keys, first = np.unique(hashes[order], return_index=True)
        width = max(16, (BITS * max(1, len(keys)) - 1).bit_length())
        bits, places = np.zeros(2 ** (width - 3), np.uint8), keys >> np.uint64(64 - width)
        np.bitwise_or.at(bits, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8))
        return cls(list(known), keys, np.r_[first, len(hashes)].astype(np.int64), owners[order], bits, 64 - width)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `hashes` are there, and the n-gram each is, int64 [n]."""
        places = hashes >> np.uint64(self.shift)
        byte = np.take(self.bits, (places >> np.uint64(3)).astype(np.int64))
        at = np.flatnonzero(byte >> (places & np.uint64(7)).astype(np.uint8) & 1)
        gram = np.minimum(np.searchsorted(self.keys, hashes[at]), max(0, len(self.keys) - 1))
        same = self.keys[gram] == hashes[at] if len(self.keys) else np.zeros(len(at), bool)
        return at[same], gram[same]

    def texts_by_target(self, texts: np.ndarray, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a text and a target that share an n-gram, each once, from texts and the n-grams found in them."""
        texts, grams = np.unique(np.stack([texts, grams]), axis=1)
        times = self.first[grams + 1] - self.first[grams]
        before = np.cumsum(times) - times
        places = np.arange(times.sum()) - np.repeat(before, times) + np.repeat(self.first[grams], times)
        pairs = np.unique(np.stack([np.repeat(texts, times), self.owners[places]]), axis=1)
        return pairs[0], pairs[1]

    def held(self, grams: np.ndarray) -> np.ndarray:
        """How many of the n-grams `grams`, each once, are each target's, int64 [targets]."""
        whole = np.zeros(len(self.keys), bool)
        whole[grams] = True
        each = np.repeat(whole, np.diff(self.first))
        return np.bincount(self.owners[each], minlength=len(self.targets))


def target_ngrams(study: Study, lost: Counter) -> dict[str, np.ndarray]:
    """Sorted hashes of all n-grams of every target, uint64; at most MOST_NGRAMS, those with the smallest hashes.
    Adds to `lost`, by corpus, the parts of its files that vanished."""

    def collect(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        corpus, fragments = read_task(batch)
        counts: Counter = Counter()
        texts = map(unmarked, documents(corpus, fragments, counts))
        found = _join(np.unique(hashes) for hashes, *_ in ngrams_of(texts))
        return {"name": [corpus.name], "vanished": [counts["vanished"]], "hashes": [found[:MOST_NGRAMS]]}

    parts: dict[str, list[np.ndarray]] = {t.name: [] for t in study.config.targets}
    for row in on_tasks(read_tasks(study.config.targets, study.chat_template), collect).iter_rows():
        parts[row["name"]].append(np.asarray(row["hashes"], np.uint64))
        lost[row["name"]] += row["vanished"]
    return {name: _join(found)[:MOST_NGRAMS] for name, found in parts.items()}


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def compare(texts: Iterable[str], known: Ngrams) -> tuple[int, np.ndarray, np.ndarray]:
    """How many texts there are; how many of them share an n-gram with each target, int64 [targets]; and the n-grams
    that they share, int64, each once."""
    count, hits, found = 0, np.zeros(len(known.targets), np.int64), [np.zeros(0, np.int64)]
    for hashes, of, many in ngrams_of(texts):
        at, grams = known.find(hashes)
        count += many
        if len(at):
            hits += np.bincount(known.texts_by_target(of[at], grams)[1], minlength=len(hits))
            found.append(np.unique(grams))
            if sum(map(len, found[1:])) > len(found[0]) + 2**20:  # no more than twice what is kept in the end
                found = [np.unique(np.concatenate(found))]
    return count, hits, np.unique(np.concatenate(found))


def overlaps(
    study: Study, known: Ngrams, candidates: list[Corpus], lost: Counter
) -> dict[str, dict[str, dict[str, Any]]]:
    """By candidate and target: `documents` of the candidate that share an n-gram with the target, of `of` documents
    in all, and `covered`, the share of the target's n-grams that occur in the candidate. `lost`: as for
    `target_ngrams`."""
    import ray

    shipped = ray.put(known)

    def count(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        corpus, fragments = read_task(batch)
        counts: Counter = Counter()
        of, hits, found = compare(map(unmarked, documents(corpus, fragments, counts)), ray.get(shipped))
        vanished = counts["vanished"]
        return {"name": [corpus.name], "vanished": [vanished], "of": [of], "hits": [hits], "found": [found]}

    sizes = np.bincount(known.owners, minlength=len(known.targets))
    result: dict[str, dict[str, dict[str, Any]]] = {}
    tasks = read_tasks(candidates, study.chat_template)
    rows = counted(on_tasks(tasks, count).iter_rows(), "parts of candidates compared", len(tasks))
    for name, parts in itertools.groupby(rows, key=lambda row: row["name"]):  # rows keep their order
        of, hits, found = 0, np.zeros(len(known.targets), np.int64), np.zeros(0, np.int64)
        for row in parts:
            of, hits, lost[name] = of + row["of"], hits + row["hits"], lost[name] + row["vanished"]
            found = np.union1d(found, np.asarray(row["found"], np.int64))
        covered = known.held(found) / np.maximum(1, sizes)
        result[name] = {
            target: {"documents": int(hits[t]), "of": int(of), "covered": float(covered[t])}
            for t, target in enumerate(known.targets)
        }
    return {c.name: result[c.name] for c in candidates}


def leaked_sequences(rows: np.ndarray, tokenizer: Any, known: Ngrams) -> np.ndarray:
    """Which sequences, int32 [n, T], hold an n-gram of each target: bool [n, targets]."""
    result, done = np.zeros((len(rows), len(known.targets)), bool), 0
    for hashes, of, many in ngrams_of(texts_of(rows, tokenizer)):
        at, grams = known.find(hashes)
        texts, targets = known.texts_by_target(of[at], grams)
        result[done + texts, targets] = True
        done += many
    return result


def find_contamination(study: Study, evidence: Evidence, only: Collection[str] | None = None) -> dict[str, Any]:
    """The overlaps of all documents, and every candidate's rank again without what its sample shares with a target.
    `only`: names of the candidates that are compared, default all.

    Returns a JSON value: `overlap` (see `overlaps`); by candidate and target `clean`: the share of sampled sequences
    that hold an n-gram of the target, alignment and cross-entropy of the whole sample and of the sequences without one
    (None where fewer than two batches remain), the rank by cross-entropy before and after (None where less is left than
    models are counted on), and whether the loss is `explained` by the leaked text, not by chance; `warnings`, where
    leaked text explains a rank or files vanished.
    """
    config, tokenizer = study.config, study.tokenizer
    study.say("reading every document again, for n-grams shared with the targets")
    lost: Counter = Counter()
    known = Ngrams.of(target_ngrams(study, lost))
    candidates = [c for c in config.candidates if only is None or c.name in only]
    found = overlaps(study, known, candidates, lost)
    batches, rows = evidence.batches, evidence.rows
    size = config.sampling.batch_size
    leaked: dict[tuple[str, str], np.ndarray] = {}
    for c in candidates:
        bad = leaked_sequences(_rows(batches[c.name]), tokenizer, known)
        leaked |= {(c.name, t): bad[:, i] for i, t in enumerate(known.targets)}
    kept = {pair: _rebatched(_rows(batches[pair[0]])[~bad], size) for pair, bad in leaked.items() if bad.any()}
    study.say(f"embedding {sum(len(b) for b in kept.values())} batches without them")
    embed_batches(study, kept.values(), evidence.dtype)
    clean: dict[str, dict[str, Any]] = {c.name: {} for c in candidates}
    whole = {c.name: batches[c.name] for c in config.candidates}
    for t in known.targets:
        left = {name: kept.get((name, t), mine) for name, mine in whole.items()}
        places = _places(whole, left, batches[t], len(tokenizer), config)
        for c in candidates:
            mine: np.ndarray | None = rows[c.name]
            if (c.name, t) in kept:
                units = units_of(study.store, evidence.key, kept[c.name, t])
                mine = batch_matrix(units, main_blocks(units)) if len(units) > 1 else None
            estimates = [
                None if v is None else vars(two_sample_mean(1 - distance_matrix(v, rows[t], config.embedding.epsilon)))
                for v in (rows[c.name], mine)
            ]
            gone = kept.get((c.name, t))
            clean[c.name][t] = {
                "explained": gone is not None and _worse(batches[c.name], gone, batches[t], tokenizer, config),
                "share": float(leaked[c.name, t].mean()),
                "alignment": estimates[0],
                "alignment_clean": estimates[1],
                "cross_entropy": places[0][c.name][1],
                "cross_entropy_clean": places[1][c.name][1],
                "rank": places[0][c.name][0],
                "rank_clean": places[1][c.name][0],
            }
    warnings = [*_vanished(lost), *_warnings(found, clean)]
    if len(candidates) < len(config.candidates):
        words = "Only {} of {} candidates were compared with the targets: the others are ranked with what they share."
        warnings.append(words.format(len(candidates), len(config.candidates)))
    return {"words": WORDS, "overlap": found, "clean": clean, "warnings": warnings}


Places = dict[str, tuple[int | None, float | None]]


def _places(
    whole: dict[str, np.ndarray], left: dict[str, np.ndarray], target: np.ndarray, vocabulary: int, config: Config
) -> tuple[Places, Places]:
    """By candidate its place by cross-entropy and the value, of all batches and of what is left of them, under models
    of the same number of tokens as `align`'s; None for both where too little is left for that: a value under smaller
    models is no measure of what leaked."""
    known: dict[tuple[int, int], float] = {}  # a value by its batches and the models' size: most are the same in both

    def places(drawn: dict[str, np.ndarray]) -> Places:
        none: Places = dict.fromkeys(drawn, (None, None))
        enough = {name: rows for name, rows in drawn.items() if len(rows) > 1}
        if not enough:
            return none
        extents = {name: Extent.of(rows) for name, rows in enough.items()}
        size = Size.of(config.counted_tokens, list(extents.values()))
        values = {}
        for name in (n for n, extent in extents.items() if size.batches(extent) <= extent.batches):
            key = (id(drawn[name]), size.tokens)
            if key not in known:
                known[key] = float(cross_entropy_values(drawn[name], target, vocabulary, size).mean())
            values[name] = known[key]
        return none | {name: (i, values[name]) for i, name in enumerate(sorted(values, key=values.__getitem__), 1)}

    return places(whole), places(left)


def _worse(whole: np.ndarray, left: np.ndarray, target: np.ndarray, tokenizer: Any, config: Config) -> bool:
    """Whether the cross-entropy under what is left of a candidate's batches is higher than under all, by more than
    leaving out as many at random would make it (one-sided t test, 5%); False where too little is left to tell."""
    if len(left) < 2:
        return False
    extents = [Extent.of(whole), Extent.of(left)]
    size = Size.of(config.counted_tokens, extents)
    if len(left) < size.batches(extents[1]):
        return False
    before, after = (cross_entropy_values(b, target, len(tokenizer), size).mean(1) for b in (whole, left))
    error = np.sqrt(before.var(ddof=1) * max(0.0, 1 / len(left) - 1 / len(whole)))
    return bool(after.mean() - before.mean() > stats.t.ppf(0.95, len(left) - 1) * error)


def _rows(batches: np.ndarray) -> np.ndarray:
    return batches.reshape(-1, batches.shape[-1])


def _rebatched(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[: len(rows) // size * size].reshape(-1, size, rows.shape[-1])


def _vanished(lost: Counter) -> list[str]:
    """One sentence for each corpus of which something was gone when it was read again."""
    words = "{} parts of the files of '{}' vanished before they were compared: what they held is left out."
    return [words.format(parts, name) for name, parts in lost.items() if parts]


def _warnings(found: dict[str, Any], clean: dict[str, Any]) -> list[str]:
    """One sentence for each candidate that loses its place without the leaked text, or that holds much of a target."""
    lines = []
    for name, targets in clean.items():
        for target, row in targets.items():
            overlap = found[name][target]
            held = f"{overlap['documents']:,} of {overlap['of']:,} documents of '{name}' share text with '{target}'"
            if row["share"] > 0 and row["rank"] and row["rank_clean"] is None:
                lines.append(f"{held}; without them too little is left to rank it.")
            elif row["explained"] and row["rank"] and row["rank_clean"] > row["rank"]:
                fall = f"it falls from place {row['rank']} to {row['rank_clean']}"
                lines.append(f"{held}; without them {fall}: leaked test data explains its rank.")
            elif overlap["covered"] >= 0.1:
                lines.append(f"{held}, {overlap['covered']:.0%} of the target's text: remove it before training.")
    return lines

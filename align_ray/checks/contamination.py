"""Contamination: which candidate documents hold text of a target, by hashed n-grams of 13 words (as GPT-3's and later
filters).

All documents of every corpus are read once more, by Ray Data tasks that keep counts alone. A candidate's alignment with
a target is then taken again without the documents of its sample that share an n-gram with it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from align_ray.alignment.coefficients import batch_matrix, main_blocks
from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.intervals import two_sample_mean
from align_ray.alignment.words import Size, cross_entropy_values, rank_by_cross_entropy
from align_ray.config import Config
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
_POWERS = np.cumprod(np.full(WORDS, 0x9E3779B97F4A7C15, np.uint64))


def ngram_hashes(text: str) -> np.ndarray:
    """64-bit hashes of all runs of WORDS words, case and punctuation aside, uint64 [n]; [] for a shorter text."""
    words = WORD.findall(text.lower())
    if len(words) < WORDS:
        return np.zeros(0, np.uint64)
    values = np.fromiter((_word_hash(word) for word in words), np.uint64, len(words))
    runs = len(words) - WORDS + 1
    mixed = np.zeros(runs, np.uint64)
    with np.errstate(over="ignore"):
        for i, power in enumerate(_POWERS):  # one column after the other: all at once would be WORDS times the memory
            mixed += values[i : i + runs] * power
        return mixed ^ (mixed >> np.uint64(29))


@lru_cache(maxsize=2**18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", errors="replace"), digest_size=8).digest())


def shared(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Those of `hashes` that are among the sorted `known`, without repetition."""
    unique = np.unique(hashes)
    at = np.minimum(np.searchsorted(known, unique), max(0, len(known) - 1))
    return unique[known[at] == unique] if len(known) else unique[:0]


def target_ngrams(study: Study, lost: Counter) -> dict[str, np.ndarray]:
    """Sorted hashes of all n-grams of every target, uint64; at most MOST_NGRAMS, those with the smallest hashes.
    Adds to `lost`, by corpus, the parts of its files that vanished."""

    def collect(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        corpus, fragments = read_task(batch)
        counts: Counter = Counter()
        found = _join(ngram_hashes(unmarked(text)) for text in documents(corpus, fragments, counts))
        return {"name": [corpus.name], "vanished": [counts["vanished"]], "hashes": [found[:MOST_NGRAMS]]}

    parts: dict[str, list[np.ndarray]] = {t.name: [] for t in study.config.targets}
    for row in on_tasks(read_tasks(study.config.targets, study.chat_template), collect).iter_rows():
        parts[row["name"]].append(np.asarray(row["hashes"], np.uint64))
        lost[row["name"]] += row["vanished"]
    return {name: _join(found)[:MOST_NGRAMS] for name, found in parts.items()}


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def overlaps(study: Study, known: dict[str, np.ndarray], lost: Counter) -> dict[str, dict[str, dict[str, Any]]]:
    """By candidate and target: `documents` of the candidate that share an n-gram with the target, of `of` documents
    in all, and `covered`, the share of the target's n-grams that occur in the candidate. `lost`: as for
    `target_ngrams`."""
    import ray

    shipped = ray.put(known)

    def count(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        corpus, fragments = read_task(batch)
        targets = ray.get(shipped)
        hits: Counter = Counter()
        counts: Counter = Counter()
        found: dict[str, list[np.ndarray]] = {t: [] for t in targets}
        for text in documents(corpus, fragments, counts):
            hits["of"] += 1
            hashes = ngram_hashes(unmarked(text))
            for target, grams in targets.items():
                common = shared(hashes, grams)
                if len(common):
                    hits[target] += 1
                    found[target].append(common)
        covered = {t: _join(parts) for t, parts in found.items()}
        names = list(covered)
        return {
            "name": [corpus.name],
            "hits": [json.dumps(hits)],
            "vanished": [counts["vanished"]],
            "targets": [json.dumps(names)],
            "sizes": [[len(covered[t]) for t in names]],
            "hashes": [np.concatenate([covered[t] for t in names])],
        }

    hits: dict[str, Counter] = {c.name: Counter() for c in study.config.candidates}
    covered: dict[str, dict[str, list[np.ndarray]]] = {c.name: {t: [] for t in known} for c in study.config.candidates}
    tasks = read_tasks(study.config.candidates, study.chat_template)
    for row in counted(on_tasks(tasks, count).iter_rows(), "parts of candidates compared", len(tasks)):
        hits[row["name"]].update(json.loads(row["hits"]))
        lost[row["name"]] += row["vanished"]
        edges = np.cumsum(np.asarray(row["sizes"]))[:-1]
        for target, part in zip(
            json.loads(row["targets"]), np.split(np.asarray(row["hashes"], np.uint64), edges), strict=True
        ):
            covered[row["name"]][target].append(part)
    return {
        name: {
            target: {
                "documents": hits[name][target],
                "of": hits[name]["of"],
                "covered": len(_join(covered[name][target])) / max(1, len(grams)),
            }
            for target, grams in known.items()
        }
        for name in hits
    }


def leaked_sequences(rows: np.ndarray, tokenizer: Any, grams: np.ndarray) -> np.ndarray:
    """Which sequences, int32 [n, T], hold an n-gram of the target: bool [n]."""
    texts = texts_of(rows, tokenizer)
    return np.array([len(shared(ngram_hashes(text), grams)) > 0 for text in texts], dtype=bool)


def find_contamination(study: Study, evidence: Evidence) -> dict[str, Any]:
    """The overlaps of all documents, and every candidate's rank again without what its sample shares with a target.

    Returns a JSON value: `overlap` (see `overlaps`); by candidate and target `clean`: the share of sampled sequences
    that hold an n-gram of the target, alignment and cross-entropy of the whole sample and of the sequences without one
    (None where fewer than two batches remain), the rank by cross-entropy before and after (None where less is left than
    models are counted on), and whether the loss is `explained` by the leaked text, not by chance; `warnings`, where
    leaked text explains a rank or files vanished.
    """
    config, tokenizer = study.config, study.tokenizer
    study.say("reading every document again, for n-grams shared with the targets")
    lost: Counter = Counter()
    known = target_ngrams(study, lost)
    found = overlaps(study, known, lost)
    batches, rows = evidence.batches, evidence.rows
    size = config.sampling.batch_size
    leaked = {
        (c.name, t): leaked_sequences(_rows(batches[c.name]), tokenizer, known[t])
        for c in config.candidates
        for t in known
    }
    kept = {pair: _rebatched(_rows(batches[pair[0]])[~bad], size) for pair, bad in leaked.items() if bad.any()}
    study.say(f"embedding {sum(len(b) for b in kept.values())} batches without them")
    embed_batches(study, kept.values(), evidence.dtype)
    clean: dict[str, dict[str, Any]] = {c.name: {} for c in config.candidates}
    for t in known:
        whole = {c.name: batches[c.name] for c in config.candidates}
        left = {name: kept.get((name, t), mine) for name, mine in whole.items()}
        places = [_places(drawn, batches[t], tokenizer, config) for drawn in (whole, left)]
        for c in config.candidates:
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
    return {"words": WORDS, "overlap": found, "clean": clean, "warnings": [*_vanished(lost), *_warnings(found, clean)]}


def _places(
    batches: dict[str, np.ndarray], target: np.ndarray, tokenizer: Any, config: Config
) -> dict[str, tuple[int | None, float | None]]:
    """By candidate its place by cross-entropy and the value, under models of the same number of tokens as `align`'s;
    None for both where too little is left for that: a value under smaller models is no measure of what leaked."""
    enough = {name: rows for name, rows in batches.items() if len(rows) > 1}
    if not enough:
        return dict.fromkeys(batches, (None, None))
    found = rank_by_cross_entropy(enough | {"": target}, [""], len(tokenizer), config.counted_tokens)
    places: dict[str, tuple[int | None, float | None]] = dict.fromkeys(batches, (None, None))
    return places | {row["candidate"]: (i, row["value"]) for i, row in enumerate(found["ranking"][""], start=1)}


def _worse(whole: np.ndarray, left: np.ndarray, target: np.ndarray, tokenizer: Any, config: Config) -> bool:
    """Whether the cross-entropy under what is left of a candidate's batches is higher than under all, by more than
    leaving out as many at random would make it (one-sided t test, 5%); False where too little is left to tell."""
    if len(left) < 2:
        return False
    size = Size.of(config.counted_tokens, [whole, left])
    if len(left) < size.batches(left):
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

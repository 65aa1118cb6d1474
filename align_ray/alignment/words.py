"""The cross-entropy of a target under a candidate's unigram model, counted on the same number of tokens for all.

In the predictive study (docs/study.md) no form of Fisher alignment ranked candidates by the loss after training better
than this beyond noise, and none costs as little; so candidates are ranked by it, with the coefficient beside it.

A model counted on more text fits every target better, so that of two parts of one corpus the larger would come first.
The number of tokens is therefore part of what is measured: every candidate's value is the mean over models that are
each counted on N of its tokens, and tokens that such a model has not seen get a share of a background that is the same
for all studies: uniform over the vocabulary.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_ray.alignment.baselines import PRIOR
from align_ray.alignment.comparison import ranking
from align_ray.alignment.intervals import two_sample_mean

MEASURE = "unigram cross-entropy"
LEAST_SHARE = 0.05
"""A corpus of whose tokens fewer count, such as one of yes and no, does not make all others be counted on so few."""
MOST_SUBSETS = 128
"""Models counted on as many choices of batches; fewer choices than this are all taken."""


def rank_by_cross_entropy(
    batches: Mapping[str, np.ndarray], targets: list[str], vocabulary: int, tokens: int
) -> dict[str, Any]:
    """Candidates of every target from lowest to highest cross-entropy, nats per token, as a JSON value.

    `batches`: token ids [n, B, T] by corpus (see `fisher/tokens.py`), n >= 2; those that are no targets are candidates.
    `tokens`: on which every model is counted; rounded down to whole batches, or whole sequences of one, and given
    back. `ranking[target]` as `comparison.ranking` gives it; `unranked[target]`: candidates that hold less, each with
    its value under a model counted on the `tokens` that it holds (see `Size.of`).
    """
    candidates = [name for name in batches if name not in targets]
    size = Size.of(tokens, [batches[c] for c in candidates])
    ranked = [c for c in candidates if size.batches(batches[c]) <= len(batches[c])]
    result: dict[str, Any] = {"measure": MEASURE, "tokens": size.tokens, "ranking": {}, "unranked": {}}
    for t in targets:
        values = {c: cross_entropy_values(batches[c], batches[t], vocabulary, size) for c in candidates}
        result["ranking"][t] = ranking({c: values[c] for c in ranked}, lowest_first=True)
        result["unranked"][t] = [
            {"candidate": c, "tokens": size.held(batches[c]), **vars(two_sample_mean(values[c]))}
            for c in candidates
            if c not in ranked
        ]
    return result


@dataclasses.dataclass(frozen=True)
class Size:
    """What every model is counted on: so many `tokens` that count. Of a corpus whose rows hold padding or context that
    is more batches."""

    tokens: int

    @classmethod
    def of(cls, tokens: int, corpora: list[np.ndarray]) -> "Size":
        """`tokens`, less where prompts and padding leave fewer that count: times the smallest share of them in any of
        the corpora (batches [n, B, T]), but for those under LEAST_SHARE; where none holds so many, what the smallest
        holds. In whole batches of the corpus whose batches hold most, or within one batch in whole sequences."""
        held = [int((ids >= 0).sum()) for ids in corpora]
        shares = [n / ids.size for n, ids in zip(held, corpora, strict=True)]
        of_batch = max(n / len(ids) for n, ids in zip(held, corpora, strict=True))
        wanted = tokens * min((share for share in shares if share >= LEAST_SHARE), default=min(shares))
        wanted = wanted if max(held) >= wanted else min(held)
        step = of_batch if wanted >= of_batch else of_batch / corpora[0].shape[1]
        return cls(max(1, int(int(wanted / step + 1e-9) * step)))

    def batches(self, ids: np.ndarray) -> int:
        """Batches of a corpus that a model is counted on."""
        return max(1, math.ceil(self.tokens / max(1e-9, (ids >= 0).sum() / len(ids)) - 1e-6))

    def sequences(self, ids: np.ndarray) -> int:
        """Sequences of each of these batches, so that all together hold `tokens`, nearly."""
        of_batch = max(1e-9, (ids >= 0).sum() / len(ids))
        return min(ids.shape[1], max(1, round(ids.shape[1] * self.tokens / (self.batches(ids) * of_batch))))

    def held(self, ids: np.ndarray) -> int:
        """Tokens that count of all the corpus' batches."""
        return int((ids >= 0).sum())


def cross_entropy_values(candidate: np.ndarray, target: np.ndarray, vocabulary: int, size: Size) -> np.ndarray:
    """Values [n, m] whose mean is the target's cross-entropy under models of the candidate, nats per token, and whose
    rows and columns are independent units, as those of a matrix of alignments.

    `candidate`: token ids [n, B, T] of n batches, n >= 2; `target`: [m, B, T]; negative ids do not count. The mean over
    models counted on `size.batches` batches each is a U-statistic; row i is that mean and what batch i adds to it (its
    Hajek projection), which least squares gives. Of fewer batches than `size.batches` a model is counted on all.
    """
    counts = np.stack([np.bincount(ids[ids >= 0], minlength=vocabulary) for ids in target])
    seen = counts.any(0)
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1))[:, seen].T

    def under(model: np.ndarray, total: np.ndarray) -> np.ndarray:
        return -np.log((model + PRIOR / vocabulary) / (total[:, None] + PRIOR)) @ shares

    parts = counted_parts(candidate, vocabulary, size)  # [n, parts, V]
    totals, parts = parts.sum(-1), parts[..., seen]
    n, k = len(parts), min(size.batches(candidate), len(parts))
    if k == 1:
        return np.stack([under(part, total).mean(0) for part, total in zip(parts, totals, strict=True)])
    models, total = parts[:, 0], totals[:, 0]

    def over(chosen: np.ndarray) -> np.ndarray:
        steps = range(0, len(chosen), 16)
        return np.concatenate([under(chosen[i : i + 16] @ models, chosen[i : i + 16] @ total) for i in steps])

    chosen = subsets(n, k)
    values = over(chosen)
    mean = values.mean(0)
    if k == n:  # one model of all: what a batch adds is seen by leaving one out
        k, chosen = n - 1, subsets(n, n - 1)
        values = over(chosen)
    added = k * np.linalg.lstsq(chosen - k / n, values - values.mean(0), rcond=None)[0]
    return mean + added - added.mean(0)


def counted_parts(ids: np.ndarray, vocabulary: int, size: Size) -> np.ndarray:
    """Token counts of batches [n, B, T] in parts of `size.sequences` sequences, float64 [n, parts, V]; what is left of
    a batch is not counted."""
    sequences = size.sequences(ids)
    parts = ids.shape[1] // sequences
    cut = ids[:, : parts * sequences].reshape(len(ids), parts, -1)
    return np.stack([[np.bincount(p[p >= 0], minlength=vocabulary) for p in batch] for batch in cut]).astype(np.float64)


def subsets(n: int, k: int) -> np.ndarray:
    """Choices of k of n units, float64 [choices, n] of 0 and 1: all where they are at most MOST_SUBSETS, else about so
    many, every unit as often; always the same."""
    if math.comb(n, k) <= MOST_SUBSETS:
        chosen: Any = itertools.combinations(range(n), k)
    else:
        rng, each = np.random.default_rng([n, k]), n // k
        rounds = -(-MOST_SUBSETS // each)
        chosen = [rng.permutation(n)[: each * k].reshape(each, k) for _ in range(rounds)]
        chosen = np.concatenate(chosen)
    result = [np.isin(np.arange(n), list(units)) for units in chosen]
    return np.array(result, np.float64)

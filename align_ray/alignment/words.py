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
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse

from align_ray.alignment.baselines import PRIOR
from align_ray.alignment.comparison import ranking
from align_ray.alignment.margins import Margins, estimate

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
    its value under a model counted on the `tokens` that it holds (see `Size.of`). Corpora are asked for one by one,
    and none is held: the candidates twice.
    """
    candidates = [name for name in batches if name not in targets]
    extents = [Extent.of(batches[c]) for c in candidates]
    size = Size.of(tokens, extents)
    ranked = [i for i, extent in enumerate(extents) if size.batches(extent) <= extent.batches]
    few = sorted({*range(len(candidates))} - {*ranked})
    found = cross_entropy_margins((batches[c] for c in candidates), (batches[t] for t in targets), vocabulary, size)
    result: dict[str, Any] = {"measure": MEASURE, "tokens": size.tokens, "ranking": {}, "unranked": {}}
    for t, margins in zip(targets, found, strict=True):
        result["ranking"][t] = ranking([candidates[i] for i in ranked], margins.part(ranked), lowest_first=True)
        estimates = margins.estimates()
        result["unranked"][t] = [
            {
                "candidate": candidates[i],
                "tokens": extents[i].tokens,
                **vars(estimate(estimates[i])),
            }
            for i in few
        ]
    return result


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much a corpus' batches hold."""

    batches: int
    sequences: int
    """Of a batch."""
    ids: int
    """Of all batches together."""
    tokens: int
    """Those of them that count."""

    @classmethod
    def of(cls, ids: np.ndarray) -> "Extent":
        """Of batches [n, B, T]."""
        return cls(len(ids), ids.shape[1], ids.size, int((ids >= 0).sum()))

    @property
    def of_batch(self) -> float:
        """Tokens that count, of a batch."""
        return max(1e-9, self.tokens / self.batches)


@dataclasses.dataclass(frozen=True)
class Size:
    """What every model is counted on: so many `tokens` that count. Of a corpus whose rows hold padding or context that
    is more batches."""

    tokens: int

    @classmethod
    def of(cls, tokens: int, corpora: Sequence[Extent]) -> "Size":
        """`tokens`, less where prompts and padding leave fewer that count: times the smallest share of them in any of
        the corpora, but for those under LEAST_SHARE; where none holds so many, what the smallest holds. In whole
        batches of the corpus whose batches hold most, or within one batch in whole sequences."""
        held = [one.tokens for one in corpora]
        shares = [one.tokens / one.ids for one in corpora]
        of_batch = max(one.tokens / one.batches for one in corpora)
        wanted = tokens * min((share for share in shares if share >= LEAST_SHARE), default=min(shares))
        wanted = wanted if max(held) >= wanted else min(held)
        step = of_batch if wanted >= of_batch else of_batch / corpora[0].sequences
        return cls(max(1, int(int(wanted / step + 1e-9) * step)))

    def batches(self, corpus: Extent) -> int:
        """Batches of a corpus that a model is counted on."""
        return max(1, math.ceil(self.tokens / corpus.of_batch - 1e-6))

    def sequences(self, corpus: Extent) -> int:
        """Sequences of each of these batches, so that all together hold `tokens`, nearly."""
        wanted = round(corpus.sequences * self.tokens / (self.batches(corpus) * corpus.of_batch))
        return min(corpus.sequences, max(1, wanted))


def cross_entropy_values(candidate: np.ndarray, target: np.ndarray, vocabulary: int, size: Size) -> np.ndarray:
    """Values [n, m] whose mean is the target's cross-entropy under models of the candidate, nats per token, and whose
    rows and columns are independent units, as those of a matrix of alignments.

    `candidate`: token ids [n, B, T] of n batches, n >= 2; `target`: [m, B, T]; negative ids do not count. The mean over
    models counted on `size.batches` batches each is a U-statistic; row i is that mean and what batch i adds to it (its
    Hajek projection), which least squares gives. Of fewer batches than `size.batches` a model is counted on all.
    """
    shares = _shares(target, vocabulary)
    seen = np.diff(shares.tocsc().indptr) > 0
    whole, models = _minus_logs(candidate, vocabulary, size, seen)
    return models.added(shares[:, seen].T.tocsr(), whole)


def cross_entropy_margins(
    candidates: Iterable[np.ndarray], targets: Iterable[np.ndarray], vocabulary: int, size: Size
) -> list[Margins]:
    """What `cross_entropy_values` of K candidates comes to for every target, but for the order of sums: the logarithms
    of a candidate's models are taken once, their means over batches serve all targets' batches, and what a batch adds
    is asked of every target's mean tokens alone. No more than one of the corpora is held."""
    shares = [_shares(t, vocabulary) for t in targets]
    every = sparse.vstack(shares).tocsc()
    seen = np.diff(every.indptr) > 0
    of_batches = every[:, seen].tocsr()  # [all targets' batches, seen tokens]
    of_targets = np.stack([np.asarray(s[:, seen].mean(0)).ravel() for s in shares], axis=1)
    ends = np.cumsum([s.shape[0] for s in shares])
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
    for candidate in candidates:
        whole, models = _minus_logs(candidate, vocabulary, size, seen)
        added = models.added(of_targets, whole)  # [n, T]: what the rows of every target's matrix come to
        found.append((added.mean(0), added.var(0, ddof=1) / len(candidate), of_batches @ whole, len(candidate)))
    mean, own, by_batch, batches = (np.array(part) for part in zip(*found, strict=True))
    del found
    parts = np.split(by_batch, ends[:-1], axis=1)
    return [Margins(mean[:, j], own[:, j], part, batches) for j, part in enumerate(parts)]


def token_counts(batches: np.ndarray, vocabulary: int) -> sparse.csr_matrix:
    """Of batches [m, B, T], int32 [m, V], of which most are zero; negative ids do not count."""
    rows = [np.unique(ids[ids >= 0], return_counts=True) for ids in batches]
    places = np.r_[0, np.cumsum([len(ids) for ids, _ in rows])].astype(np.int32)
    counts, ids = (np.concatenate(part).astype(np.int32) for part in ([n for _, n in rows], [ids for ids, _ in rows]))
    return sparse.csr_matrix((counts, ids, places), (len(batches), vocabulary))


def _shares(target: np.ndarray, vocabulary: int) -> sparse.csr_matrix:
    """Token shares of batches [m, B, T], [m, V]."""
    counts = token_counts(target, vocabulary).astype(np.float64)
    sizes = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    counts.data /= np.repeat(sizes, np.diff(counts.indptr))
    return counts


@dataclasses.dataclass(frozen=True)
class Models:
    """Minus the logarithms of a candidate's unigram models, and how a batch's part in them is found."""

    logs: np.ndarray
    """float64 [choices, V], or [n, V] where a model is counted on parts of one batch each."""
    part: np.ndarray | None
    """[n, choices], what a batch adds to the mean over choices, from the values of all; None where each row is a
    batch."""

    def added(self, shares: Any, whole: np.ndarray) -> np.ndarray:
        """The mean and what every batch adds to it, [n, m], for shares [V, m] of tokens; `whole` [V]: the mean of
        the logs of all models."""
        values = self.logs @ shares
        if self.part is None:
            return values
        added = self.part @ (values - values.mean(0))
        return whole @ shares + added - added.mean(0)


def _minus_logs(ids: np.ndarray, vocabulary: int, size: Size, seen: np.ndarray) -> tuple[np.ndarray, Models]:
    """For batches [n, B, T] and the tokens that are `seen` (bool [V]): the mean over all models, [seen], and the models
    by which the part of every batch is found."""
    parts = counted_parts(ids, vocabulary, size)  # [n, parts, V]
    totals, parts = parts.sum(-1), parts[..., seen]
    n, k = len(parts), min(size.batches(Extent.of(ids)), len(parts))

    def logs(model: np.ndarray, total: np.ndarray) -> np.ndarray:
        return -np.log((model + PRIOR / vocabulary) / (total[..., None] + PRIOR))

    if k == 1:
        found = np.stack([logs(p, t).mean(0) for p, t in zip(parts, totals, strict=True)])
        return found.mean(0), Models(found, None)
    models, total = parts[:, 0], totals[:, 0]
    chosen, part = _choices(n, k)
    found = logs(chosen @ models, chosen @ total)
    if k < n:
        return found.mean(0), Models(found, part)
    chosen, part = _choices(n, n - 1)  # one model of all: what a batch adds is seen by leaving one out
    return found[0], Models(logs(chosen @ models, chosen @ total), part)


@lru_cache(maxsize=512)
def _choices(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`subsets`, and the least squares by which what each of n batches adds is found from the values of all choices,
    [n, choices]."""
    chosen = subsets(n, k)
    return chosen, k * np.linalg.pinv(chosen - k / n)


def counted_parts(ids: np.ndarray, vocabulary: int, size: Size) -> np.ndarray:
    """Token counts of batches [n, B, T] in parts of `size.sequences` sequences, float64 [n, parts, V]; what is left of
    a batch is not counted."""
    sequences = size.sequences(Extent.of(ids))
    parts = ids.shape[1] // sequences
    cut = ids[:, : parts * sequences].reshape(len(ids), parts, -1)
    result = np.empty((len(cut), parts, vocabulary))
    for i, batch in enumerate(cut):
        for j, part in enumerate(batch):
            result[i, j] = np.bincount(part[part >= 0], minlength=vocabulary)
    return result


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
    places = np.array(list(chosen))
    result = np.zeros((len(places), n))
    result[np.arange(len(places))[:, None], places] = 1
    return result

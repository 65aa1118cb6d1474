"""Which candidate is more aligned with a target: probabilities adjusted for many candidates, and the batches that
settle it.

The alignments of K candidates with one target are means of matrices [n_k, m] of alignments between batches. The
target's m batches are shared, so that their noise is common to all candidates and largely cancels in differences. The
estimates are taken as jointly normal with the covariance of their Hajek projections, with the degrees of freedom of the
smallest sample.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from scipy import stats

from align_ray.alignment.margins import Margins, estimate

DRAWS, FEWER_DRAWS = 20_000, 4_000
"""Simulated rankings behind a probability: standard error at most 0.004, of MANY candidates 0.008."""
MANY = 64
"""Candidates from which on rankings are simulated from the batches (`_simulate`) and fewer times, and comparisons are
adjusted by Bonferroni's bound: the largest of K^2 differences in every simulation takes seconds a target. The t that
settles is then higher by up to a tenth."""
QUANTILES = 400
"""Of the standard error's distribution, over which that bound is taken."""
CONFIDENCE, POWER = 0.95, 0.8


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """K alignments with one target, ready to be compared."""

    values: np.ndarray
    """float64 [K], means over pairs of batches."""
    own: np.ndarray
    """float64 [K], variance of the mean that the candidate's own batches give."""
    root: np.ndarray
    """float64 [K, m], whose product with its transpose is `shared`."""
    shared: np.ndarray
    """float64 [K, K], covariance that the target's batches give."""
    freedom: int
    batches: np.ndarray
    """int [K], batches of each candidate; `target_batches` of the target."""
    target_batches: int


def contrasts(alignments: list[np.ndarray]) -> Contrasts:
    """From the alignments of every candidate's batches with the target's, K matrices [n_k, m], n_k >= 2, m >= 2."""
    return contrasts_of(Margins.of(alignments))


def contrasts_of(margins: Margins) -> Contrasts:
    """From what these matrices come to."""
    m = margins.by_target.shape[1]
    return Contrasts(
        values=margins.mean,
        own=margins.own,
        root=(margins.by_target - margins.by_target.mean(1, keepdims=True)) / np.sqrt((m - 1) * m),
        shared=np.atleast_2d(np.cov(margins.by_target)) / m,
        freedom=min(m, int(margins.batches.min())) - 1,
        batches=margins.batches,
        target_batches=m,
    )


def variances(c: Contrasts) -> np.ndarray:
    """Variance of every difference of two alignments, [K, K]."""
    diagonal = np.diag(c.shared)
    return c.own[:, None] + c.own[None, :] + diagonal[:, None] + diagonal[None, :] - 2 * c.shared


def p_above(c: Contrasts) -> np.ndarray:
    """P(i is more aligned than j), [K, K], one-sided t, not adjusted; 1/2 on the diagonal."""
    t = (c.values[:, None] - c.values[None, :]) / np.sqrt(np.maximum(variances(c), 1e-300))
    return stats.t.cdf(t, c.freedom)


def p_above_adjusted(c: Contrasts, seed: int = 0) -> np.ndarray:
    """The same with the chance taken into account that some of the K (K - 1) / 2 comparisons come out by luck: 1 - p
    of the one-sided maximum-t test (Westfall and Young's single step), of MANY candidates of Bonferroni's, [K, K]; 0
    where i is not above j."""
    t = (c.values[:, None] - c.values[None, :]) / np.sqrt(np.maximum(variances(c), 1e-300))
    return _adjusted(c, t, None if len(c.values) >= MANY else _simulate(c, seed))


def _adjusted(c: Contrasts, t: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """For t of any shape; `noise`: simulated errors, which MANY candidates do without."""
    k = len(c.values)
    if k >= MANY or noise is None:
        shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
        errors = np.sqrt(stats.chi2.ppf(shares, c.freedom) / c.freedom)  # common to all comparisons: the bound in each
        by_chance = np.minimum(1.0, k * (k - 1) * stats.norm.sf(t[..., None] * errors)).mean(-1)
        return np.where(t > 0, 1 - by_chance, 0.0)
    most = np.sort(_largest_t(noise, np.sqrt(np.maximum(variances(c), 1e-300))))
    return np.where(t > 0, np.searchsorted(most, t) / (1 + len(most)), 0.0)


@numba.njit(cache=True)
def _largest_t(noise, scale):
    """The largest (noise_i - noise_j) / scale_ij of every draw, [DRAWS, K] and [K, K] to [DRAWS].

    A candidate is compared with all others only where its distance from the furthest of them could exceed the largest
    found so far: of a thousand candidates a few are.
    """
    n, k = noise.shape
    most = np.zeros(n)
    least = np.empty(k)
    for i in range(k):
        least[i] = np.inf
        for j in range(k):
            if j != i and scale[i, j] < least[i]:
                least[i] = scale[i, j]
    for d in range(n):
        errors = noise[d]
        low, high = errors.argmin(), errors.argmax()
        if low == high:
            continue
        found = (errors[high] - errors[low]) / scale[high, low]
        for i in range(k):
            if (errors[i] - errors[low]) / least[i] > found:
                for j in range(k):
                    if j != i:
                        found = max(found, (errors[i] - errors[j]) / scale[i, j])
        most[d] = found
    return most


def p_best(c: Contrasts, seed: int = 0) -> np.ndarray:
    """P(a candidate is the most aligned of all), [K]; sums to 1."""
    return _best(c, _simulate(c, seed))


def _best(c: Contrasts, noise: np.ndarray) -> np.ndarray:
    return np.bincount((c.values + noise).argmax(1), minlength=len(c.values)) / len(noise)


def batches_to_separate(c: Contrasts) -> np.ndarray:
    """Batches per corpus (candidates and target alike) with which i and j would be told apart with a power of 80%,
    at 95% confidence divided among all K (K - 1) orders, if the present gap is the true one; float [K, K], inf for
    no gap."""
    k = len(c.values)
    first, second = np.divmod(np.arange(k * k), k)
    return _to_separate(c, first, second).reshape(k, k)


def _to_separate(c: Contrasts, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The same of some pairs, int [p] and [p] to [p]."""
    gaps = np.abs(c.values[first] - c.values[second])
    diagonal = np.diag(c.shared)
    of_target = diagonal[first] + diagonal[second] - 2 * c.shared[first, second]
    single = c.own * c.batches
    per_batch = single[first] + single[second] + of_target * c.target_batches
    orders = max(1, len(c.values) * (len(c.values) - 1))
    z = stats.norm.ppf(1 - (1 - CONFIDENCE) / orders) + stats.norm.ppf(POWER)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gaps > 0, np.ceil(z**2 * per_batch / gaps**2), np.inf)


def unsettled(c: Contrasts, looks: int, seed: int = 0) -> list[int]:
    """Candidates whose rank is not settled: an adjacent one in the ranking is not surely above or below. `looks`:
    how often the question is asked in all; the error of 5% is divided among them (Bonferroni), so that the chance of
    any wrong decision stays below 5%."""
    sure = p_above_adjusted(c, seed)
    order = np.argsort(-c.values)
    needed = 1 - (1 - CONFIDENCE) / looks
    open_pairs = [(i, j) for i, j in zip(order[:-1], order[1:], strict=True) if sure[i, j] < needed]
    return sorted({int(k) for pair in open_pairs for k in pair})


def ranking(names: Sequence[str], margins: Margins, lowest_first: bool = False) -> list[dict[str, Any]]:
    """Candidates from best to worst, as JSON values, from what the matrices of their batches with the target's come to.

    Each row: `candidate`, the mean with its interval, `p_best`; against the next one `p_above_next` (that it is
    better), 1 - p of a test of that, `adjusted` for all comparisons among the candidates, whether it is `settled` by
    it, and `separate`, the batches per corpus that would tell the two apart (None where the gap is 0). `lowest_first`:
    low values are good.
    """
    c = contrasts_of(margins.negative() if lowest_first else margins)
    noise = _simulate(c, 0)
    best, order = _best(c, noise), np.argsort(-c.values, kind="stable")
    first, second = order[:-1], order[1:]
    t, needed = np.zeros((2, len(order)))  # of each against the next one: of K^2 comparisons K are shown
    diagonal = np.diag(c.shared)
    spread = c.own[first] + c.own[second] + diagonal[first] + diagonal[second] - 2 * c.shared[first, second]
    t[first] = (c.values[first] - c.values[second]) / np.sqrt(np.maximum(spread, 1e-300))
    needed[first] = _to_separate(c, first, second)
    above, adjusted = stats.t.cdf(t, c.freedom), _adjusted(c, t, noise)
    estimates = margins.estimates()
    result = []
    for i in order.tolist():
        row = {"candidate": names[i], **dataclasses.asdict(estimate(estimates[i])), "p_best": float(best[i])}
        last = i == order[-1]
        row |= {key: None if last else float(p[i]) for key, p in (("p_above_next", above), ("adjusted", adjusted))}
        row["settled"] = None if last else bool(adjusted[i] >= CONFIDENCE)
        row["separate"] = None if last or np.isinf(needed[i]) else int(needed[i])
        result.append(row)
    return result


def looks_of(first: int, most: int) -> list[int]:
    """Batches after every look of a sequential study: doubled from `first` up to `most`."""
    steps = [first * 2**k for k in range(max(0, math.ceil(math.log2(most / first))))] if most > first else []
    return [*steps, most]


def _simulate(c: Contrasts, seed: int) -> np.ndarray:
    """Errors of the K alignments, multivariate t, float64 [draws, K].

    Of MANY candidates without their covariance, K^3 to take apart: as a sum of what the target's batches give, of rank
    m - 1, and what each candidate's own do.
    """
    generator, k = np.random.default_rng(seed), len(c.own)
    if k < MANY:
        covariance = np.diag(c.own) + c.shared
        normal = generator.multivariate_normal(np.zeros(k), covariance, size=DRAWS, method="eigh")
        return normal / np.sqrt(generator.chisquare(c.freedom, size=(DRAWS, 1)) / c.freedom)
    normal = generator.standard_normal((FEWER_DRAWS, k)) * np.sqrt(c.own)
    normal += generator.standard_normal((FEWER_DRAWS, c.root.shape[1])) @ c.root.T
    return normal / np.sqrt(generator.chisquare(c.freedom, size=(FEWER_DRAWS, 1)) / c.freedom)

"""How well scores of (candidate, target) pairs predict the losses after training: statistics that pooling cannot fool.

Correlating all pairs at once mixes targets of different intrinsic entropy: a score that only tells easy targets from
hard ones looks good (method 2.1: the paper's pooled r^2 of 0.837 is 0.06 without its three in-domain evaluation sets).
Here candidates are compared within a target, and intervals resample targets, which are the independent units.

K candidates, M targets; scores are oriented so that higher predicts a lower loss; NaN in a loss leaves the pair out.
"""

import dataclasses

import numpy as np
from scipy import stats

RESAMPLES = 10_000
FEWEST = 3
"""Candidates that a target must have to be ranked."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95% percentile bootstrap interval over targets."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a score is worth. All correlations are with minus the loss: 1 is perfect, 0 is chance."""

    spearman: Interval
    """Mean over targets of the rank correlation over candidates."""
    pearson: Interval
    """Mean over targets of the linear correlation over candidates."""
    regret: Interval
    """Mean over targets of the loss of the score's pick minus the best loss, nats per token."""
    centred: Interval
    """Linear correlation after removing candidate and target means from both sides: what is specific to the pair."""
    pooled_r2: float
    """r^2 over all pairs at once: the paper's statistic, for comparison alone."""
    by_target: list[float]
    """Rank correlation of every target."""


def quality(scores: np.ndarray, losses: np.ndarray, seed: int = 0) -> Quality:
    """`scores`, `losses`: float64 [K, M]. Targets with fewer than FEWEST pairs do not count; one must be left."""
    targets = [t for t in range(losses.shape[1]) if np.isfinite(losses[:, t]).sum() >= FEWEST]
    ranks = np.array([_within(stats.spearmanr, scores[:, t], losses[:, t]) for t in targets])
    linear = np.array([_within(stats.pearsonr, scores[:, t], losses[:, t]) for t in targets])
    regrets = np.array([_regret(scores[:, t], losses[:, t]) for t in targets])
    products = _centred_products(scores[:, targets], losses[:, targets])
    known = np.isfinite(losses)
    draws = np.random.default_rng(seed).integers(len(targets), size=(RESAMPLES, len(targets)))
    return Quality(
        _bootstrap(ranks, draws),
        _bootstrap(linear, draws),
        _bootstrap(regrets, draws),
        _interval(float(_correlation(products.sum(0))), _correlation(products[draws].sum(1))),
        float(_safe(stats.pearsonr, scores[known], losses[known]) ** 2),
        ranks.tolist(),
    )


def difference(by_target: list[float], other: list[float], seed: int = 0) -> dict[str, float]:
    """Paired comparison of two scores' rank correlations over the same targets: mean difference, bootstrap interval,
    and the p value of a sign-flip test (two-sided)."""
    gaps = np.array(by_target) - np.array(other)
    random = np.random.default_rng(seed)
    found = _bootstrap(gaps, random.integers(len(gaps), size=(RESAMPLES, len(gaps))))
    flipped = (random.choice([-1.0, 1.0], size=(RESAMPLES, len(gaps))) * gaps).mean(1)
    p = (1 + (np.abs(flipped) >= abs(gaps.mean()) - 1e-12).sum()) / (1 + RESAMPLES)
    return {**dataclasses.asdict(found), "p": float(p)}


def reliability(losses: np.ndarray) -> float:
    """The rank correlation within a target that the losses of one seed reach with the mean of the others' (mean over
    seeds and targets): no score can be expected to do much better. `losses`: [K, M, S]."""
    seeds = range(losses.shape[2])
    values = [
        _safe(stats.spearmanr, losses[keep, t, s], np.delete(losses, s, axis=2)[keep, t].mean(-1))
        for t in range(losses.shape[1])
        for s in seeds
        if (keep := np.isfinite(losses[:, t, 0])).sum() >= FEWEST
    ]
    return float(np.mean(values))


def _within(correlate, scores: np.ndarray, losses: np.ndarray) -> float:
    known = np.isfinite(losses)
    return _safe(correlate, scores[known], -losses[known])


def _safe(correlate, x: np.ndarray, y: np.ndarray) -> float:
    """A correlation; 0 where one side is constant: it predicts nothing."""
    return float(correlate(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def _regret(scores: np.ndarray, losses: np.ndarray) -> float:
    known = np.isfinite(losses)
    return float(losses[known][np.argmax(scores[known])] - losses[known].min())


def _centred_products(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Sums over candidates of xx, yy and xy of both sides' residuals, [M, 3], one row a target."""
    known = np.isfinite(losses)
    x, y = _residuals(scores, known), -_residuals(losses, known)
    return np.stack([(x * x).sum(0), (y * y).sum(0), (x * y).sum(0)], axis=-1)


def _residuals(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What candidate and target means (a two-way additive fit over the known pairs) leave; 0 at unknown pairs."""
    k, m = values.shape
    rows, columns = np.nonzero(known)
    design = np.zeros((len(rows), k + m))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), k + columns] = 1
    fit = np.linalg.lstsq(design, values[known], rcond=None)[0]
    result = np.zeros_like(values, dtype=np.float64)
    result[known] = values[known] - design @ fit
    return result


def _correlation(products: np.ndarray) -> np.ndarray:
    xx, yy, xy = products[..., 0], products[..., 1], products[..., 2]
    return xy / np.sqrt(np.maximum(xx * yy, 1e-300))


def _bootstrap(values: np.ndarray, draws: np.ndarray) -> Interval:
    return _interval(values.mean(), values[draws].mean(1))


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))

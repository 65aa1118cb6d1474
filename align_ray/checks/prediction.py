"""How well scores of (candidate, target) pairs predict the losses after training: statistics that pooling cannot fool.

Correlating all pairs at once mixes targets of different intrinsic entropy: a score that only tells easy targets from
hard ones looks good (method 2.1: the paper's pooled r^2 of 0.837 is 0.06 without its three in-domain evaluation sets).
Here candidates are compared within a target. Intervals resample candidates *and* targets: a measure that errs on a
candidate errs on it for all targets, so that targets alone are no independent units (docs/coverage.md).

K candidates, M targets; scores are oriented so that higher predicts a lower loss; NaN in a loss leaves the pair out.
"""

import dataclasses

import numpy as np
from scipy import stats

RESAMPLES = 2000
FEWEST = 3
"""Candidates that a target must have to be ranked."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95% percentile bootstrap interval over candidates and targets."""

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
    scores, losses = _ranked_targets(scores, losses)
    draws, known = _draws(losses.shape, seed), np.isfinite(losses)
    products = _centred_products(scores, losses)
    centred = np.einsum("bk,kmp,bm->bp", draws.candidates, products, draws.targets)
    ranks = _rank_correlations(scores, losses)
    return Quality(
        _interval(ranks.mean(), _resampled(_rank_correlations, scores, losses, draws)),
        _interval(_linear_correlations(scores, losses).mean(), _resampled(_linear_correlations, scores, losses, draws)),
        _interval(_regrets(scores, losses).mean(), _resampled(_regrets, scores, losses, draws)),
        _interval(float(_correlation(products.sum((0, 1)))), _correlation(centred)),
        float(_safe(stats.pearsonr, scores[known], losses[known]) ** 2),
        ranks.ravel().tolist(),
    )


def difference(scores: np.ndarray, others: np.ndarray, losses: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Two measures' rank correlations with the same losses: the mean difference over targets, its interval over
    candidates and targets, and `p`: twice the share of resamples on the other side of 0."""
    (scores, kept), (others, _) = _ranked_targets(scores, losses), _ranked_targets(others, losses)
    draws = _draws(kept.shape, seed)
    gap = _rank_correlations(scores, kept).mean() - _rank_correlations(others, kept).mean()
    resampled = _resampled(_rank_correlations, scores, kept, draws) - _resampled(
        _rank_correlations, others, kept, draws
    )
    side = min((resampled <= 0).mean(), (resampled >= 0).mean())
    p = min(1.0, 2 * max(side, 1 / RESAMPLES))
    return {**dataclasses.asdict(_interval(gap, resampled)), "p": float(p)}


@dataclasses.dataclass(frozen=True)
class _Draws:
    """How often every candidate [B, K] and target [B, M] is in every resample."""

    candidates: np.ndarray
    targets: np.ndarray


def _draws(shape: tuple[int, int], seed: int) -> _Draws:
    rng = np.random.default_rng(seed)
    return _Draws(*(rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float) for n in shape))


def _ranked_targets(scores: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.isfinite(losses).sum(0) >= FEWEST
    return scores[:, kept], losses[:, kept]


def _resampled(statistic, scores: np.ndarray, losses: np.ndarray, draws: _Draws) -> np.ndarray:
    """Mean over the resampled targets of a statistic of the resampled candidates, float64 [B]; a target of which only
    one candidate is left in a resample does not count in it."""
    known = np.isfinite(losses)
    different = (draws.candidates > 0).astype(float) @ known >= 2
    weights = draws.targets * different
    values = statistic(scores, losses, draws.candidates)
    return (values * weights).sum(1) / np.maximum(weights.sum(1), 1)


def _rank_correlations(scores: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Rank correlation of every target, float64 [B, M]; `weights` [B, K]: how often each candidate is there."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    return _by_target(lambda x, y, w: _weighted(_ranks(x, w), _ranks(-y, w), w), scores, losses, weights)


def _linear_correlations(scores: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The same of linear correlations."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    return _by_target(
        lambda x, y, w: _weighted(np.broadcast_to(x, w.shape), np.broadcast_to(-y, w.shape), w), scores, losses, weights
    )


def _regrets(scores: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The same of the pick's loss less the best one's."""
    weights = np.ones((1, len(scores))) if weights is None else weights

    def regret(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        there = w > 0
        pick = np.where(there, x, -np.inf).argmax(1)
        return np.where(there.any(1), y[pick] - np.where(there, y, np.inf).min(1, initial=np.inf), 0.0)

    return _by_target(regret, scores, losses, weights)


def _by_target(statistic, scores: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    columns = []
    for x, y in zip(scores.T, losses.T, strict=True):
        known = np.isfinite(y)
        columns.append(statistic(x[known], y[known], weights[:, known]))
    return np.stack(columns, axis=1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of [n] values that are there `weights` [B, n] times, float64 [B, n]."""
    below = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
    return weights @ below.T


def _weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Linear correlation [B] of [B, n] values that are there `weights` times; 0 where one side is constant."""
    total = np.maximum(weights.sum(1, keepdims=True), 1)
    x, y = x - (weights * x).sum(1, keepdims=True) / total, y - (weights * y).sum(1, keepdims=True) / total
    xx, yy, xy = ((weights * a * b).sum(1) for a, b in ((x, x), (y, y), (x, y)))
    sound = (xx > 1e-12 * total[:, 0]) & (yy > 1e-12 * total[:, 0])
    return np.where(sound, xy / np.sqrt(np.where(sound, xx * yy, 1.0)), 0.0)


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


def _safe(correlate, x: np.ndarray, y: np.ndarray) -> float:
    """A correlation; 0 where one side is constant: it predicts nothing."""
    return float(correlate(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def _centred_products(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """xx, yy and xy of both sides' residuals, [K, M, 3]."""
    known = np.isfinite(losses)
    x, y = _residuals(scores, known), -_residuals(losses, known)
    return np.stack([x * x, y * y, x * y], axis=-1)


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


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))

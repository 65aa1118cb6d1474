"""Alignment and diversity coefficients with intervals over batches.

align(S, T) = 1 - E[d(f_Bs, f_Bt)] over pairs of batches, div(S) = E[d] over distinct batches of S (arXiv 2501.08496,
section 2 there; method A.4). The n * m distances come from n + m batches, so that batches are the independent units:
intervals are t intervals with the jackknife variance of the two-sample (or one-sample) U-statistic.
"""

import dataclasses

import numpy as np
from scipy import stats

from align_ray.similarity import distance_matrix, scaled_cosine_distance
from align_ray.store import Unit


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its standard error and 95% interval."""

    value: float
    error: float
    low: float
    high: float


def interval(value: float, variance: float, freedom: float) -> Estimate:
    """95% t interval of a value with the given variance and degrees of freedom (at least 1)."""
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf(0.975, max(1.0, freedom))) * error
    return Estimate(float(value), error, float(value) - half, float(value) + half)


def two_sample_mean(values: np.ndarray) -> Estimate:
    """Mean of a matrix [n, m] whose rows and columns are the independent units (Hajek projection, Satterthwaite)."""
    n, m = values.shape
    parts = [values.mean(1).var(ddof=1) / n, values.mean(0).var(ddof=1) / m]
    total = sum(parts)
    freedom = total**2 / max(parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1), 1e-300)
    return interval(values.mean(), total, freedom)


def one_sample_mean(values: np.ndarray) -> Estimate:
    """Mean of the off-diagonal of a symmetric matrix [n, n], n >= 2 units; the jackknife needs n >= 3."""
    n = len(values)
    off = values.sum() - np.trace(values)
    mean = off / (n * (n - 1))
    if n < 3:
        return Estimate(float(mean), float("nan"), float("nan"), float("nan"))
    rows = values.sum(1) - np.diag(values)
    without = (off - 2 * rows) / ((n - 1) * (n - 2))
    return interval(mean, (n - 1) / n * ((without - without.mean()) ** 2).sum(), n - 1)


def alignment(source: np.ndarray, target: np.ndarray) -> Estimate:
    """align(S, T), pairwise form, from batch embeddings [n, D] and [m, D]."""
    return two_sample_mean(1 - distance_matrix(source, target))


def diversity(source: np.ndarray) -> Estimate:
    """div(S) from batch embeddings [n, D]."""
    return one_sample_mean(distance_matrix(source, source))


def pooled_alignment(source: np.ndarray, target: np.ndarray) -> Estimate:
    """1 - d of the mean embeddings (pooled form), with a delete-one-batch jackknife over both sides."""
    value = 1 - scaled_cosine_distance(source.mean(0), target.mean(0))
    parts, freedom = [], []
    for mine, other in ((source, target), (target, source)):
        n = len(mine)
        without = 1 - scaled_cosine_distance((mine.sum(0) - mine) / (n - 1), other.mean(0))
        parts.append((n - 1) / n * ((without - without.mean()) ** 2).sum())
        freedom.append(n - 1)
    total = sum(parts)
    satterthwaite = total**2 / max(sum(p**2 / f for p, f in zip(parts, freedom, strict=True)), 1e-300)
    return interval(float(value), total, satterthwaite)


def more_aligned(a: np.ndarray, b: np.ndarray, target: np.ndarray) -> float:
    """P(A is more aligned with T than B), one-sided: the target's batches are shared, so their noise largely cancels."""
    da, db = 1 - distance_matrix(a, target), 1 - distance_matrix(b, target)
    by_target = da.mean(0) - db.mean(0)
    variance = da.mean(1).var(ddof=1) / len(a) + db.mean(1).var(ddof=1) / len(b) + by_target.var(ddof=1) / len(target)
    freedom = min(len(a), len(b), len(target)) - 1
    return float(stats.t.cdf(by_target.mean() / max(np.sqrt(variance), 1e-300), freedom))


def noise_floor(units: list[Unit]) -> Estimate:
    """d between the same batches under new labels, at the R draws the embeddings are made of.

    One draw against another gives d1 = v/(1+v); R draws averaged divide the relative variance v by R.
    """
    draws = len(units[0].trunk)
    single = np.array([scaled_cosine_distance(u.trunk[0], u.trunk[1]) for u in units])
    v = single / np.maximum(1 - single, 1e-12)
    floors = (v / draws) / (1 + v / draws)
    return interval(floors.mean(), floors.var(ddof=1) / len(floors), len(floors) - 1)


def trunk_matrix(units: list[Unit]) -> np.ndarray:
    """Batch embeddings [n, D]: float64 means over the label draws."""
    return np.stack([u.trunk.mean(0, dtype=np.float64) for u in units])


def align_corpora(embeddings: dict[str, list[Unit]], targets: list[str]) -> dict:
    """Everything the report shows of alignment, as a JSON value.

    `matrix[a][b]`: Estimate for all pairs of corpora, 1 - div on the diagonal; `ranking[target]`: candidates from most to
    least aligned, each with `p_above_next`; `noise_floor` and `diversity` by corpus; `loss`: the probe's nats per token.
    """
    trunks = {name: trunk_matrix(units) for name, units in embeddings.items()}
    names = list(trunks)
    candidates = [n for n in names if n not in targets]
    matrix: dict[str, dict[str, dict]] = {n: {} for n in names}
    diversities = {n: diversity(trunks[n]) for n in names}
    for i, a in enumerate(names):
        own = diversities[a]
        matrix[a][a] = dataclasses.asdict(Estimate(1 - own.value, own.error, 1 - own.high, 1 - own.low))
        for b in names[i + 1 :]:
            matrix[a][b] = matrix[b][a] = dataclasses.asdict(alignment(trunks[a], trunks[b]))
    ranking = {}
    for target in targets:
        ordered = sorted(candidates, key=lambda c: -matrix[c][target]["value"])
        ranking[target] = [
            {
                "candidate": c,
                **matrix[c][target],
                "pooled": dataclasses.asdict(pooled_alignment(trunks[c], trunks[target])),
                "p_above_next": more_aligned(trunks[c], trunks[following], trunks[target]) if following else None,
            }
            for c, following in zip(ordered, [*ordered[1:], None], strict=True)
        ]
    return {
        "targets": targets,
        "candidates": candidates,
        "matrix": matrix,
        "ranking": ranking,
        "diversity": {n: dataclasses.asdict(d) for n, d in diversities.items()},
        "noise_floor": {n: dataclasses.asdict(noise_floor(units)) for n, units in embeddings.items()},
        "loss": {n: float(np.mean([u.loss for u in units])) for n, units in embeddings.items()},
    }

"""Estimates with intervals: means of matrices whose rows and columns are the independent units."""

import dataclasses

import numpy as np
from scipy import stats


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
    return interval(values.mean(), *_two_sample_variance(values))


def p_mean_negative(values: np.ndarray) -> float:
    """Probability that the true mean of such a matrix lies below 0 (t distribution)."""
    variance, freedom = _two_sample_variance(values)
    if not variance > 0:
        return float(values.mean() < 0)
    return float(stats.t.cdf(-values.mean() / np.sqrt(variance), max(1.0, freedom)))


def _two_sample_variance(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom."""
    n, m = values.shape
    parts = [values.mean(1).var(ddof=1) / n, values.mean(0).var(ddof=1) / m]
    total = sum(parts)
    return total, total**2 / max(parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1), 1e-300)


def combined_mean(values: list[np.ndarray], share: np.ndarray) -> tuple[Estimate, float]:
    """Mean over targets by `share` of losses [seeds, sequences] each, and the probability that it is negative.

    The targets are measured on the same trainings: the seeds' effect is common to them, the sequences' is each target's
    own.
    """
    by_seed = sum(s * v.mean(1) for s, v in zip(share, values, strict=True))
    n = len(by_seed)
    parts = [(by_seed.var(ddof=1) / n, n - 1)]
    parts += [(s**2 * v.mean(0).var(ddof=1) / v.shape[1], v.shape[1] - 1) for s, v in zip(share, values, strict=True)]
    total = sum(part for part, _ in parts)
    freedom = max(1.0, total**2 / max(sum(part**2 / f for part, f in parts), 1e-300))
    mean = float(by_seed.mean())
    certain = 0.5 if mean == 0 else float(mean < 0)
    p = certain if total == 0 else float(stats.t.cdf(-mean / np.sqrt(total), freedom))  # NaN where a loss is
    return interval(mean, total, freedom), p


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

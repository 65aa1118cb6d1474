"""From runs to a mixture: surrogates of the loss as a function of the weights, judged by cross-validation.

`log-linear`: the mixing law c + exp(b + t w) of every metric (Ye et al. 2024; the regression of Olmix); `ridge`: on
sqrt(w); `lightgbm`: gradient-boosted trees (RegMix, Liu et al. 2024). Runs may carry content coordinates beside the
weights.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import least_squares

from align_ray.errors import ConfigError
from align_ray.mixture.objectives import Objective

Predict = Callable[[np.ndarray], np.ndarray]
"""Weights [n, K] to one metric [n]."""

MANY_RUNS = 200
"""Runs above which trees are the default."""
FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge penalties tried, by leave-one-out error, in the unit of the features' variance."""
TREES = {
    "n_estimators": 300,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_child_samples": 5,
    "verbose": -1,
    "n_jobs": 1,
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """n runs: weights float64 [n, K] that sum to 1, metrics [n, M], their names, and the run ids."""

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    weights: np.ndarray
    metrics: dict[str, np.ndarray]
    renormalised: int
    """Rows whose weights did not sum to 1 within 0.1%."""


def read_runs(mixtures: Path, metrics: Path) -> Runs:
    """The two-table format of RegMix and Olmix: the first column of each file names the run, each further column is
    a domain's weight or a metric. Rows are matched by run and weights renormalised. Raises ConfigError naming file
    and column."""
    ratios, results = _table(mixtures), _table(metrics)
    common = ratios.index[ratios.index.isin(results.index)]
    if len(common) < 2 * FOLDS:
        raise ConfigError(
            f"{mixtures} and {metrics} have {len(common)} runs in common; at least {2 * FOLDS} are needed: the first "
            "column of "
            "both must hold the same run ids."
        )
    weights = np.ascontiguousarray(ratios.loc[common])  # a row beside a row: sums have one order
    sums = weights.sum(1)
    bad = (weights < 0).any(1) | (sums <= 0)
    if bad.any():
        raise ConfigError(
            f"{mixtures}: run '{common[bad.argmax()]}' has a negative weight or none; weights must be shares of tokens."
        )
    values = results.loc[common]
    return Runs(
        tuple(common),
        tuple(ratios.columns),
        weights / sums[:, None],
        {str(name): column.to_numpy() for name, column in values.items()},
        int((np.abs(sums - 1) > 1e-3).sum()),
    )


def _table(path: Path) -> pd.DataFrame:
    """Finite numbers, a row a run; cells are read as text, so that what is no number can be named."""
    longer: list[list[str]] = []  # rows with more fields than the header
    try:
        cells = pd.read_csv(
            path, dtype=str, keep_default_na=False, index_col=False, engine="python", on_bad_lines=longer.append
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable table ({error}); give a CSV file with a header.") from None
    run, *columns = cells.columns
    if not columns:
        raise ConfigError(f"{path}: only the column '{run}'; give the run ids first, then a column a domain or metric.")
    shorter = cells[cells[columns[-1]].isna()].values.tolist()
    for row in longer + [[cell for cell in row if isinstance(cell, str)] for row in shorter]:
        fields = f"{len(row)} fields, the header {len(cells.columns)}"
        raise ConfigError(f"{path}: run '{row[0]}' has {fields}; fix the row.")
    numbers = cells.set_index(run).apply(pd.to_numeric, errors="coerce")
    if numbers.index.has_duplicates:
        twice = numbers.index[numbers.index.duplicated()][0]
        raise ConfigError(f"{path}: run '{twice}' is there twice; give every run its own id.")
    unusable = np.argwhere(~np.isfinite(numbers.to_numpy(dtype=float)))
    if len(unusable):
        row, column = unusable[0]
        raise ConfigError(
            f"{path}: column '{columns[column]}' of run '{numbers.index[row]}' is not a finite number; fix it or "
            "leave the "
            "run out."
        )
    return numbers.astype(float)


def fit_log_linear(weights: np.ndarray, metric: np.ndarray) -> "LogLinear":
    """c + exp(b + t w), t <= 0 not asked for, by robust least squares from several starts of c."""
    spread, low = max(np.ptp(metric), 1e-9), metric.min()
    scale, k = spread / 10, weights.shape[1]

    def residuals(x: np.ndarray) -> np.ndarray:
        law = x[0] + np.exp(np.clip(x[1] + weights @ x[2:], -30, 30))
        # a light pull of the slopes to their mean: weights sum to 1, so a common shift of slopes is b's
        return np.r_[(law - metric) / scale, 1e-2 * (x[2:] - x[2:].mean())]

    def jacobian(x: np.ndarray) -> np.ndarray:
        growth = np.exp(np.clip(x[1] + weights @ x[2:], -30, 30))[:, None]
        rows = np.c_[np.ones(len(weights)), growth, growth * weights] / scale
        return np.r_[rows, np.c_[np.zeros((k, 2)), 1e-2 * (np.eye(k) - 1 / k)]]

    fits = []
    for start in (0.1, 0.5, 2.0):
        offset = low - start * spread
        design = np.c_[np.ones(len(weights)), weights]
        slope = np.linalg.solve(design.T @ design + 1e-3 * np.eye(k + 1), design.T @ np.log(metric - offset))
        fits.append(least_squares(residuals, np.r_[offset, slope], jac=jacobian, loss="soft_l1", max_nfev=300))
    best = min(fits, key=lambda fit: fit.cost)
    return LogLinear(float(best.x[0]), float(best.x[1]), best.x[2:])


@dataclasses.dataclass(frozen=True)
class LogLinear:
    """The mixing law c + exp(b + t w); convex in w."""

    c: float
    b: float
    t: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        return self.c + np.exp(self.b + weights @ self.t)

    def objective(self) -> Objective:
        """Minus the law, for the solver."""

        def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            growth = np.exp(self.b + w @ self.t)
            return float(-self.c - growth), -growth * self.t

        return Objective(lambda w: -self(w), gradient)


def fit_ridge(weights: np.ndarray, metric: np.ndarray) -> Predict:
    """Ridge regression on sqrt(w), the penalty chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    features = _root(weights)
    model = RidgeCV(np.array(PENALTIES) * features.var(0).mean() * len(features)).fit(features, metric)
    return lambda w: model.predict(_root(w))


def _root(features: np.ndarray) -> np.ndarray:
    """Square root with the sign kept: content coordinates may be negative."""
    return np.sign(features) * np.sqrt(np.abs(features))


def fit_lightgbm(weights: np.ndarray, metric: np.ndarray) -> Predict:
    """Gradient-boosted trees, as RegMix uses them."""
    import lightgbm

    model = lightgbm.LGBMRegressor(**TREES).fit(weights, metric)
    return lambda w: model.predict(w)


SURROGATES: dict[str, Callable[[np.ndarray, np.ndarray], Predict]] = {
    "log-linear": fit_log_linear,
    "ridge": fit_ridge,
    "lightgbm": fit_lightgbm,
}


def default_surrogate(runs: int) -> str:
    """`log-linear`, which needs few runs; `lightgbm` above MANY_RUNS."""
    return "lightgbm" if runs > MANY_RUNS else "log-linear"


def cross_validated(weights: np.ndarray, metric: np.ndarray, kind: str, seed: int = 0) -> float:
    """Spearman correlation of the metric with predictions of runs that were left out (FOLDS folds)."""
    from sklearn.model_selection import PredefinedSplit

    order = np.random.default_rng(seed).permutation(len(metric))
    predicted = np.empty(len(metric))
    for kept, out in PredefinedSplit(np.argsort(order) % FOLDS).split():
        predicted[out] = SURROGATES[kind](weights[kept], metric[kept])(weights[out])
    return float(stats.spearmanr(predicted, metric).statistic)

"""From runs to a mixture: surrogates of the loss as a function of the weights, judged by cross-validation.

`log-linear`: the mixing law c + exp(b + t w) of every metric (Ye et al. 2024; the regression of Olmix); `ridge`: on
sqrt(w); `lightgbm`: gradient-boosted trees (RegMix, Liu et al. 2024). Runs may carry content coordinates beside the
weights.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import stats
from scipy.optimize import least_squares

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

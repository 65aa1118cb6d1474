"""What is known of a mixture that a solver calls the best: how far from it the best can be, and what each bound costs.

At w the objective A is replaced by its tangent, the least of the targets' tangents for the worst target, while the
prior's penalty is kept as it is. The best of that over all feasible mixtures is above the best F for a concave A. The
penalty has a closed form there; its own tangent has none where a weight is zero, since the slope of x log x is infinite
at 0.
"""

import dataclasses

import numpy as np
from scipy.optimize import brentq, linprog, minimize
from scipy.special import xlogy

from align_ray.mixture.constraints import Constraints, only_mixture

BINDS = 1e-6
"""A weight this close to a bound is held by it."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of a mixture [K]."""

    gap: float
    """KKT residual: no feasible mixture is better by more to first order; for a concave objective, none is at all."""
    shadow: np.ndarray
    """[K] gain of F per unit of a corpus' upper bound, at least 0; 0 where it does not bind."""
    price: np.ndarray
    """[K] loss of F per unit of a lower bound, at least 0."""


def certify(
    values: np.ndarray, slopes: np.ndarray, w: np.ndarray, constraints: Constraints, strength: float
) -> Certificate:
    """The certificate of the mixture w [K], float64, under the bounds (`constraints.most` aside) and the penalty
    strength * KL(w, prior).

    `values` [n] and `slopes` [n, K] at w: of one objective, or of every target where the worst is the goal.
    """
    if only_mixture(constraints) is not None:
        return _of_the_only_one(
            slopes[int(np.argmin(values))] - strength * _penalty_slope(w, constraints), w, constraints
        )
    if strength == 0:
        return _by_linear_programme(values, slopes, w, constraints)
    share = _shares(values, slopes, w, constraints, strength)
    bound, level = _best_of_tangent(share @ slopes, constraints, strength)
    gap = share @ (values - slopes @ w) + bound - (values.min() - strength * _divergence(w, constraints))
    slope = share @ slopes - strength * _penalty_slope(w, constraints)
    return Certificate(max(0.0, float(gap)), *_prices(slope, level, level, w, constraints))


def _by_linear_programme(
    values: np.ndarray, slopes: np.ndarray, w: np.ndarray, constraints: Constraints
) -> Certificate:
    """max t with t <= A_m + g_m (v - w) over feasible v; the prices are its multipliers."""
    k = len(w)
    found = linprog(
        np.r_[np.zeros(k), -1.0],
        A_ub=np.c_[-slopes, np.ones(len(slopes))],
        b_ub=values - slopes @ w,
        A_eq=np.r_[np.ones(k), 0.0][None],
        b_eq=[1.0],
        bounds=[*zip(constraints.lower, constraints.upper, strict=True), (None, None)],
    )
    binds, held = w > constraints.upper - BINDS, w < constraints.lower + BINDS
    shadow = np.where(binds, -found.upper.marginals[:k], 0.0)
    price = np.where(held, found.lower.marginals[:k], 0.0)
    return Certificate(max(0.0, float(-found.fun - values.min())), np.maximum(shadow, 0), np.maximum(price, 0))


def _of_the_only_one(slope: np.ndarray, w: np.ndarray, constraints: Constraints) -> Certificate:
    """Nothing else is feasible. A bound that moves lets weight go to or from the corpus that its own bounds let
    move."""
    movable = constraints.upper > constraints.lower
    if not movable.any():
        return Certificate(0.0, np.zeros(len(w)), np.zeros(len(w)))
    return Certificate(0.0, *_prices(slope, slope[movable].min(), slope[movable].max(), w, constraints))


def _prices(
    slope: np.ndarray, least: float, most: float, w: np.ndarray, constraints: Constraints
) -> tuple[np.ndarray, np.ndarray]:
    """`shadow` and `price` [K] from F's slope [K] and what a unit of weight is worth elsewhere: given up, and
    gained."""
    binds, held = w > constraints.upper - BINDS, (w < constraints.lower + BINDS) & (constraints.lower > 0)
    shadow, price = np.where(binds & (w > 0), slope - least, 0.0), np.where(held, most - slope, 0.0)
    return np.maximum(shadow, 0), np.maximum(price, 0)


def _shares(
    values: np.ndarray, slopes: np.ndarray, w: np.ndarray, constraints: Constraints, strength: float
) -> np.ndarray:
    """Weights [n] of the tangents, sum 1, at which their sum bounds F most tightly; any bound it."""
    n = len(values)
    if n == 1:
        return np.ones(1)
    heights = values - slopes @ w

    def bound(share: np.ndarray) -> tuple[float, np.ndarray]:
        top, level = _best_of_tangent(share @ slopes, constraints, strength)
        return float(share @ heights + top), heights + slopes @ _at_level(level, share @ slopes, constraints, strength)

    one = {"type": "eq", "fun": lambda share: share.sum() - 1, "jac": np.ones_like}
    found = minimize(
        bound,
        np.full(n, 1 / n),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints=[one],
        options={"ftol": 1e-15},
    )
    share = np.clip(found.x, 0, None)
    return share / share.sum()


def _best_of_tangent(slope: np.ndarray, constraints: Constraints, strength: float) -> tuple[float, float]:
    """The largest slope @ v - strength * KL(v, prior) of a feasible v, by its dual, and the multiplier of the sum of
    weights.

    The dual bounds it whatever the multiplier; so rounding can only make it larger.
    """
    inside = constraints.upper > 0
    log_prior = _log_prior(constraints)
    low = (slope - strength * (np.log(np.where(inside, constraints.upper, 1.0)) - log_prior + 1))[inside].min()
    high = (slope + strength * (log_prior - 1 + 40))[inside].max()

    def excess(level: float) -> float:
        return float(_at_level(level, slope, constraints, strength).sum() - 1)

    scale = max(abs(low), abs(high), 1e-300)
    level = brentq(excess, low - 1e-9 * scale, high, xtol=1e-15 * scale)
    v = _at_level(level, slope, constraints, strength)
    return float(level + (slope - level) @ v - strength * _divergence(v, constraints)), level


def _at_level(level: float, slope: np.ndarray, constraints: Constraints, strength: float) -> np.ndarray:
    """The v [K] within the bounds that maximises (slope - level) @ v - strength * KL(v, prior)."""
    exponent = _log_prior(constraints) - 1 + (slope - level) / strength
    return np.clip(np.exp(np.clip(exponent, -700, 700)), constraints.lower, constraints.upper)


def _log_prior(constraints: Constraints) -> np.ndarray:
    return np.log(np.maximum(constraints.prior, 1e-9))


def _divergence(w: np.ndarray, constraints: Constraints) -> float:
    return float((xlogy(w, w) - w * _log_prior(constraints)).sum())


def _penalty_slope(w: np.ndarray, constraints: Constraints) -> np.ndarray:
    """The gradient of KL(w, prior), [K]; 0 where a weight is zero, for no bound holds it there and it has no price."""
    return np.where(w > 0, np.log(np.maximum(w, 1e-300)) - _log_prior(constraints) + 1, 0.0)

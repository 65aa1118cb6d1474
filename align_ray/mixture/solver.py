"""The best mixture under constraints, in closed form: no model, no training, seconds.

Maximised is F(w) = sum_m c_m A_m(w) - strength * KL(w, prior), or the worst target's A_m in place of the sum. Beside the
optimum: how far it can be from the true one, what each constraint costs, and the middle of all mixtures that are as good
within one standard error.
"""

import dataclasses

import numpy as np
from scipy.optimize import linprog, minimize

from align_ray.mixture.constraints import Constraints, from_unit_cube, nearest, restricted, support
from align_ray.mixture.objectives import Objective

CHAINS = 32
"""Walkers of the near-optimal set."""
PRESENT = 1e-4
"""A corpus with less weight counts as left out."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """The objectives of M targets; `weights` [M] sum to 1, or None for the worst target."""

    objectives: list[Objective]
    weights: np.ndarray | None

    def values(self, w: np.ndarray) -> np.ndarray:
        """Of many mixtures, [n, K] to [n], without the prior's penalty."""
        by_target = np.stack([o.values(w) for o in self.objectives])
        return by_target.min(0) if self.weights is None else self.weights @ by_target


@dataclasses.dataclass(frozen=True)
class Optimum:
    """A solution and what is known of it."""

    weights: np.ndarray
    """[K]."""
    value: float
    """The goal's, without the prior's penalty."""
    penalised: float
    """With it: what is maximised."""
    gap: float
    """KKT residual: no feasible mixture is better by more to first order; for a concave objective, none is at all."""
    shadow: np.ndarray
    """[K] gain of F per unit of a corpus' upper bound, at least 0; 0 where it does not bind."""
    price: np.ndarray
    """[K] loss of F per unit of a lower bound, at least 0."""


def solve(goal: Goal, limits: Constraints, start: np.ndarray | None = None) -> Optimum:
    """Maximise F over the constraints by sequential least squares with exact gradients.

    Starts: the prior, uniform, and the best corpus (as far as feasible); or `start` alone. `max_corpora` is met by leaving
    out the corpora with least weight, half of what is too many at a time.
    """
    k = len(limits.names)
    starts = [nearest(start, limits)] if start is not None else [nearest(limits.prior, limits), nearest(np.ones(k), limits)]
    if start is None:
        best = int(np.argmax(goal.values(np.eye(k))))
        starts.append(nearest(np.eye(k)[best] + 0.01, limits))
    unique = [w for i, w in enumerate(starts) if not any(np.allclose(w, v) for v in starts[:i])]
    every = dataclasses.replace(limits, most=None)
    found = max((_ascend(goal, every, w) for w in unique), key=lambda w: _penalised(goal, limits, w)[0])
    present = (found > PRESENT) | (limits.lower > 0)
    if limits.most is not None and present.sum() > limits.most:
        fewer = int(present.sum()) - max(1, int(present.sum() - limits.most) // 2)
        kept = support(np.where(present, found, 0.0), dataclasses.replace(limits, most=max(fewer, limits.most)))
        return solve(goal, restricted(limits, kept), found)
    return _describe(goal, limits, found)


def _ascend(goal: Goal, limits: Constraints, start: np.ndarray) -> np.ndarray:
    k = len(start)
    bounds = list(zip(limits.lower, limits.upper, strict=True))
    simplex = {"type": "eq", "fun": lambda x: x[:k].sum() - 1, "jac": lambda x: np.r_[np.ones(k), np.zeros(len(x) - k)]}
    if goal.weights is not None:

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = _penalised(goal, limits, x)
            return -value, -gradient

        found = minimize(
            loss, start, jac=True, method="SLSQP", bounds=bounds, constraints=[simplex], options={"maxiter": 500, "ftol": 1e-13}
        )
        return _tidy(found.x, limits)

    def floor(x: np.ndarray) -> np.ndarray:  # every target's value is at least x[k]
        return np.array([o.gradient(x[:k])[0] for o in goal.objectives]) - x[k]

    def floor_gradient(x: np.ndarray) -> np.ndarray:
        return np.stack([np.r_[o.gradient(x[:k])[1], -1.0] for o in goal.objectives])

    def loss_of_worst(x: np.ndarray) -> tuple[float, np.ndarray]:
        cost, gradient = _penalty(limits, x[:k])
        return cost - x[k], np.r_[gradient, -1.0]

    found = minimize(
        loss_of_worst,
        np.r_[start, goal.values(start[None])[0]],
        jac=True,
        method="SLSQP",
        bounds=[*bounds, (None, None)],
        constraints=[simplex, {"type": "ineq", "fun": floor, "jac": floor_gradient}],
        options={"maxiter": 500, "ftol": 1e-13},
    )
    return _tidy(found.x[:k], limits)


def _tidy(w: np.ndarray, limits: Constraints) -> np.ndarray:
    """Exactly feasible; rounding's traces of a corpus go."""
    w = np.clip(w, limits.lower, limits.upper)
    w = nearest(np.where(w < 1e-8, 0.0, w), limits)
    return np.where(w < 1e-8, limits.lower, w)


def _penalty(limits: Constraints, w: np.ndarray) -> tuple[float, np.ndarray]:
    """The prior's penalty of one mixture [K] and its gradient [K]."""
    return float(penalties(limits, w[None])[0]), limits.strength * (_log_ratio(limits, w) + 1)


def _log_ratio(limits: Constraints, w: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(w, 1e-9) / np.maximum(limits.prior, 1e-9))


def _penalised(goal: Goal, limits: Constraints, w: np.ndarray) -> tuple[float, np.ndarray]:
    """F and its gradient; of the worst target where that is the goal."""
    parts = [o.gradient(w) for o in goal.objectives]
    share = goal.weights if goal.weights is not None else np.eye(len(parts))[int(np.argmin([v for v, _ in parts]))]
    cost, by_cost = _penalty(limits, w)
    value = share @ np.array([v for v, _ in parts])
    return float(value - cost), share @ np.stack([g for _, g in parts]) - by_cost


def _describe(goal: Goal, limits: Constraints, w: np.ndarray) -> Optimum:
    """Certificate and prices from the linear programme of the objectives' tangents at w: max t with t <= A_m + g_m (v - w)."""
    parts = [o.gradient(w) for o in goal.objectives]
    cost, by_cost = _penalty(limits, w)
    if goal.weights is not None:
        parts = [(float(goal.weights @ [v for v, _ in parts]), goal.weights @ np.stack([g for _, g in parts]))]
    k, value = len(w), min(v for v, _ in parts)
    planes = np.stack([np.r_[-(g - by_cost), 1.0] for _, g in parts])
    heights = np.array([v - (g - by_cost) @ w for v, g in parts])
    found = linprog(
        np.r_[np.zeros(k), -1.0],
        A_ub=planes,
        b_ub=heights,
        A_eq=np.r_[np.ones(k), 0.0][None],
        b_eq=[1.0],
        bounds=[*zip(limits.lower, limits.upper, strict=True), (None, None)],
    )
    gap = max(0.0, float(-found.fun - value))
    binds, held = w > limits.upper - 1e-6, w < limits.lower + 1e-6
    shadow = np.where(binds, -found.upper.marginals[:k], 0.0)
    return Optimum(
        w, value, value - cost, gap, np.maximum(shadow, 0), np.maximum(np.where(held, found.lower.marginals[:k], 0), 0)
    )


def near_optimal_average(goal: Goal, limits: Constraints, optimum: Optimum, slack: float, seed: int) -> np.ndarray:
    """The mean of all feasible mixtures of the optimum's corpora with F >= F* - slack, [K]: as good within the error, and
    steadier than the argmax.

    By hit-and-run: CHAINS walkers start between the optimum and random feasible mixtures, inside the set; a step takes a random
    direction within the simplex and a uniform point of the line's part that lies in the set, found by shrinking. Mixtures are
    evaluated together.
    """
    w, k = optimum.weights, len(optimum.weights)
    free = np.flatnonzero((limits.upper > limits.lower) & ((w > PRESENT) if limits.most is not None else np.ones(k, bool)))
    if len(free) < 2 or slack <= 0:
        return w
    rng = np.random.default_rng(seed)
    least = optimum.penalised - slack
    inner = restricted(dataclasses.replace(limits, most=None), np.isin(np.arange(k), free) | (w > 0))
    lower, upper = inner.lower[free], inner.upper[free]
    away = np.stack([from_unit_cube(rng.random(k), inner) for _ in range(CHAINS)]) - w
    share = np.ones(CHAINS)
    for _ in range(60):
        at = w + share[:, None] * away
        outside = goal.values(at) - penalties(limits, at) < least
        if not outside.any():
            break
        share = np.where(outside, share / 1.5, share)
    else:
        at = np.where(outside[:, None], w, at)
    steps = 60 + 8 * len(free)
    total, count = np.zeros(k), 0
    for step in range(steps):
        direction = rng.normal(size=(CHAINS, len(free)))
        direction -= direction.mean(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            to_lower, to_upper = (lower - at[:, free]) / direction, (upper - at[:, free]) / direction
        high = np.nanmin(np.maximum(to_lower, to_upper), axis=1).clip(0)
        low = np.nanmax(np.minimum(to_lower, to_upper), axis=1).clip(None, 0)
        waiting = np.ones(CHAINS, bool)
        for _ in range(30):
            share = low + (high - low) * rng.random(CHAINS)
            trial = at.copy()
            trial[:, free] = np.clip(at[:, free] + share[:, None] * direction, lower, upper)
            index = np.flatnonzero(waiting)
            inside = goal.values(trial[index]) - penalties(limits, trial[index]) >= least
            at[index[inside]] = trial[index[inside]]
            waiting[index[inside]] = False
            if not waiting.any():
                break
            low, high = np.where(share < 0, share, low), np.where(share >= 0, share, high)
        if step >= steps // 3:
            total, count = total + at.sum(0), count + CHAINS
    return nearest(total / count, inner)


def scaled_prior(limits: Constraints, goal: Goal) -> Constraints:
    """The constraints with the prior's strength in the unit of the objective: times the difference between the best and the worst
    single corpus, so that one strength means the same for nats and for similarities."""
    return dataclasses.replace(limits, strength=limits.strength * float(np.ptp(goal.values(np.eye(len(limits.names))))))


def penalties(limits: Constraints, w: np.ndarray) -> np.ndarray:
    """The prior's penalty strength * KL(w, prior) of many mixtures, [n, K] to [n]."""
    return limits.strength * (w * _log_ratio(limits, w)).sum(1)


def pareto_front(objectives: list[Objective], limits: Constraints, points: int = 11) -> list[tuple[np.ndarray, np.ndarray]]:
    """Best mixtures for trade-offs between targets: (target weights [M], mixture [K]), the corners and what lies between
    each pair of targets in equal steps."""
    m = len(objectives)
    shares = [
        np.eye(m)[i] * (1 - t) + np.eye(m)[j] * t for i in range(m) for j in range(i + 1, m) for t in np.linspace(0, 1, points)
    ]
    unique = [s for i, s in enumerate(shares) if not any(np.allclose(s, other) for other in shares[:i])]
    return [(s, solve(Goal(objectives, s), limits).weights) for s in unique]


def effective_corpora(w: np.ndarray) -> float:
    """exp(entropy of the weights): the number of equal weights with the same entropy."""
    present = w[w > 0]
    return float(np.exp(-(present * np.log(present)).sum()))

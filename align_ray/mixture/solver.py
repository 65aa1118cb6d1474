"""The best mixture under constraints, in closed form: no model, no training, seconds.

Maximised is F(w) = sum_m c_m A_m(w) - strength * KL(w, prior), or the worst target's A_m in place of the sum. Beside
the optimum: how far it can be from the true one, what each constraint costs, and the middle of all mixtures that are as
good within one standard error.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from align_ray.alignment.coefficients import EVERY_PAIR
from align_ray.mixture import newton
from align_ray.mixture.certificate import Certificate, certify
from align_ray.mixture.choice import MANY, Face, count, every_choice, exchanged
from align_ray.mixture.constraints import (
    Constraints,
    divergence,
    filled,
    from_unit_cube,
    log_ratio,
    nearest,
    only_mixture,
    restricted,
    support,
)
from align_ray.mixture.objectives import MANY_CORPORA, Goal, Objective

CHAINS = 32
"""Walkers of the near-optimal set."""
WALKED = 100
"""Of MANY_CORPORA, those among which they walk: the walk's length and the price of a step do not grow with K."""
FRONT, FEWER_DIRECTIONS = 64, 16
"""Directions of the Pareto front; of more than EVERY_PAIR corpora, of which no page shows it, the second."""
ROUGH = 3e-7
"""A share of the spread over single corpora: with a larger residual the climb is gone on with, in that unit."""
FEW = 3
"""Exchanges of corpora that are solved in a round where a start is given, as in every resample: those that look
best."""


@dataclasses.dataclass(frozen=True)
class Optimum:
    """A solution and what is known of it."""

    weights: np.ndarray
    """[K]; exactly zero but for `max_corpora` of them."""
    value: float
    """The goal's, without the prior's penalty."""
    penalised: float
    """With it: F."""
    gap: float | None
    """KKT residual: no feasible mixture is better by more to first order; for a concave objective, none is at all.
    None where `max_corpora` binds: nothing of the kind holds over all choices of corpora."""
    gap_within: float
    """The same among mixtures of the corpora that have a weight, where `max_corpora` binds."""
    choice: Literal["exhaustive", "exchange"] | None
    """How those were chosen, where it does: of all choices, or by exchanges."""
    shadow: np.ndarray
    """[K] gain of F per unit of a corpus' upper bound, at least 0; 0 where it does not bind."""
    price: np.ndarray
    """[K] loss of F per unit of a lower bound, at least 0."""


def with_prior(goal: Goal, constraints: Constraints, prior_strength: float) -> Goal:
    """The goal with the prior's penalty. `prior_strength` is the configuration's: in units of the difference between
    the best and the worst single corpus, so that one strength means the same for nats and for similarities."""
    strength = prior_strength * spread(goal, constraints) if prior_strength else 0.0
    return dataclasses.replace(goal, strength=strength)


def spread(goal: Goal, constraints: Constraints) -> float:
    """The spread of the objective over single corpora."""
    return float(np.ptp(goal.singles(len(constraints.names))))


def solve(goal: Goal, constraints: Constraints, start: np.ndarray | None = None) -> Optimum:
    """Maximise F over the constraints by sequential least squares with exact gradients.

    Starts: the prior, uniform, and the best corpus (as far as feasible); or `start` alone. Where the best mixture has
    more corpora than `max_corpora`, every choice of so many is solved, or, of more than MANY choices and from a
    `start`, those that exchanges lead to.
    """
    goal = goal.merged() if _many(goal, constraints) else goal
    every = dataclasses.replace(constraints, most=None)
    found = _climb(goal, every, start)
    if constraints.most is None or (found > 0).sum() <= constraints.most:
        return _described(goal, every, found, None)

    def face(kept: np.ndarray, start: np.ndarray | None) -> tuple[float, np.ndarray]:
        part = np.flatnonzero(kept)
        smaller = _smaller(goal, every, part)
        w = np.zeros(len(kept))
        w[part] = _climb(*smaller, None if start is None else start[part])
        return _penalised(goal, every, w)[0], w

    if start is None and count(constraints) <= MANY:
        _, w = every_choice(face, constraints)
        return _described(goal, every, w, "exhaustive")
    begun = [face(_fewer(face, constraints, found), None)]
    if start is not None:
        given = nearest(start, constraints)
        begun += [face(given > 0, given), (_penalised(goal, every, given)[0], given)]
    guess = lambda tried: goal.penalised(constraints, np.stack([nearest(w, constraints) for w in tried]))
    _, w = exchanged(face, constraints, max(begun, key=lambda pair: pair[0]), guess, None if start is None else FEW)
    return _described(goal, every, w, "exchange")


def _climb(goal: Goal, constraints: Constraints, start: np.ndarray | None) -> np.ndarray:
    """The best mixture [K] that is found from the start, or from several."""
    only = only_mixture(constraints)
    if only is not None:
        return only
    k, many = len(constraints.names), _many(goal, constraints)
    starts = (
        [nearest(start, constraints)]
        if start is not None
        else [nearest(constraints.prior, constraints), nearest(np.ones(k), constraints)]
    )
    if start is None and many and all(o.pooled and o.pooled.counted is not None for o in goal.objectives):
        starts = starts[1:]  # concave, so that every start leads to the best
    elif start is None:
        best = int(np.argmax(goal.singles(k)))
        starts.append(nearest(np.eye(k)[best] + 0.01, constraints))
    unique = [w for i, w in enumerate(starts) if not any(np.allclose(w, v) for v in starts[:i])]
    found = [_ascend(goal, constraints, w) for w in unique]
    value = newton.penalised if many else lambda goal, constraints, w: _penalised(goal, constraints, w)[0]
    return max(found, key=lambda w: value(goal, constraints, w))


def _many(goal: Goal, constraints: Constraints) -> bool:
    return len(constraints.names) >= MANY_CORPORA and newton.fits(goal)


def _smaller(goal: Goal, constraints: Constraints, part: np.ndarray) -> tuple[Goal, Constraints]:
    """The problem in the weights of the corpora `part`, int [k], alone: the others' are exactly zero."""
    if len(part) == len(constraints.names):
        return goal, constraints

    def whole(w: np.ndarray) -> np.ndarray:
        every = np.zeros((*w.shape[:-1], len(constraints.names)))
        every[..., part] = w
        return every

    def of_part(objective: Objective) -> Objective:
        def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = objective.gradient(whole(w))
            return value, slope[part]

        if objective.pooled is not None:
            return Objective.of(dataclasses.replace(objective.pooled, rows=rows_of(objective.pooled.rows)))
        return Objective(lambda w: objective.values(whole(w)), gradient)

    kept: dict[int, np.ndarray] = {}

    def rows_of(rows: np.ndarray) -> np.ndarray:
        """Once for all targets that are compared with the same evidence."""
        return kept.setdefault(id(rows), rows[part])

    fields = {name: getattr(constraints, name)[part] for name in ("lower", "upper", "caps", "prior")}
    names = tuple(constraints.names[i] for i in part)
    return (
        dataclasses.replace(goal, objectives=[of_part(o) for o in goal.objectives]),
        dataclasses.replace(constraints, names=names, **fields),
    )


def _fewer(face: Face, constraints: Constraints, w: np.ndarray) -> np.ndarray:
    """A first choice, bool [K], from the best mixture [K] of more corpora: those with least weight are left out,
    half of what is too many at a time."""
    assert constraints.most is not None
    while (present := int((w > 0).sum())) > constraints.most:
        fewer = max(constraints.most, present - max(1, (present - constraints.most) // 2))
        kept = support(w, dataclasses.replace(constraints, most=fewer))
        if fewer == constraints.most:
            return kept
        _, w = face(kept, w)
    return w > 0


def _ascend(goal: Goal, constraints: Constraints, start: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """From one mixture [K] to the best around it, until F gains less than 1e-13 `unit`."""
    if _many(goal, constraints):
        return _tidy(newton.ascend(goal, constraints, start), constraints)
    k, options = len(start), {"maxiter": 500, "ftol": 1e-13 * unit}
    bounds = list(zip(constraints.lower, constraints.upper, strict=True))
    simplex = {"type": "eq", "fun": lambda x: x[:k].sum() - 1, "jac": lambda x: np.r_[np.ones(k), np.zeros(len(x) - k)]}
    if goal.weights is not None:

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = _penalised(goal, constraints, x)
            return -value, -gradient

        found = minimize(loss, start, jac=True, method="SLSQP", bounds=bounds, constraints=[simplex], options=options)
        return _tidy(found.x, constraints)

    def floor(x: np.ndarray) -> np.ndarray:  # every target's value is at least x[k]
        return np.array([o.gradient(x[:k])[0] for o in goal.objectives]) - x[k]

    def floor_gradient(x: np.ndarray) -> np.ndarray:
        return np.stack([np.r_[o.gradient(x[:k])[1], -1.0] for o in goal.objectives])

    def loss_of_worst(x: np.ndarray) -> tuple[float, np.ndarray]:
        cost, gradient = _penalty(goal, constraints, x[:k])
        return cost - x[k], np.r_[gradient, -1.0]

    found = minimize(
        loss_of_worst,
        np.r_[start, goal.values(start[None])[0]],
        jac=True,
        method="SLSQP",
        bounds=[*bounds, (None, None)],
        constraints=[simplex, {"type": "ineq", "fun": floor, "jac": floor_gradient}],
        options=options,
    )
    return _tidy(found.x[:k], constraints)


def _tidy(w: np.ndarray, constraints: Constraints) -> np.ndarray:
    """Exactly feasible; rounding's traces of a corpus go."""
    w = np.clip(w, constraints.lower, constraints.upper)
    w = nearest(np.where(w < 1e-8, 0.0, w), constraints)
    return filled(np.where(w < 1e-8, constraints.lower, w), constraints)


def _penalty(goal: Goal, constraints: Constraints, w: np.ndarray) -> tuple[float, np.ndarray]:
    """The prior's penalty of one mixture [K] and its gradient [K]."""
    return goal.strength * float(divergence(constraints, w[None])[0]), goal.strength * (log_ratio(constraints, w) + 1)


def _penalised(goal: Goal, constraints: Constraints, w: np.ndarray) -> tuple[float, np.ndarray]:
    """F and its gradient; of the worst target where that is the goal."""
    parts = [o.gradient(w) for o in goal.objectives]
    share = goal.weights if goal.weights is not None else np.eye(len(parts))[int(np.argmin([v for v, _ in parts]))]
    cost, by_cost = _penalty(goal, constraints, w)
    value = share @ np.array([v for v, _ in parts])
    return float(value - cost), share @ np.stack([g for _, g in parts]) - by_cost


def _described(
    goal: Goal, constraints: Constraints, w: np.ndarray, choice: Literal["exhaustive", "exchange"] | None
) -> Optimum:
    """The mixture [K] with its certificate: among those of its own corpora where they were chosen."""
    part = np.arange(len(w)) if choice is None else np.flatnonzero((w > 0) | (constraints.lower > 0))
    smaller, bounds = _smaller(goal, constraints, part)
    found, many = w[part], _many(goal, constraints)
    unit = float(np.ptp(newton.slopes(goal, w).slopes)) if many else spread(goal, constraints)
    known = _certified(smaller, bounds, found)
    if known.gap > ROUGH * unit > 0:
        finer = _ascend(smaller, bounds, found, 1e-3 * unit)
        if (better := _certified(smaller, bounds, finer)).gap < known.gap:
            found, known = finer, better
    weights, shadow, price = np.zeros((3, len(w)))
    weights[part], shadow[part], price[part] = found, known.shadow, known.price
    by_target = (
        newton.slopes(goal, weights).values if many else np.array([o.gradient(weights)[0] for o in goal.objectives])
    )
    value = float(by_target.min() if goal.weights is None else goal.weights @ by_target)
    cost = _penalty(goal, constraints, weights)[0]
    return Optimum(weights, value, value - cost, None if choice else known.gap, known.gap, choice, shadow, price)


def _certified(goal: Goal, constraints: Constraints, w: np.ndarray) -> Certificate:
    if _many(goal, constraints):
        at = newton.slopes(goal, w)
        values = at.values if goal.weights is None else np.array([goal.weights @ at.values])
        return certify(values, at.slopes, w, constraints, goal.strength)
    parts = [o.gradient(w) for o in goal.objectives]
    values, slopes = np.array([v for v, _ in parts]), np.stack([g for _, g in parts])
    if goal.weights is not None:
        values, slopes = np.array([goal.weights @ values]), (goal.weights @ slopes)[None]
    return certify(values, slopes, w, constraints, goal.strength)


def near_optimal_average(goal: Goal, constraints: Constraints, optimum: Optimum, slack: float, seed: int) -> np.ndarray:
    """The mean of all feasible mixtures of the optimum's corpora with F >= F* - slack, [K]: as good within the error,
    and steadier than the argmax.

    By hit-and-run: CHAINS walkers start between the optimum and random feasible mixtures, inside the set; a step takes
    a random direction within the simplex and a uniform point of the line's part that lies in the set, found by
    shrinking. Mixtures are evaluated together. Of many corpora the walk is among the WALKED that the set gives most
    room, in the model of second order around the optimum, and its mean is drawn back into the set.
    """
    w, k = optimum.weights, len(optimum.weights)
    free = np.flatnonzero((constraints.upper > constraints.lower) & ((w > 0) | (constraints.most is None)))
    least = optimum.penalised - slack
    value: Callable[[np.ndarray], np.ndarray] = partial(goal.penalised, constraints)
    many = slack > 0 and len(free) >= MANY_CORPORA and _many(goal, constraints)
    if many:
        goal = goal.merged()
        near = newton.around(goal, constraints, w, free, slack, WALKED)
        free, value, least = near.part, near.penalised, near.penalised(w[None])[0] - slack
    # where their number is limited the mean over several choices of corpora would have the corpora of all
    kept = np.isin(np.arange(k), free) | (w > 0)
    inner = restricted(dataclasses.replace(constraints, most=None), kept)
    if many:  # those that have a weight but are not walked keep it
        held = ~np.isin(np.arange(k), free)
        lower, upper = (np.where(held, w, bound) for bound in (inner.lower, inner.upper))
        inner = dataclasses.replace(inner, lower=lower, upper=upper)
    if slack <= 0 or only_mixture(inner) is not None:
        return w
    rng = np.random.default_rng(seed)
    lower, upper = inner.lower[free], inner.upper[free]
    away = np.stack([from_unit_cube(rng.random(k), inner) for _ in range(CHAINS)]) - w
    share = np.ones(CHAINS)
    for _ in range(60):
        at = w + share[:, None] * away
        outside = value(at) < least
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
            inside = value(trial[index]) >= least
            at[index[inside]] = trial[index[inside]]
            waiting[index[inside]] = False
            if not waiting.any():
                break
            low, high = np.where(share < 0, share, low), np.where(share >= 0, share, high)
        if step >= steps // 3:
            total, count = total + at.sum(0), count + CHAINS
    mean = nearest(total / count, inner)
    return _drawn_back(goal, constraints, mean, optimum, slack) if many else mean


def _drawn_back(goal: Goal, constraints: Constraints, w: np.ndarray, optimum: Optimum, slack: float) -> np.ndarray:
    """As much of the way from the optimum to the mixture [K] as is within the slack."""
    for _ in range(50):
        if newton.penalised(goal, constraints, w) >= optimum.penalised - slack:
            return w
        w = optimum.weights + 0.9 * (w - optimum.weights)
    return optimum.weights


def pareto_front(
    objectives: list[Objective], constraints: Constraints, points: int = 11, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Best mixtures for trade-offs between targets: (target weights [M], mixture [K]), the corners and what lies
    between each pair of targets in equal steps; of more than FRONT, a random part."""
    m, steps = len(objectives), np.linspace(0, 1, points)
    ends = {0: 0, points - 1: 1}  # of a pair, at which a direction is a corner, the same for all pairs
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    most = FRONT if len(constraints.names) <= EVERY_PAIR else FEWER_DIRECTIONS
    if m + len(pairs) * (points - 2) <= most:
        asked = [(i, j, t) for i, j in pairs for t in range(points)]
    else:
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(pairs) * points)[: 4 * most]
        asked = [(*pairs[n // points], int(n % points)) for n in some]
    unique: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for i, j, t in asked:
        unique.setdefault(((i, j)[ends[t]],) if t in ends else (i, j, t), (i, j, t))
    front: list[tuple[np.ndarray, np.ndarray]] = []
    for i, j, t in list(unique.values())[:most]:
        share = np.eye(m)[i] * (1 - steps[t]) + np.eye(m)[j] * steps[t]
        start = front[-1][1] if front and len(constraints.names) >= MANY_CORPORA else None
        front.append((share, solve(Goal(objectives, share), constraints, start).weights))
    return front


def effective_corpora(w: np.ndarray) -> float:
    """exp(entropy of the weights): the number of equal weights with the same entropy."""
    present = w[w > 0]
    return float(np.exp(-(present * np.log(present)).sum()))

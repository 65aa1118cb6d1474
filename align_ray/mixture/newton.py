"""The best mixture of many corpora: Newton's method, where sequential least squares would take hours.

A step maximises the second-order model of the objectives, the least of them for the worst target, with the prior's
penalty kept exact, over the bounds, by a primal-dual interior point method (Nocedal and Wright 2006, chapters 16 and
19). Second derivatives are those of at most CURVED corpora: the ones that have a weight or would gain one; they are
cheap, for an objective is a function of what the mixture pools (`objectives.Pooled`). How far the mixture can be from
the best is not said here: `certificate.py` does.

Cost: a gradient is 2 K D M products for M targets with D pooled entries, a step CURVED^2 D for the Hessian and about 30
factorisations of CURVED equations: a prior keeps all K corpora free, but the others have a diagonal alone, and the
targets of which the worst counts add a matrix of rank M.
"""

import dataclasses

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from align_ray.mixture.constraints import Constraints, divergence, log_ratio
from align_ray.mixture.objectives import Goal

CURVED = 256
"""Corpora whose second derivatives a step takes."""
STEPS = 200
INNER = 80
"""Iterations of an interior point."""
INSIDE = 1e-9
"""A weight this far from its bounds is free."""


@dataclasses.dataclass(frozen=True)
class Slopes:
    """The objectives at one mixture: values [M] and gradients [n, K], of their weighted sum (n = 1) or of each."""

    values: np.ndarray
    slopes: np.ndarray


def fits(goal: Goal) -> bool:
    """Whether all objectives have second derivatives."""
    return all(o.pooled is not None for o in goal.objectives)


def slopes(goal: Goal, w: np.ndarray) -> Slopes:
    """What targets that are compared with the same evidence share is pooled once."""
    held = np.flatnonzero(w)
    values = np.zeros(len(goal.objectives))
    total = np.zeros((1 if goal.weights is not None else len(values), len(w)))
    for rows, members in _by_evidence(goal):
        h = _pooled(w, held, rows)
        found = [goal.objectives[m].pooled.slope(h) for m in members]  # type: ignore[union-attr]
        values[members] = [value for value, _ in found]
        if goal.weights is not None:
            total[0] += rows @ sum(goal.weights[m] * slope for m, (_, slope) in zip(members, found, strict=True))
        else:
            total[members] = (rows @ np.stack([slope for _, slope in found], axis=1)).T
    return Slopes(values, total)


def curvature(goal: Goal, w: np.ndarray, share: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Minus the Hessian of the objectives' sum by `share` [M], in the corpora `part`, [n, n]; what is not concave is
    cut off."""
    result = np.zeros((len(part), len(part)))
    held = np.flatnonzero(w)
    for rows, members in _by_evidence(goal):
        h, mine = _pooled(w, held, rows), rows[part]
        bent = np.zeros(rows.shape[1])
        for m in (m for m in members if share[m] > 1e-12):
            diagonal, factors, core = goal.objectives[m].pooled.bend(h)  # type: ignore[union-attr]
            bent += share[m] * diagonal
            low = mine @ factors
            result -= share[m] * low @ core @ low.T
        result -= (mine * bent) @ mine.T
    values, vectors = np.linalg.eigh((result + result.T) / 2)
    return (vectors * np.maximum(values, 1e-10 * max(values[-1], 1e-300))) @ vectors.T


def _pooled(w: np.ndarray, held: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """w @ rows; of few corpora with a weight without the others' rows."""
    return w[held] @ rows[held] if 4 * len(held) < len(w) else w @ rows


def _by_evidence(goal: Goal) -> list[tuple[np.ndarray, list[int]]]:
    groups: dict[int, tuple[np.ndarray, list[int]]] = {}
    for m, objective in enumerate(goal.objectives):
        assert objective.pooled is not None
        groups.setdefault(id(objective.pooled.rows), (objective.pooled.rows, []))[1].append(m)
    return list(groups.values())


def penalised(goal: Goal, constraints: Constraints, w: np.ndarray) -> float:
    """F of one mixture [K]."""
    held = np.flatnonzero(w)
    values = np.zeros(len(goal.objectives))
    for rows, members in _by_evidence(goal):
        h = _pooled(w, held, rows)[None]
        values[members] = [goal.objectives[m].pooled.values(h)[0] for m in members]  # type: ignore[union-attr]
    value = values.min() if goal.weights is None else goal.weights @ values
    return float(value - (goal.strength * divergence(constraints, w[None])[0] if goal.strength else 0.0))


def ascend(goal: Goal, constraints: Constraints, start: np.ndarray) -> np.ndarray:
    """From one feasible mixture [K] to the best around it, until a step promises less than 1e-11 of the spread of the
    first slopes, or gives nothing."""
    w, k = start.copy(), len(start)
    unit = float(np.ptp(slopes(goal, w).slopes)) or 1.0  # 0 where nothing is to gain
    worst, free = goal.weights is None, constraints.upper > constraints.lower
    share = goal.weights if goal.weights is not None else np.full(len(goal.objectives), 1 / len(goal.objectives))
    value = penalised(goal, constraints, w)
    for _ in range(STEPS):
        at = slopes(goal, w)
        slope = at.slopes[0] if not worst else share @ at.slopes
        known = _candidates(w, slope, goal, constraints, free)
        part = np.flatnonzero(free) if goal.strength > 0 else known
        lower, upper, total = constraints.lower[part], constraints.upper[part], w[part].sum()
        if min(total - lower.sum(), upper.sum() - total) <= 1e-12:  # no weight to move among them
            break
        curved = np.flatnonzero(np.isin(part, known))
        bend = curvature(goal, w, share, part[curved]) / unit
        level = (at.values - at.values.min()) / unit if worst else np.zeros(0)
        model = Model(
            curved,
            bend,
            at.slopes[:, part] / unit,
            level,
            w[part],
            lower,
            upper,
            goal.strength / unit,
            np.log(np.maximum(constraints.prior[part], 1e-9)),
        )
        found, share_found = best_of(model)
        if worst:
            share = share_found
        step = np.zeros(k)
        step[part] = found - w[part]
        promised = model.gain(found) * unit
        taken, rate = False, 1.0
        while rate > 1e-8 and promised > 1e-14 * unit:
            trial = np.clip(w + rate * step, constraints.lower, constraints.upper)
            better = penalised(goal, constraints, trial)
            if better >= value + 1e-4 * rate * promised:
                w, value, taken = trial, better, True
                break
            rate /= 2
        if not taken or promised < 1e-11 * unit:
            break
    return w


def _candidates(w: np.ndarray, slope: np.ndarray, goal: Goal, constraints: Constraints, free: np.ndarray) -> np.ndarray:
    """About CURVED corpora, int, sorted: those between their bounds, and those at one that would gain most by leaving
    it; of too many of the former those with most to gain or lose. In any case some of those that have all they may, of
    the least slopes: where nothing is inside, the weight that others could have is theirs."""
    if free.sum() <= CURVED:
        return np.flatnonzero(free)
    lower, upper = constraints.lower, constraints.upper
    inside = free & (w > lower + INSIDE) & (w < upper - INSIDE)
    if goal.strength:
        slope = slope - goal.strength * (log_ratio(constraints, w) + 1)
    full = np.flatnonzero(free & (w >= upper - INSIDE))
    full = full[np.argsort(slope[full], kind="stable")[: CURVED // 4]]
    worth = slope @ w if not inside.any() else float(slope[inside] @ w[inside] / w[inside].sum())
    gain = np.where(slope > worth, (slope - worth) * (upper - w), (worth - slope) * (w - lower))
    if inside.sum() <= CURVED // 2:
        order = np.lexsort((-gain, ~inside, ~free))
        return np.union1d(order[:CURVED], full)
    rising = np.argsort(-np.where(free & (slope > worth), gain, -1.0), kind="stable")[: CURVED // 4]
    heavy = np.argsort(-np.where(inside, w, -1.0), kind="stable")[: CURVED // 2]
    falling = np.argsort(-np.where(inside & (slope <= worth), gain, -1.0), kind="stable")[: CURVED // 4]
    return np.unique(np.r_[rising, heavy, falling, full])


@dataclasses.dataclass(frozen=True)
class Near:
    """F around a mixture [K]: the objectives to second order in the weights of `part`, int [n], the penalty exact."""

    constraints: Constraints
    strength: float
    part: np.ndarray
    w: np.ndarray
    at: Slopes
    bend: np.ndarray

    def penalised(self, w: np.ndarray) -> np.ndarray:
        """Of many mixtures that differ from `w` in `part` alone, [m, K] to [m], less F's constant in the others."""
        d = (w - self.w)[:, self.part]
        levels = self.at.slopes[:, self.part] @ d.T
        if len(levels) > 1:
            levels = levels + self.at.values[:, None]
        cost = self.strength * divergence(self.constraints, w) if self.strength else 0.0
        return levels.min(0) - ((d @ self.bend) * d).sum(1) / 2 - cost


def around(goal: Goal, constraints: Constraints, w: np.ndarray, free: np.ndarray, slack: float, most: int) -> Near:
    """The model around an optimum, in the `most` corpora of `free` that mixtures within the slack give most room."""
    at = slopes(goal, w)
    share = worst_shares(goal, at)
    slope = share @ at.slopes if goal.weights is None else at.slopes[0]
    if goal.strength:
        slope = slope - goal.strength * (log_ratio(constraints, w) + 1)
    inside = (w > constraints.lower + INSIDE) & (w < constraints.upper - INSIDE)
    level = float(slope[inside] @ w[inside] / w[inside].sum()) if inside.any() else float(slope @ w)
    bound = np.where(w > (constraints.lower + constraints.upper) / 2, w - constraints.lower, constraints.upper - w)
    room = np.where(inside, 1.0 + w, np.minimum(bound, slack / np.maximum(np.abs(level - slope), 1e-300)))
    part = np.sort(free[np.argsort(-room[free], kind="stable")[:most]])
    return Near(constraints, goal.strength, part, w, at, curvature(goal, w, share, part))


def worst_shares(goal: Goal, at: Slopes) -> np.ndarray:
    """The goal's weights, or of the worst target equal ones of those that are as bad."""
    if goal.weights is not None:
        return goal.weights
    worst = at.values <= at.values.min() + 1e-6 * max(1e-300, float(np.ptp(at.values)))
    return worst / worst.sum()


@dataclasses.dataclass(frozen=True)
class Model:
    """max min_m(level_m + slope_m @ (v - w)) - (v - w) B (v - w) / 2 - strength * KL(v, prior) over v [n] with the sum
    of w within the bounds; B positive semidefinite, zero but for the rows and columns `curved`, int [c], where it is
    `bend` [c, c]; levels at least 0. Without levels: one slope."""

    curved: np.ndarray
    bend: np.ndarray
    slopes: np.ndarray
    level: np.ndarray
    w: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    strength: float
    log_prior: np.ndarray

    def value(self, v: np.ndarray) -> float:
        d = v - self.w
        linear = (self.level + self.slopes @ d).min() if len(self.level) else self.slopes[0] @ d
        cost = 0.0
        if self.strength:
            cost = self.strength * float(v @ (np.log(np.maximum(v, 1e-9)) - self.log_prior))
        return float(linear - d @ self.bent(d) / 2 - cost)

    def bent(self, d: np.ndarray) -> np.ndarray:
        """B d."""
        result = np.zeros(len(d))
        result[self.curved] = self.bend @ d[self.curved]
        return result

    def solve(self, diagonal: np.ndarray, right: np.ndarray) -> np.ndarray:
        """x [n, r] with (diag + B) x = right. Raises LinAlgError or ValueError where rounding leaves none."""
        block = self.bend.copy()
        block[np.diag_indices(len(block))] += diagonal[self.curved]
        x = right / diagonal[:, None]
        x[self.curved] = cho_solve(cho_factor(block, lower=True), right[self.curved])
        return x

    def gain(self, v: np.ndarray) -> float:
        return self.value(v) - self.value(self.w)


def best_of(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """v [n], and the share of every level in it, [M]: the multipliers of the worst targets."""
    low, high, w, total = model.lower, model.upper, model.w, model.w.sum()
    n, many = len(w), len(model.level)
    middle = low + (high - low) * min(1.0, max(0.0, (total - low.sum()) / (high - low).sum()))
    v = 0.7 * w + 0.3 * middle
    at_low, at_high = v - low, high - v  # kept apart from v: their differences would round to 0
    z_low, z_high = 0.1 / n / at_low, 0.1 / n / at_high
    y = np.full(many, 1 / max(many, 1))
    worst = float((model.level + model.slopes @ (v - w)).min()) - 0.1 if many else 0.0
    rest = model.level + model.slopes @ (v - w) - worst if many else np.zeros(0)
    price = 0.0
    own = model.slopes[0] if not many else np.zeros(n)
    of_levels = model.slopes if many else np.zeros((0, n))
    size = 2 * n + many
    for _ in range(INNER):
        slope = model.bent(v - w) - own
        if model.strength:
            slope = slope + model.strength * (np.log(v) - model.log_prior + 1)
        mean = (z_low @ at_low + z_high @ at_high + y @ rest) / size
        wrong = np.abs(slope - price - z_low + z_high - y @ of_levels).max()
        if mean < 1e-15 and wrong < 1e-10:
            break
        aim = 0.1 * mean
        diagonal = z_low / at_low + z_high / at_high + (model.strength / v if model.strength else 0.0)
        diagonal = diagonal * (1 + 1e-14) + 1e-14
        right = -(slope - price - aim / at_low + aim / at_high)
        try:
            through = model.solve(diagonal, np.concatenate([right[:, None], np.ones((n, 1)), of_levels.T], axis=1))
            x0, x1, by_level = through[:, 0], through[:, 1], through[:, 2:]
            # in the new shares y, the price and the worst value: the shares of the worst targets are the only large
            # part, and go through no quotient by what is left above the worst
            left = np.zeros((many + 2, many + 2))
            left[:many, :many] = of_levels @ by_level + np.diag(rest / np.maximum(y, 1e-300))
            left[:many, many], left[:many, many + 1] = of_levels @ x1, -1.0
            left[many, :many], left[many, many], left[many + 1, :many] = by_level.sum(0), x1.sum(), 1.0
            wanted = np.r_[aim / np.maximum(y, 1e-300) - of_levels @ x0, total - v.sum() - x0.sum(), 1.0]
            if not many:
                left, wanted = left[:1, :1], wanted[:1]
            solved = np.linalg.solve(left, wanted)
        except (np.linalg.LinAlgError, ValueError):  # ValueError: of what is not finite
            break
        new, d_price, d_worst = solved[:many], solved[many], solved[-1] if many else 0.0
        dv = x0 + d_price * x1 + by_level @ new
        d_low = aim / at_low - z_low - z_low / at_low * dv
        d_high = aim / at_high - z_high + z_high / at_high * dv
        d_rest, d_y = of_levels @ dv - d_worst, new - y
        rate = min(
            1.0,
            *(0.99 * _room(x, dx) for x, dx in ((at_low, dv), (at_high, -dv), (rest, d_rest))),
            *(0.99 * _room(x, dx) for x, dx in ((z_low, d_low), (z_high, d_high), (y, d_y))),
        )
        if not np.isfinite(rate) or not np.isfinite(dv).all():
            break
        at_low, at_high = at_low + rate * dv, at_high - rate * dv
        v, price, worst = low + at_low, price + rate * d_price, worst + rate * d_worst
        z_low, z_high, y, rest = z_low + rate * d_low, z_high + rate * d_high, y + rate * d_y, rest + rate * d_rest
    return v, y / y.sum() if many else np.ones(1)


def _room(x: np.ndarray, dx: np.ndarray) -> float:
    """The largest step along dx that leaves x >= 0."""
    falls = dx < 0
    return float((-x[falls] / dx[falls]).min()) if falls.any() else np.inf

"""What a mixture is worth to a target: functions of the mixture weights, higher is better, with exact gradients.

Fisher embeddings are additive, so a mixture's is f(w) = sum_k w_k f_k, w in tokens (method A.2); so are unigram
distributions and, in the sense of MixMin, the predictions of models fine-tuned on one corpus each. Pool, then compare:
none of these needs a pass over any model. `linear` alone compares first and then pools; its best mixture is always one
corpus.
"""

import dataclasses
from collections.abc import Callable

import numba
import numpy as np

from align_ray.alignment.distance import EPSILON, scaled_cosine_distance, similarity_gradient
from align_ray.mixture.constraints import Constraints, divergence

CHUNK = 64
"""Mixtures evaluated together."""
MANY_CORPORA = 50
"""From so many on, targets are evaluated together, and the climb is by Newton's method (`newton`): sequential least
squares takes K^3 a step."""
SMALLEST = 1e-12
"""Stands for a probability of zero."""


Bend = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A Hessian [D, D] as diag(a) + G C G^T: a [D], G [D, r], C [r, r], r small."""


@dataclasses.dataclass(frozen=True)
class Pooled:
    """An objective as a function of what a mixture pools, h = w @ rows."""

    rows: np.ndarray
    """float64 [K, D]; targets that are compared with the same evidence hold the same array."""
    values: Callable[[np.ndarray], np.ndarray]
    """Values of many h, [n, D] to [n]."""
    slope: Callable[[np.ndarray], tuple[float, np.ndarray]]
    """The value of one h [D] and its gradient [D]."""
    bend: Callable[[np.ndarray], Bend]
    """The Hessian there."""
    counted: np.ndarray | None = None
    """[D], where the objective is counted @ log h: a weighted sum of such is one of them."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One target's objective of the weights of K corpora."""

    values: Callable[[np.ndarray], np.ndarray]
    """Values of many mixtures: float64 [n, K] to [n]."""
    gradient: Callable[[np.ndarray], tuple[float, np.ndarray]]
    """The value of one mixture [K] and its gradient [K]."""
    pooled: Pooled | None = None
    """What second derivatives are made of, where there are some."""

    @classmethod
    def of(cls, pooled: Pooled, values: Callable[[np.ndarray], np.ndarray] | None = None) -> "Objective":
        """`values`: a faster way to those of many mixtures."""

        def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = pooled.slope(w @ pooled.rows)
            return value, pooled.rows @ slope

        return cls(
            values or (lambda w: _in_chunks(lambda part: pooled.values(part @ pooled.rows), w)), gradient, pooled
        )

    def singles(self, k: int) -> np.ndarray:
        """Values of each of K corpora alone, [K]."""
        return self.values(np.eye(k)) if self.pooled is None else _in_chunks(self.pooled.values, self.pooled.rows)


@dataclasses.dataclass(frozen=True)
class Goal:
    """The objectives of M targets; `weights` [M] sum to 1, or None for the worst target."""

    objectives: list[Objective]
    weights: np.ndarray | None
    strength: float = 0.0
    """The factor of the penalty strength * KL(w, prior), in the unit of the objective (`with_prior`)."""

    def values(self, w: np.ndarray) -> np.ndarray:
        """Values of many mixtures, [n, K] to [n], without the prior's penalty."""
        by_target = self.by_target(w)
        return by_target.min(0) if self.weights is None else self.weights @ by_target

    def by_target(self, w: np.ndarray) -> np.ndarray:
        """Every target's, [n, K] to [M, n]; of many corpora what targets share is pooled once."""
        together = self._together() if len(self.objectives) > 1 and w.shape[1] >= MANY_CORPORA else None
        if together is None:
            return np.stack([o.values(w) for o in self.objectives])
        rows, values = together
        return _in_chunks(lambda part: values(part @ rows), w).T

    def merged(self) -> "Goal":
        """The same with one objective in place of all, where their weighted sum is one of their kind."""
        pooled = [o.pooled for o in self.objectives]
        if self.weights is None or len(pooled) < 2 or pooled[0] is None:
            return self
        counted = [p.counted for p in pooled if p is not None and p.rows is pooled[0].rows and p.counted is not None]
        if len(counted) < len(pooled):
            return self
        one = _log_mixture(pooled[0].rows, self.weights @ np.stack(counted))
        return dataclasses.replace(self, objectives=[one], weights=np.ones(1))

    def _together(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
        """The rows that all targets share, and all their values of many h, [n, D] to [n, M]; None where they share
        nothing."""
        pooled = [o.pooled for o in self.objectives if o.pooled is not None]
        if len(pooled) < len(self.objectives) or any(p.rows is not pooled[0].rows for p in pooled):
            return None
        counted = [p.counted for p in pooled if p.counted is not None]
        if len(counted) == len(pooled):
            shares = np.stack(counted, axis=1)
            return pooled[0].rows, lambda h: np.log(np.maximum(h, SMALLEST)) @ shares
        return pooled[0].rows, lambda h: np.stack([p.values(h) for p in pooled], axis=1)

    def singles(self, k: int) -> np.ndarray:
        """Values of each of K corpora alone, [K]."""
        together = self._together() if len(self.objectives) > 1 and k >= MANY_CORPORA else None
        if together is None:
            by_target = np.stack([o.singles(k) for o in self.objectives])
        else:
            by_target = _in_chunks(together[1], together[0]).T
        return by_target.min(0) if self.weights is None else self.weights @ by_target

    def penalised(self, constraints: Constraints, w: np.ndarray) -> np.ndarray:
        """With it: what is maximised, F, [n, K] to [n]."""
        return self.values(w) - self.strength * divergence(constraints, w)


def scaled_cosine_objective(pooled: np.ndarray, target: np.ndarray, absolute: float | None = None) -> Objective:
    """The paper's: 1 - d(f(w), f_T), pooled embeddings [K, D] and [D]; in [0, 1]. `absolute`: epsilon of the
    distance, default relative."""
    return scaled_cosine_objectives(pooled, target[None], absolute)[0]


def scaled_cosine_objectives(pooled: np.ndarray, targets: np.ndarray, absolute: float | None = None) -> list[Objective]:
    """The same of M targets, [M, D]."""
    rows = np.ascontiguousarray(pooled, np.float64)
    fast, means = rows.astype(np.float32), rows.mean(1)
    return [_scaled_cosine(rows, fast, means, np.asarray(target, np.float64), absolute) for target in targets]


def _scaled_cosine(
    rows: np.ndarray, fast: np.ndarray, means: np.ndarray, goal: np.ndarray, absolute: float | None
) -> Objective:
    fast_goal, mean = goal.astype(np.float32), goal.mean()

    def values(w: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(w), 3))
        epsilon = EPSILON * (w @ means + mean) if absolute is None else np.full(len(w), absolute)
        _scaled_cosine_sums(w.astype(np.float32), fast, fast_goal, epsilon.astype(np.float32), sums)
        return sums[:, 2] / np.sqrt(sums[:, 0] * sums[:, 1])

    def bend(h: np.ndarray) -> Bend:  # of q / sqrt(p r), p = <u,u>, q = <u,v>, r = <v,v>
        total = h + goal
        total = total + (EPSILON * total.mean() if absolute is None else absolute)
        u, v = h / total, goal / total
        du, dv = (total - h) / total**2, -goal / total**2
        ddu, ddv = -2 * du / total, -2 * dv / total
        p, q, r = u @ u, u @ v, v @ v
        root = 1 / np.sqrt(p * r)
        f = q * root
        first = np.array([-f / (2 * p), root, -f / (2 * r)])
        second = np.array([2 * (du**2 + u * ddu), ddu * v + 2 * du * dv + u * ddv, 2 * (dv**2 + v * ddv)])
        core = np.array(
            [
                [3 * f / (4 * p**2), -root / (2 * p), f / (4 * p * r)],
                [-root / (2 * p), 0.0, -root / (2 * r)],
                [f / (4 * p * r), -root / (2 * r), 3 * f / (4 * r**2)],
            ]
        )
        return first @ second, np.stack([2 * u * du, du * v + u * dv, 2 * v * dv], axis=1), core

    pooled = Pooled(
        rows,
        lambda h: 1 - scaled_cosine_distance(h, goal, absolute),
        lambda h: similarity_gradient(h, goal, absolute),
        bend,
    )
    return Objective.of(pooled, values)


@numba.njit(fastmath=True, parallel=True, cache=True)
def _scaled_cosine_sums(w, rows, target, epsilon, sums):
    """<u,u>, <v,v>, <u,v> of every mixture with the target, in blocks of rows that stay in the cache, mixture by
    mixture."""
    block = 512
    for part in numba.prange((len(w) + 15) // 16):
        pooled = np.empty(block, np.float32)
        for start in range(0, rows.shape[1], block):
            size = min(block, rows.shape[1] - start)
            goal = target[start : start + size]
            for i in range(16 * part, min(16 * part + 16, len(w))):
                pooled[:] = 0
                k = 0
                while k + 4 <= len(rows):
                    a, b, c, d = w[i, k], w[i, k + 1], w[i, k + 2], w[i, k + 3]
                    p, q = rows[k, start : start + size], rows[k + 1, start : start + size]
                    r, s = rows[k + 2, start : start + size], rows[k + 3, start : start + size]
                    for j in range(size):
                        pooled[j] += a * p[j] + b * q[j] + c * r[j] + d * s[j]
                    k += 4
                while k < len(rows):
                    a, p = w[i, k], rows[k, start : start + size]
                    for j in range(size):
                        pooled[j] += a * p[j]
                    k += 1
                uu = vv = uv = np.float32(0)
                for j in range(size):
                    scale = np.float32(1) / (pooled[j] + goal[j] + epsilon[i])
                    u, v = pooled[j] * scale, goal[j] * scale
                    uu += u * u
                    vv += v * v
                    uv += u * v
                sums[i, 0] += uu
                sums[i, 1] += vv
                sums[i, 2] += uv


def hellinger_objective(pooled: np.ndarray, target: np.ndarray) -> Objective:
    """Hellinger affinity of f(w) and f_T as distributions over rows, in [0, 1]; concave but for the normalisation."""
    return hellinger_objectives(pooled, target[None])[0]


def hellinger_objectives(pooled: np.ndarray, targets: np.ndarray) -> list[Objective]:
    """The same of M targets, [M, D]."""
    rows = np.asarray(pooled, np.float64)
    least = SMALLEST * rows.sum(1).max()
    return [_hellinger(rows, least, np.asarray(target, np.float64)) for target in targets]


def _hellinger(rows: np.ndarray, least: float, q: np.ndarray) -> Objective:
    root = np.sqrt(q / q.sum())

    def slope(h: np.ndarray) -> tuple[float, np.ndarray]:
        total, h = h.sum(), np.maximum(h, least)
        affinity = np.sqrt(h) @ root / np.sqrt(total)
        return float(affinity), root / np.sqrt(h) / (2 * np.sqrt(total)) - affinity / (2 * total)

    def bend(h: np.ndarray) -> Bend:
        total, h = h.sum(), np.maximum(h, least)
        affinity = np.sqrt(h) @ root / np.sqrt(total)
        half = root / np.sqrt(h) / (2 * np.sqrt(total))
        core = np.array([[0.0, -1 / (2 * total)], [-1 / (2 * total), 3 * affinity / (4 * total**2)]])
        return -half / (2 * h), np.stack([half, np.ones(len(h))], axis=1), core

    return Objective.of(Pooled(rows, lambda h: np.sqrt(h) @ root / np.sqrt(h.sum(1)), slope, bend))


def kl_objective(pooled: np.ndarray, target: np.ndarray) -> Objective:
    """-KL(f_T, f(w)) of the embeddings as distributions over rows, EPSILON of their mean added; at most 0, nats."""
    return kl_objectives(pooled, target[None])[0]


def kl_objectives(pooled: np.ndarray, targets: np.ndarray) -> list[Objective]:
    """The same of M targets, [M, D]."""
    rows = np.asarray(pooled, np.float64)
    rows = rows + EPSILON * rows.mean(1, keepdims=True)
    return [_kl(rows, target + EPSILON * np.mean(target, dtype=np.float64)) for target in targets]


def _kl(rows: np.ndarray, q: np.ndarray) -> Objective:
    q = q / q.sum()
    entropy = -(q * np.log(q)).sum()

    def slope(h: np.ndarray) -> tuple[float, np.ndarray]:
        total = h.sum()
        return float(q @ np.log(h) - np.log(total) + entropy), q / h - 1 / total

    def bend(h: np.ndarray) -> Bend:
        return -q / h**2, np.ones((len(h), 1)), np.array([[1 / h.sum() ** 2]])

    return Objective.of(Pooled(rows, lambda h: np.log(h) @ q - np.log(h.sum(1)) + entropy, slope, bend))


def log_mixture_objective(probabilities: np.ndarray, counts: np.ndarray) -> Objective:
    """sum_x c(x) log sum_k w_k p_k(x) / sum c: minus the cross-entropy of the target under the mixture, nats per token;
    concave.

    `probabilities` [K, N] of N events under each corpus, `counts` [N]. With unigram models and N the vocabulary it is
    the cross-entropy that ranks candidates; with the candidates' fine-tuned models and N the target's held-out tokens
    it is MixMin (Thudi et al. 2025).
    """
    return log_mixture_objectives(probabilities, counts[None])[0]


def log_mixture_objectives(probabilities: np.ndarray, counts: np.ndarray) -> list[Objective]:
    """The same of M targets, [M, N], which share one copy of what any of them counts."""
    seen = (counts > 0).any(0)
    p = np.asarray(probabilities, np.float64)
    p = p if seen.all() else p[:, seen]
    p = p if p.min(initial=1.0) >= SMALLEST else np.maximum(p, SMALLEST)
    return [_log_mixture(p, c[seen] / c.sum()) for c in counts]


def _log_mixture(p: np.ndarray, counted: np.ndarray) -> Objective:
    mine = np.flatnonzero(counted)
    share = counted[mine]
    every = len(mine) == p.shape[1]

    def of_all(values: np.ndarray) -> np.ndarray:
        if every:
            return values
        result = np.zeros(p.shape[1])
        result[mine] = values
        return result

    def own(h: np.ndarray) -> np.ndarray:
        return np.maximum(h if every else h[..., mine], SMALLEST)

    def slope(h: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = own(h)
        return float(share @ np.log(mixed)), of_all(share / mixed)

    def bend(h: np.ndarray) -> Bend:
        return of_all(-share / own(h) ** 2), np.zeros((p.shape[1], 0)), np.zeros((0, 0))

    return Objective.of(Pooled(p, lambda h: np.log(own(h)) @ share, slope, bend, counted))


def linear_objective(scores: np.ndarray) -> Objective:
    """The mixture's mean score, scores [K] of the corpora alone: a baseline that always chooses one corpus."""
    rows = np.asarray(scores, np.float64)[:, None]
    nothing = np.zeros(1), np.zeros((1, 0)), np.zeros((0, 0))
    return Objective.of(Pooled(rows, lambda h: h[:, 0], lambda h: (float(h[0]), np.ones(1)), lambda h: nothing))


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], w: np.ndarray) -> np.ndarray:
    w = np.atleast_2d(w)
    return np.concatenate([function(w[i : i + CHUNK]) for i in range(0, len(w), CHUNK)])

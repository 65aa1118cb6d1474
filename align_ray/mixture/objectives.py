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

from align_ray.alignment.distance import EPSILON, similarity_gradient

CHUNK = 64
"""Mixtures evaluated together."""
SMALLEST = 1e-12
"""Stands for a probability of zero."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One target's objective of the weights of K corpora."""

    values: Callable[[np.ndarray], np.ndarray]
    """Values of many mixtures: float64 [n, K] to [n]."""
    gradient: Callable[[np.ndarray], tuple[float, np.ndarray]]
    """The value of one mixture [K] and its gradient [K]."""


def scaled_cosine_objective(pooled: np.ndarray, target: np.ndarray, absolute: float | None = None) -> Objective:
    """The paper's: 1 - d(f(w), f_T), pooled embeddings [K, D] and [D]; in [0, 1]. `absolute`: epsilon of the
    distance, default relative."""
    rows, goal = np.ascontiguousarray(pooled, np.float64), np.asarray(target, np.float64)
    fast_rows, fast_goal = rows.astype(np.float32), goal.astype(np.float32)
    means, mean = rows.mean(1), goal.mean()

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, by_row = similarity_gradient(w @ rows, goal, absolute)
        return value, rows @ by_row

    def values(w: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(w), 3))
        epsilon = EPSILON * (w @ means + mean) if absolute is None else np.full(len(w), absolute)
        _scaled_cosine_sums(w.astype(np.float32), fast_rows, fast_goal, epsilon.astype(np.float32), sums)
        return sums[:, 2] / np.sqrt(sums[:, 0] * sums[:, 1])

    return Objective(values, gradient)


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
    rows, q = np.asarray(pooled, np.float64), np.asarray(target, np.float64)
    root, totals = np.sqrt(q / q.sum()), np.asarray(pooled, np.float64).sum(1)

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        h, total = np.maximum(w @ rows, SMALLEST * totals.max()), w @ totals
        affinity = np.sqrt(h) @ root / np.sqrt(total)
        return float(affinity), rows @ (root / np.sqrt(h)) / (2 * np.sqrt(total)) - affinity / (2 * total) * totals

    return Objective(
        lambda w: _in_chunks(lambda part: np.sqrt(part @ rows) @ root / np.sqrt(part @ totals), w), gradient
    )


def kl_objective(pooled: np.ndarray, target: np.ndarray) -> Objective:
    """-KL(f_T, f(w)) of the embeddings as distributions over rows, EPSILON of their mean added; at most 0, nats."""
    rows = np.asarray(pooled, np.float64)
    rows = rows + EPSILON * rows.mean(1, keepdims=True)
    q = target + EPSILON * np.mean(target, dtype=np.float64)
    q = q / q.sum()
    entropy, totals = -(q * np.log(q)).sum(), rows.sum(1)

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        h, total = w @ rows, w @ totals
        return float(q @ np.log(h) - np.log(total) + entropy), rows @ (q / h) - totals / total

    return Objective(
        lambda w: _in_chunks(lambda part: np.log(part @ rows) @ q - np.log(part @ totals) + entropy, w), gradient
    )


def log_mixture_objective(probabilities: np.ndarray, counts: np.ndarray) -> Objective:
    """sum_x c(x) log sum_k w_k p_k(x) / sum c: minus the cross-entropy of the target under the mixture, nats per token;
    concave.

    `probabilities` [K, N] of N events under each corpus, `counts` [N]. With unigram models and N the vocabulary it is
    the cross-entropy that ranks candidates; with the candidates' fine-tuned models and N the target's held-out tokens
    it is MixMin (Thudi et al. 2025).
    """
    p = np.maximum(np.asarray(probabilities, np.float64), SMALLEST)
    share = counts / counts.sum()
    seen = share > 0
    p, share = np.ascontiguousarray(p[:, seen]), share[seen]

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(w @ p, SMALLEST)
        return float(share @ np.log(mixed)), p @ (share / mixed)

    return Objective(lambda w: _in_chunks(lambda part: np.log(np.maximum(part @ p, SMALLEST)) @ share, w), gradient)


def linear_objective(scores: np.ndarray) -> Objective:
    """The mixture's mean score, scores [K] of the corpora alone: a baseline that always chooses one corpus."""
    scores = np.asarray(scores, np.float64)
    return Objective(lambda w: w @ scores, lambda w: (float(w @ scores), scores))


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], w: np.ndarray) -> np.ndarray:
    w = np.atleast_2d(w)
    return np.concatenate([function(w[i : i + CHUNK]) for i in range(0, len(w), CHUNK)])

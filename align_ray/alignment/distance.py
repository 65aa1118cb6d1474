"""Distances and similarities of Fisher embeddings.

The paper's distance (Task2Vec's symmetric normalised cosine, arXiv 1902.03545): with u = a/(a+b) and v = b/(a+b) entry
by entry, d = 1 - <u,v> / (|u||v|). It depends on the ratio of the entries alone, so that every row counts alike,
however small its Fisher information. Two independent noisy draws of one embedding, relative variance v, are v/(1+v)
apart.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import numpy as np

EPSILON = 1e-6
"""Added to a+b, relative to the mean of a+b. The published 1e-8 is absolute and of the size of the data (method
1.4)."""
BLOCK = 2048
"""Entries of a pair taken at once in `distance_matrix`."""
LITTLE = 10**8
"""Entries of all pairs below which one thread is faster than several: 10 ms of work."""


def scaled_cosine_distance(a: np.ndarray, b: np.ndarray, absolute: float | None = None) -> np.ndarray:
    """d between embeddings over the last axis: [..., D] and [..., D] (broadcast) give [...]; in [0, 1].

    `absolute`: an epsilon in the unit of the entries instead of the relative one.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    total = a + b
    total = total + (EPSILON * total.mean(-1, keepdims=True) if absolute is None else absolute)
    u, v = a / total, b / total
    return 1 - (u * v).sum(-1) / np.sqrt((u * u).sum(-1) * (v * v).sum(-1))


def distance_matrix(a: np.ndarray, b: np.ndarray, absolute: float | None = None) -> np.ndarray:
    """d of all pairs (see `scaled_cosine_distance`): [n, D] and [m, D] give float64 [n, m].

    Entries are float32, block sums float64 (error about 1e-7). Compiled on first use and run on all cores where there
    is much to do. Memory beside the input: 24 n m bytes.
    """
    a, b = (np.ascontiguousarray(x, dtype=np.float32) for x in (a, b))
    epsilons = [
        EPSILON * x.mean(1, dtype=np.float64) if absolute is None else np.full(len(x), absolute / 2) for x in (a, b)
    ]
    sums = np.zeros((len(a), len(b), 3))
    with _threads(a.size * len(b)):
        _accumulate(a, b, *(e.astype(np.float32) for e in epsilons), sums)
    return 1 - sums[..., 2] / np.sqrt(sums[..., 0] * sums[..., 1])


@contextmanager
def _threads(entries: int) -> Iterator[None]:
    """One thread for little work: most of the time would go into waiting for the others."""
    before = numba.get_num_threads()
    numba.set_num_threads(1 if entries < LITTLE else before)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@numba.njit(fastmath=True, parallel=True, cache=True)
def _accumulate(a, b, epsilon_a, epsilon_b, sums):
    """Add <u,u>, <v,v> and <u,v> of all pairs to `sums` [n, m, 3], in blocks of entries that stay in the cache."""
    for i in numba.prange(len(a)):
        for start in range(0, a.shape[1], BLOCK):
            x = a[i, start : start + BLOCK]
            for j in range(len(b)):
                y = b[j, start : start + BLOCK]
                epsilon = epsilon_a[i] + epsilon_b[j]
                uu = vv = uv = np.float32(0)
                for k in range(len(x)):
                    scale = np.float32(1) / (x[k] + y[k] + epsilon)
                    u, v = x[k] * scale, y[k] * scale
                    uu += u * u
                    vv += v * v
                    uv += u * v
                sums[i, j, 0] += uu
                sums[i, j, 1] += vv
                sums[i, j, 2] += uv


def exact_distance_matrix(a: np.ndarray, b: np.ndarray, absolute: float | None = None) -> np.ndarray:
    """The same in float64 (error about 1e-15), for distances that are subtracted from each other: float64 [n, D] and
    [m, D] give [n, m]. At half the speed; memory beside the input: 8 n m bytes."""
    a, b = (np.ascontiguousarray(x, dtype=np.float64) for x in (a, b))
    epsilons = [EPSILON * x.mean(1) if absolute is None else np.full(len(x), absolute / 2) for x in (a, b)]
    result = np.empty((len(a), len(b)))
    with _threads(a.size * len(b)):
        _exact(a, b, *epsilons, result)
    return result


@numba.njit(fastmath=True, parallel=True, cache=True)
def _exact(a, b, epsilon_a, epsilon_b, result):
    for i in numba.prange(len(a)):
        for j in range(len(b)):
            epsilon = epsilon_a[i] + epsilon_b[j]
            uu = vv = uv = 0.0
            for k in range(a.shape[1]):
                scale = 1 / (a[i, k] + b[j, k] + epsilon)
                u, v = a[i, k] * scale, b[j, k] * scale
                uu += u * u
                vv += v * v
                uv += u * v
            result[i, j] = 1 - uv / np.sqrt(uu * vv)


def similarity_gradient(h: np.ndarray, target: np.ndarray, absolute: float | None = None) -> tuple[float, np.ndarray]:
    """1 - d(h, target) and its gradient in h, both [D] (the epsilon taken as constant)."""
    total = h + target
    total = total + (EPSILON * total.mean() if absolute is None else absolute)
    u, v = h / total, target / total
    uu, vv, uv = u @ u, v @ v, u @ v
    value = uv / np.sqrt(uu * vv)
    by_u = v / np.sqrt(uu * vv) - value * u / uu
    by_v = u / np.sqrt(uu * vv) - value * v / vv
    return float(value), by_u * (total - h) / total**2 - by_v * target / total**2


def scaled_cosine(a: np.ndarray, b: np.ndarray, absolute: float | None = None) -> np.ndarray:
    """1 - d of all pairs, the paper's: [n, D] and [m, D] give float64 [n, m] in [0, 1]; symmetric. A common factor
    of both cancels (but not with an `absolute` epsilon), a factor of one alone does not."""
    return 1 - distance_matrix(a, b, absolute)


def hellinger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hellinger affinity sum sqrt(p q) of the embeddings as distributions p, q over rows (each scaled to sum 1): all
    pairs, [n, m] in [0, 1]; symmetric, free of scale; large rows count most."""
    p, q = _distributions(a), _distributions(b)
    return np.sqrt(p) @ np.sqrt(q).T


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """exp(-KL(q, p)), q the target b and p the candidate a as distributions over rows, EPSILON of their mean added: all
    pairs, [n, m] in (0, 1]; not symmetric, free of scale."""
    p, q = (_distributions(x + EPSILON * np.mean(x, -1, keepdims=True)) for x in (a, b))
    return np.exp(-((q * np.log(q)).sum(-1)[None, :] - np.log(p) @ q.T))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Plain cosine of all pairs, [n, m] in [0, 1]; symmetric, free of scale; a few large rows decide it."""
    return _unit(np.asarray(a, np.float64)) @ _unit(np.asarray(b, np.float64)).T


def log_centred_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the logarithms, each centred on its own mean (the correlation of the logarithms), EPSILON of the
    mean added: all pairs, [n, m] in [-1, 1]; symmetric, free of scale; every row counts alike."""
    x, y = (
        np.log(e + EPSILON * e.mean(-1, keepdims=True)) for e in (np.asarray(a, np.float64), np.asarray(b, np.float64))
    )
    return _unit(x - x.mean(-1, keepdims=True)) @ _unit(y - y.mean(-1, keepdims=True)).T


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "scaled-cosine": scaled_cosine,
    "hellinger": hellinger,
    "kl": kl,
    "cosine": cosine,
    "log-cosine": log_centred_cosine,
}
"""Functions of candidates [n, D] and targets [m, D]; higher is closer, 1 for equal embeddings."""


def _distributions(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / x.sum(-1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

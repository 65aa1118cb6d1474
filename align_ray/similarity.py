"""Distances between Fisher embeddings.

The paper's distance (Task2Vec's symmetric normalised cosine, arXiv 1902.03545): with u = a/(a+b) and v = b/(a+b) entry
by entry, d = 1 - <u,v> / (|u||v|). It depends on the ratio of the entries alone, so that every row counts alike, however
small its Fisher information. Two independent noisy draws of one embedding, relative variance v, are v/(1+v) apart.
"""

import numpy as np

EPSILON = 1e-6
"""Added to a+b, relative to the mean of a+b. The published 1e-8 is absolute and of the size of the data (method 1.4)."""


def scaled_cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d between embeddings over the last axis: [..., D] and [..., D] (broadcast) give [...]; in [0, 1]."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    total = a + b
    total = total + EPSILON * total.mean(-1, keepdims=True)
    u, v = a / total, b / total
    return 1 - (u * v).sum(-1) / np.sqrt((u * u).sum(-1) * (v * v).sum(-1))


def distance_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d of all pairs: [n, D] and [m, D] give float64 [n, m], a row at a time so that memory stays m * D."""
    return np.stack([scaled_cosine_distance(row, b) for row in a])


def similarity_gradient(h: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """1 - d(h, target) and its gradient in h, both [D] (the epsilon taken as constant)."""
    total = h + target
    total = total + EPSILON * total.mean()
    u, v = h / total, target / total
    uu, vv, uv = u @ u, v @ v, u @ v
    value = uv / np.sqrt(uu * vv)
    by_u = v / np.sqrt(uu * vv) - value * u / uu
    by_v = u / np.sqrt(uu * vv) - value * v / vv
    return float(value), by_u * (total - h) / total**2 - by_v * target / total**2

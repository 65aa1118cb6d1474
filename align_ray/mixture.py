"""Mixture weights: the simplex with caps, the pooled objective and its closed-form optimum.

Fisher embeddings are additive: the embedding of a mixture is f(w) = sum_k w_k f_k, w in tokens (method A.2). The
objective A(w) = mean over targets of 1 - d(f(w), f_T) is smooth and needs no pass over any model. Weights are capped by
w_k <= max_epochs * tokens_k / token_budget (method A.5), so that no corpus is repeated more often than wanted.
"""

import dataclasses

import numpy as np
from scipy.optimize import minimize

from align_ray.errors import ConfigError
from align_ray.similarity import similarity_gradient


def weight_caps(tokens: dict[str, int], token_budget: int, max_epochs: float) -> np.ndarray:
    """Largest weight of each corpus, [K] in (0, 1]. Raises ConfigError where all corpora together cannot fill the budget."""
    caps = np.minimum(1.0, max_epochs * np.array(list(tokens.values()), dtype=np.float64) / token_budget)
    if caps.sum() < 1:
        most = int(max_epochs * sum(tokens.values()))
        raise ConfigError(
            f"field 'search.token_budget' is {token_budget}, but the candidates hold {most} tokens at "
            f"max_epochs={max_epochs:g}; lower the budget, raise 'search.max_epochs' or add corpora."
        )
    return caps


def to_simplex(u: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Weights from a point u of the open unit cube, [K] -> [K]: every point gives a feasible mixture.

    -log u, normalised, of a uniform u is uniform on the simplex (Dirichlet(1)); what exceeds a cap is given to the
    others in proportion to their weights.
    """
    raw = -np.log(np.clip(u, 1e-9, 1 - 1e-9))
    return cap_weights(raw / raw.sum(), caps)


def from_simplex(w: np.ndarray) -> np.ndarray:
    """A point u with to_simplex(u) = w (feasible w)."""
    return np.exp(-np.clip(w, 1e-6, None))


def cap_weights(w: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """The weights min(cap, s * w) with s such that they sum to 1."""
    w = np.maximum(np.asarray(w, dtype=np.float64), 1e-12)
    capped = np.zeros(len(w), dtype=bool)
    while True:
        result = np.where(capped, caps, 0.0)
        free = w * ~capped
        if free.sum() > 0:
            result = result + free / free.sum() * (1 - caps[capped].sum())
        over = (result > caps * (1 + 1e-12)) & ~capped
        if not over.any():
            return result
        capped |= over


def mixture_alignment(w: np.ndarray, pooled: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """A(w) and its gradient [K] for pooled corpus embeddings [K, D] and target embeddings [M, D]."""
    h = w @ pooled
    parts = [similarity_gradient(h, t) for t in targets]
    return float(np.mean([value for value, _ in parts])), pooled @ np.mean([g for _, g in parts], axis=0)


@dataclasses.dataclass(frozen=True)
class Optimum:
    """`weights` [K]; `value` A(w); `kkt`: largest gain per unit of weight still to be had by a feasible shift."""

    weights: np.ndarray
    value: float
    kkt: float


def closed_form(pooled: np.ndarray, targets: np.ndarray, caps: np.ndarray, starts: int = 4) -> Optimum:
    """Maximise A(w) over the capped simplex by SLSQP with the exact gradient, from the centre, the best corpora and more."""
    k = len(pooled)
    uniform = cap_weights(np.ones(k), caps)
    singles = [cap_weights(np.eye(k)[i] + 1e-3, caps) for i in range(k)]
    singles.sort(key=lambda w: -mixture_alignment(w, pooled, targets)[0])
    best = uniform
    for start in [uniform, *singles[: starts - 1]]:
        found = minimize(
            lambda w: tuple(-part for part in mixture_alignment(w, pooled, targets)),
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, cap) for cap in caps],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        w = np.clip(found.x, 0, caps)
        w = cap_weights(w / w.sum(), caps) * (w > 1e-9)
        w = w / w.sum()
        if mixture_alignment(w, pooled, targets)[0] > mixture_alignment(best, pooled, targets)[0]:
            best = w
    value, gradient = mixture_alignment(best, pooled, targets)
    can_grow, can_shrink = best < caps - 1e-9, best > 1e-9
    kkt = max(0.0, gradient[can_grow].max(initial=-np.inf) - gradient[can_shrink].min())
    return Optimum(best, value, float(kkt) if np.isfinite(kkt) else 0.0)


def split_tokens(weights: np.ndarray, rows: int) -> np.ndarray:
    """Whole sequences per corpus that sum to `rows`, by the largest remainder."""
    exact = weights * rows
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[i] += 1
    return counts

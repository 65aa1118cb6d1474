"""Scores of single documents without a model: how much likelier a target's words make a document than the pool's.

Moore and Lewis (2010) with unigram models; DSIR's importance weights (arXiv 2302.03169) are the sum over a document of
what is a mean here, so that length plays no part. Of all that was tried on documents this lowered the loss most
(docs/select.md).
"""

from collections.abc import Sequence

import numpy as np

from align_ray.alignment.baselines import PRIOR


def log_ratios(pool: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log p_target - log p_pool of every token, float64 [V, M], from token counts [V] and [M, V].

    Half a count is added to the pool's; a target's model is smoothed by PRIOR tokens of the pool, so that a score
    depends on the pool and on this target alone.
    """
    general = (pool + 0.5) / (pool + 0.5).sum()
    smoothed = (targets + PRIOR * general) / (targets.sum(1, keepdims=True) + PRIOR)
    return np.log(smoothed / general).T


def document_scores(documents: Sequence[np.ndarray], ratios: np.ndarray) -> np.ndarray:
    """Mean of `ratios` [V, M] over the tokens of each document that count (ids int32 [t], see `fisher/tokens.py`),
    float64 [n, M], nats per token; NaN where none does."""
    counted = [ids[ids >= 0] for ids in documents]
    scores = [ratios[ids].mean(0) if len(ids) else np.full(ratios.shape[1], np.nan) for ids in counted]
    return np.reshape(scores, (len(documents), ratios.shape[1]))


def counts_of(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """How often each token counts in token ids of any shape, int64 [V]."""
    return np.bincount(ids[ids >= 0], minlength=vocabulary)

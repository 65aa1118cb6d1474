"""Scores of single documents without a model: how much likelier the target's words make a document than the pool's."""

from collections.abc import Sequence

import numpy as np

from align_ray.alignment.baselines import background_distribution, token_distribution


def word_scores(documents: Sequence[np.ndarray], targets: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """Mean over a document's tokens of log p_target - log p_pool, nats per token, float64 [n, M]; NaN for a document
    without a token that counts.

    Moore and Lewis (2010) with unigram models, as importance weights are in DSIR (arXiv 2302.03169) before their sum:
    the mean, so that length plays no part. `documents`: token ids [t] each, the pool; `targets`: of M targets, in any
    shape; negative ids do not count (`fisher/tokens.py`).
    """
    pool = np.concatenate(list(documents))
    background = background_distribution([pool, *targets], vocabulary)
    logs = np.log(np.stack([token_distribution(t, background) for t in targets], axis=1))
    ratio = logs - np.log(token_distribution(pool, background))[:, None]
    counted = [ids[ids >= 0] for ids in documents]
    return np.stack([ratio[ids].mean(0) if len(ids) else np.full(ratio.shape[1], np.nan) for ids in counted])

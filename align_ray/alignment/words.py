"""The cross-entropy of a target under a candidate's unigram model, with the same statistics as alignment.

In the predictive study (docs/study.md) it ranked candidates by the loss after training better than any form of Fisher
alignment, at next to no cost; so it is what candidates are ranked by, with the alignment coefficient beside it.
"""

from collections.abc import Mapping

import numpy as np

from align_ray.alignment.baselines import PRIOR, background_distribution
from align_ray.alignment.comparison import ranking

MEASURE = "unigram cross-entropy"


def cross_entropy_values(candidate: np.ndarray, target: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values [n, m] of the target's cross-entropy under the candidate, nats per token.

    `candidate`: token ids [n, B, T] of n batches, n >= 2; `target`: [m, B, T]; negative ids are padding; `background`:
    float64 [V], the prior. Their mean estimates the cross-entropy under the candidate's whole distribution: under a
    model counted on few batches it is too high by about c / n, which the jackknife removes. Rows and columns are
    independent units, as those of a matrix of alignments.
    """
    n = len(candidate)
    counts = np.stack([_counts(batch, len(background)) for batch in candidate])
    tokens = np.stack([_counts(batch, len(background)) for batch in target])
    shares = tokens / tokens.sum(1, keepdims=True)

    def under(model: np.ndarray) -> np.ndarray:
        return -np.log((model + PRIOR * background) / (model.sum(-1, keepdims=True) + PRIOR)) @ shares.T

    whole = counts.sum(0)
    return n * under(whole[None]) - (n - 1) * under(whole - counts)


def rank_by_cross_entropy(
    batches: Mapping[str, np.ndarray], targets: list[str], vocabulary: int
) -> dict[str, list[dict]]:
    """Candidates of every target from lowest to highest cross-entropy, as `comparison.ranking` gives them, values in
    nats per token. `batches`: token ids [n, B, T] by corpus; those that are no targets are candidates."""
    candidates = [name for name in batches if name not in targets]
    background = background_distribution([batches[c] for c in candidates], vocabulary)
    return {
        t: ranking({c: cross_entropy_values(batches[c], batches[t], background) for c in candidates}, lowest_first=True)
        for t in targets
    }


def _counts(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    return np.bincount(ids[ids >= 0], minlength=vocabulary).astype(np.float64)

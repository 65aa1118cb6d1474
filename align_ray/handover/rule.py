"""Which documents a selection takes, from their scores: the highest ones, or importance resampling without replacement.

The second is DSIR's (Xie et al. 2023, arXiv 2302.03169) on the score s instead of hashed n-grams: the documents with
the highest log w(s) + G, with w = q_target / q_corpus and G Gumbel noise, are a sample without replacement with
probabilities in proportion to w, so that the selection's scores are distributed as the target's are, while the corpus
has enough of each.
"""

import dataclasses
from typing import Literal

import numpy as np

Method = Literal["top", "gumbel"]
METHODS: tuple[Method, ...] = ("top", "gumbel")
MOST_BINS = 64


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much to select: `documents`, `tokens` (whole documents until they hold so many) or a `fraction` of the
    documents."""

    unit: str
    value: float


def gumbel_noise(keys: np.ndarray) -> np.ndarray:
    """Standard Gumbel numbers float64 [N] from document keys S16 [N]: a function of (seed, document) alone, since a
    key is the document's hash under the seed. Its last eight bytes are used; the drawing of samples goes by the
    first ones."""
    raw = np.frombuffer(keys.astype("S16").tobytes(), ">u8").reshape(-1, 2)[:, 1]
    u = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return -np.log(-np.log(u))


def log_weights(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """log(q_target / q_corpus) at the corpus' scores [N], from m scores of the target's documents, float64 [N].

    Both densities are histograms over bins between quantiles of the target's scores, about sqrt(m), so that only the
    order of scores counts, and no group of documents with nearly one score (near-duplicates) can get more than a bin of
    the selection. A bin has the target's share of scores in it; beyond the smallest and the largest one has 1 / (m + 1)
    on each side, the probability that the target's next document falls there: the tails are not extrapolated.
    """
    m = len(target)
    bins = int(np.clip(np.sqrt(m), 1, MOST_BINS))
    quantiles = np.quantile(target, np.linspace(0, 1, bins + 1))
    # bins are open on the right, the last one holds the largest score
    quantiles[-1] = np.nextafter(quantiles[-1], np.inf)
    edges = np.unique(quantiles)
    inner = np.histogram(target, edges)[0] / m * (m - 1) / (m + 1)
    wanted = np.concatenate([[1 / (m + 1)], inner, [1 / (m + 1)]])
    at = np.searchsorted(edges, scores, side="right")
    present = np.bincount(at, minlength=len(wanted)) / max(1, len(scores))
    with np.errstate(divide="ignore"):
        return (np.log(wanted) - np.log(present))[at]


def ranked(keys: np.ndarray, scores: np.ndarray, target: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents (keys S16 [N], scores [N]) from the first to the last to be taken, int64 [N], and their priorities
    in that order. `target`: scores of its own documents for the method `gumbel`, None for `top`. Equal priorities
    are ordered by key."""
    priority = scores if target is None else log_weights(scores, target) + gumbel_noise(keys)
    order = np.lexsort((keys, -priority))
    return order, priority[order]


def number_taken(tokens: np.ndarray, amount: Amount) -> int:
    """How many of the documents, in their order with `tokens` each, the amount takes: all where there are too few."""
    if amount.unit == "tokens":
        return min(len(tokens), int(np.searchsorted(np.cumsum(tokens), amount.value)) + 1)
    wanted = amount.value if amount.unit == "documents" else np.ceil(round(amount.value * len(tokens), 6))
    return min(len(tokens), int(wanted))


def distinct(keys: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of one document per key, in the order of keys; of equal keys the one with the highest score (they
    differ by rounding at most)."""
    order = np.lexsort((-score, keys))
    first = np.ones(len(order), dtype=bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    return order[first]

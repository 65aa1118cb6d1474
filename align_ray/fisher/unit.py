"""What the estimator gives for one batch."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Unit:
    """The embedding of one batch, by blocks that are never mixed silently: `trunk` and `head`, or of the reference
    procedure `trunk` and `vocabulary`."""

    blocks: dict[str, np.ndarray]
    """float32 [R, D], one row per label draw; R = 1 where there is no label noise."""
    variances: dict[str, np.ndarray]
    """float32 [D], variance over the batch's sequences of their draw-averaged embeddings (not of the reference)."""
    loss: float
    """The probe's nats per token."""
    sequences: int
    skipped: tuple[int, ...]
    """Sequences left out because their embedding is not finite, by position in the batch."""
    tokens: int
    seconds: float

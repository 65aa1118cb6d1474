"""What the estimators and the probe take: plain values.

The models of the same fields in `align_ray/config.py` validate them, document them (docs/configuration.md) and make
these.
"""

import dataclasses

PUBLISHED_EPSILON = 1e-8
"""The epsilon of the published code's distance, in the unit of the entries (method 1.2, step 7)."""
PROCEDURE = 2
"""Version of the published procedure as it is computed here; part of the key of all that it gives."""
REPLICATE = 10_000
"""Distance of the seeds of a batch's replicates: further than those of a corpus' batches under `seed_by_batch`."""


@dataclasses.dataclass(frozen=True)
class ProbeName:
    """Which causal language model is the probe: `embedded`, `smollm2`, a local folder or a hub id."""

    model: str = "embedded"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclasses.dataclass(frozen=True)
class Quirks:
    """What the published procedure does beside the definition; the defaults are the published procedure."""

    dropout: bool = True
    head_epochs: int = 5
    shifted_labels: bool = True
    mini_batch: int = 8
    pads_counted: bool = True
    axis_0: bool = True
    vocabulary: bool = True
    absolute_epsilon: bool = True
    seed_by_batch: bool = False


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How a batch of token ids becomes an embedding. The model brings its own dtype."""

    estimator: str = "exact"
    """exact, head or reference."""
    draws: int = 2
    pooling: str = "mean"
    """mean or unit."""
    head_tuning: str = "none"
    """none, shared or per_batch."""
    filters: int | None = None
    """Entries of a block that are kept at most; None: all."""
    quirks: Quirks = Quirks()

    @property
    def epsilon(self) -> float | None:
        """What every distance of the study adds to a + b, in the unit of the entries; None: the relative one
        (`alignment.distance`)."""
        return PUBLISHED_EPSILON if self.estimator == "reference" and self.quirks.absolute_epsilon else None

    def seed_of(self, seed: int, batch: int) -> int:
        """Seed of the batch with this number in its corpus."""
        return seed + batch if self.estimator == "reference" and self.quirks.seed_by_batch else seed

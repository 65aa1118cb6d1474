"""What the estimators and the probe take: plain values.

The models of the same fields in `align_ray/config.py` validate them, document them (docs/configuration.md) and make these.
"""

import dataclasses


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
    quirks: Quirks = Quirks()

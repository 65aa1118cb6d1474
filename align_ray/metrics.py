"""Metrics for Prometheus, by Ray's own exporter: every node of the cluster offers those of its processes on its metrics
port, under the names below with `ray_` before and, of counters, `_total` behind.

The driver and the workers write them; without a Ray they go nowhere. deploy/grafana.json shows them.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "align_ray_batches": ("Batches embedded", ()),
    "align_ray_tokens": ("Tokens embedded, or trained on and counted in the loss", ("work",)),
    "align_ray_rejected_records": ("Records of corpora that were left out", ("corpus", "reason")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "align_ray_training_loss": ("Loss of a worker's last training step, nats per token", ()),
    "align_ray_heldout_loss": ("Held-out loss at the last rung of a worker's training, nats per token", ("target",)),
    "align_ray_queue": ("Steps of the work under way that are not done yet", ("work",)),
    "align_ray_worker_seconds": ("Worker-seconds of the last run of a stage, so far", ("stage",)),
    "align_ray_cost": ("What the study has cost so far, earlier runs included, in its currency", ()),
}


def count(name: str, amount: float, **tags: str) -> None:
    """Add to a counter; nothing where the amount is 0."""
    if amount > 0 and _connected():
        _metric(name).inc(float(amount), tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if _connected():
        _metric(name).set(float(value), tags)


@contextmanager
def queue(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A `progress.Reporter` that keeps `align_ray_queue`."""
    left = total
    gauge("align_ray_queue", left, work=what)

    def advance() -> None:
        nonlocal left
        left -= 1
        gauge("align_ray_queue", max(0, left), work=what)

    try:
        yield advance
    finally:
        gauge("align_ray_queue", 0, work=what)


def _connected() -> bool:
    """Ray is not imported for this: who has not connected has not imported it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@functools.cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    kind, known = (Counter, COUNTERS) if name in COUNTERS else (Gauge, GAUGES)
    description, tags = known[name]
    return kind(name, description=description, tag_keys=tags)

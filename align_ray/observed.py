"""What a person who operates a study sees of a stage under way: lines where there is no terminal, what a stalled stage
waits for, its event log and its metrics."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from align_ray import __version__, metrics
from align_ray.context import Study
from align_ray.events import Log, logged
from align_ray.progress import Standing, counted_by, duration, is_shown, watched
from align_ray.runtime import Capacity, waits_for
from align_ray.spending import costs, price

EVERY = 60.0
"""Seconds between two looks."""
STALLED = 120.0
"""Seconds without a step after which it is said what is waited for."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a stage is within a run."""

    number: int
    total: int
    later: float = 0.0
    """Worker-seconds of the stages after it, by the estimate."""

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def placed(place: Place) -> Iterator[None]:
    """While it is open, the stage under way is at that place of a run."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def observed(study: Study, stage: str, room: Capacity | None) -> Iterator[Log]:
    """While it is open, the stage is watched. `room`: of a stage on workers."""
    place, start = _place.get(), time.monotonic()
    now, most = (room.now, room.most) if room else (0, 0)
    seen = {"place": str(place) if place else None, "workers": now, "most": most}
    workers = max(1, now or most)
    by_lines, said = not is_shown(), [""]
    spent = sum(row.get("spent", 0.0) for row in costs(study.store).values())
    if place:
        later = f", after it about {duration(place.later / workers)} by the estimate" if place.later else ""
        study.say(f"stage {place}: {stage}{later}")

    def measure() -> None:
        used = (time.monotonic() - start) * max(now, 1) if room else 0.0
        metrics.gauge("align_ray_worker_seconds", used, stage=stage)
        if (cost := price(study.config, spent + used)) is not None:
            metrics.gauge("align_ray_cost", cost)

    def look(standing: Standing) -> None:
        measure()
        if standing.what:
            log.add("progress", **{k: getattr(standing, k) for k in ("what", "done", "total", "left")})
            if by_lines:
                study.say(line(stage, place, standing) + (_run_left(place, workers, standing.left) if place else ""))
        waits = waits_for(room) if room and standing.idle >= STALLED else ""
        if waits and waits != said[-1]:  # once, not every minute
            log.add("waiting", text=waits, idle=standing.idle)
            study.say(f"{stage}: no step for {duration(standing.idle)}: {waits}")
        said.append(waits)
        log.write()

    with ExitStack() as stack:
        log = stack.enter_context(logged(study.store, stage, version=__version__, **seen))
        stack.callback(measure)
        stack.enter_context(counted_by(metrics.queue))
        stack.enter_context(watched(look, EVERY))
        measure()
        yield log


def line(stage: str, place: Place | None, standing: Standing) -> str:
    """How a stage stands, for a log that somebody reads: `stage 3/7, embed: 120 of 450 batches embedded, 2.1/s, 3 min
    left of them`."""
    where = f"stage {place}, {stage}" if place else stage
    pace = f", {standing.rate:.2g}/s" if standing.rate else ""
    left = f", {duration(standing.left)} left of these" if standing.left is not None else ""
    return f"{where}: {standing.done} of {standing.total} {standing.what}{pace}{left}"


def _run_left(place: Place, workers: int, here: float | None) -> str:
    """The wall-clock time of what comes after, later stages by the estimate, on the workers there are."""
    if not place.later or here is None:
        return ""
    return f"; about {duration(here + place.later / workers)} left of the run, later stages by the estimate"

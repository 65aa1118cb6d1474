"""The event log of a study: JSON Lines in OUTPUT/events, an object for every run of a stage.

Object stores cannot append. So each run of a stage has an object that nobody else writes, and writes it whole again at
its start, once a minute and at its end: a kill loses the last minute, two runs on one bucket mix nothing, and
`cat OUTPUT/events/*` is the log in the order in which stages began. A stage has some hundred lines at most a day of
work, so that writing them again costs nothing.

Every line: `time` (ISO 8601, UTC), `run` (the process), `stage`, `event` and what belongs to it:

    started   version, place ("3/7" within a run), workers (there now), most
    said      text: a line of progress, note or warning
    progress  what, done, total, left (seconds, at the pace so far; null before the first step)
    waiting   text: what a stage without a step for minutes waits for; idle (seconds)
    spent     seconds, workers, worker_seconds, cost (null without a price), currency
    finished
    stopped   text: at the cap on cost
    failed    error (its class), text (of a mistake of the user's: other errors' words may quote an address with a
              password)
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from align_ray.claims import RUN
from align_ray.errors import CapReached, StoreError, mistake_behind
from align_ray.store import Store


class Log:
    """The events of one run of a stage."""

    def __init__(self, store: Store, stage: str):
        self._store, self._stage, self._lines = store, stage, []  # type: ignore[var-annotated]
        self._name = f"events/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{stage}-{RUN}.jsonl"
        self._lock = threading.Lock()  # a thread that watches adds to it as well

    def add(self, event: str, **fields: Any) -> None:
        """Keep an event until the next `write`."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "run": RUN, "stage": self._stage, "event": event, **fields}
        with self._lock:
            self._lines.append(json.dumps(line))

    def write(self) -> None:
        """Write all events so far. The study matters more: a store that refuses them now stops nothing."""
        with self._lock, suppress(StoreError, OSError):
            self._store.write_bytes(self._name, ("\n".join(self._lines) + "\n").encode())


_log: ContextVar[Log | None] = ContextVar("log", default=None)


@contextmanager
def logged(store: Store, stage: str, **started: Any) -> Iterator[Log]:
    """A log for a stage, of which the beginning and the end are written."""
    log = Log(store, stage)
    log.add("started", **started)
    log.write()
    token = _log.set(log)
    try:
        yield log
        log.add("finished")
    except CapReached as stop:
        log.add("stopped", text=str(stop))
        raise
    except BaseException as error:
        mistake = mistake_behind(error) if isinstance(error, Exception) else None
        log.add("failed", error=type(error).__name__, text=str(mistake or ""))
        raise
    finally:
        _log.reset(token)
        log.write()


def told(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, whose lines the log of the stage under way gets as well."""

    def both(line: str) -> None:
        if log := _log.get():
            log.add("said", text=line)
        say(line)

    return both

"""Who uses a store that has no lock (object storage), and what a process is called in what it writes there.

While a process uses such a store its marker lies in OUTPUT/running, written again every BEAT seconds. Whoever comes
writes its own marker first and looks at the others after that: object stores show a finished write to everybody, so
that of two that come at once at least one sees the other. It is refused where the other has another configuration: each
would replace the other's samples and config.yaml. Runs of one configuration work beside each other: units are named by
their content, and costs are kept by process (`spending`). A marker that has not been written for STALE seconds, by the
store's own clock, is of a process that was killed.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from align_ray.config import Config, digest
from align_ray.errors import StoreError
from align_ray.store import Store

RUN = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
"""This process: in the names of what it alone writes."""
BEAT = 20.0
STALE = 90.0

_claimed: set[str] = set()


@contextmanager
def held(store: Store, config: Config) -> Iterator[None]:
    """Hold the store for this process; within it, again, at no cost. Raises StoreError where another has it: on object
    storage, where that one has another configuration."""
    with store.locked() as alone:
        if alone or store.uri in _claimed:
            yield
            return
        with claimed(store, digest(config.model_dump(mode="json"))):
            _claimed.add(store.uri)
            try:
                yield
            finally:
                _claimed.discard(store.uri)


@contextmanager
def claimed(store: Store, configuration: str, run: str = RUN) -> Iterator[None]:
    """The marker of `run` lies in the store; `configuration`: its digest. Raises StoreError beside another's."""
    marker, stop = f"running/{run}.json", threading.Event()

    def beat() -> None:
        store.write_json(
            marker, {"configuration": configuration, "process": f"process {os.getpid()} on {socket.gethostname()}"}
        )

    def go_on() -> None:
        while not stop.wait(BEAT):
            with suppress(OSError, StoreError):  # the next one may come through
                beat()

    beat()
    beating = threading.Thread(target=go_on, daemon=True)
    try:
        _refuse_beside_another(store, configuration, f"{run}.json")
        beating.start()
        yield
    finally:
        stop.set()
        if beating.ident:
            beating.join()
        with suppress(OSError):
            store.remove(marker)


def _refuse_beside_another(store: Store, configuration: str, mine: str) -> None:
    written = store.written("running")
    now = written.pop(mine)
    for name, then in written.items():
        age = now - then
        if age > STALE:
            with suppress(OSError):
                store.remove(f"running/{name}")
            continue
        found = store.find_mapping(f"running/{name}")
        if found and found.get("configuration") != configuration:
            raise StoreError(
                f"{store.uri} is in use by {found.get('process', 'another process')}, with another configuration; wait "
                f"for it, stop it, or choose another 'output'. If it was killed, try again in {STALE - age:.0f} s."
            )

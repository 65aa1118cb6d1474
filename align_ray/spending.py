"""What a run has cost, and when it must stop.

The unit is the worker-second: the time for which a stage holds a worker (a GPU where GPUs are used, else a CPU), busy
or not.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from align_ray.claims import RUN
from align_ray.config import Config
from align_ray.errors import CapReached
from align_ray.store import Store


def costs(store: Store) -> dict[str, Any]:
    """By stage, what it was made from and what it cost; {} before the first stage.

    Every process keeps its own file in OUTPUT/costs, which nobody else writes, so that two that work on one bucket
    lose nothing of each other: `spent` is the sum over all, the rest is the last one's. cost.json is that for people;
    older versions have it alone."""
    names = sorted(store.names("costs"))
    if not names:
        return store.find_mappings("cost.json")
    rows = [row for name in names for row in store.find_mappings(f"costs/{name}").items()]
    found: dict[str, Any] = {}
    for work, row in sorted(rows, key=lambda row: row[1].get("at", 0.0)):
        spent = found.get(work, {}).get("spent", 0.0) + row.get("spent", 0.0)
        found[work] = {k: v for k, v in row.items() if k != "at"} | {"spent": spent}
    return found


def charge(store: Store, work: str, row: dict[str, Any], spent: float) -> None:
    """Add `spent` worker-seconds of this process to a stage, and make `row` what its last run came to."""
    earlier = store.find_mappings("cost.json")  # looked at first: without a file in costs/ it is an older version's
    if earlier and not store.names("costs"):
        store.write_json("costs/before.json", earlier)
    mine = f"costs/{RUN}.json"
    own = store.find_mappings(mine)
    spent += own.get(work, {}).get("spent", 0.0)
    store.write_json(mine, own | {work: {**row, "spent": spent, "at": time.time()}})
    store.write_json("cost.json", costs(store))


def price(config: Config, worker_seconds: float) -> float | None:
    """In the currency of the configuration; None without a price."""
    return None if config.cost.price_per_hour is None else worker_seconds / 3600 * config.cost.price_per_hour


_until: ContextVar[float | None] = ContextVar("until", default=None)


@contextmanager
def spending(config: Config, store: Store, workers: int) -> Iterator[None]:
    """While it is open, `seconds_left` counts down to the moment when so many workers have used up `cost.max_cost`.

    What earlier stages and earlier runs on this output have cost counts. Raises CapReached where nothing is left.
    """
    cost = config.cost
    until = None
    if cost.max_cost and cost.price_per_hour:
        spent = sum(c.get("spent", 0.0) for c in costs(store).values())
        left = (cost.max_cost / cost.price_per_hour * 3600 - spent) / max(1, workers)
        if left <= 0:
            raise CapReached(_stopped(config))
        until = time.time() + left
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


def deadline() -> float | None:
    """When the stage under way must stop, in seconds since the epoch, so that workers elsewhere can tell; None
    without a cap."""
    return _until.get()


def seconds_left() -> float | None:
    """Until `deadline`; None without a cap."""
    until = _until.get()
    return None if until is None else until - time.time()


def check_cap(config: Config) -> None:
    """Raise CapReached where the stage under way has used up `cost.max_cost`."""
    left = seconds_left()
    if left is not None and left <= 0:
        raise CapReached(_stopped(config))


def _stopped(config: Config) -> str:
    cost = config.cost
    return (
        f"stopped at cost.max_cost ({cost.max_cost:g} {cost.currency}); what is finished is stored in "
        f"{config.output}: raise "
        "the cap and run the same command to go on."
    )

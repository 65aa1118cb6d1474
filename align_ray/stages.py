"""What a stage is: its result file, what it reads, what determines it, and how it is run, timed, priced and tracked."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from align_ray.config import TRAINED, digest
from align_ray.context import Study
from align_ray.errors import UserError
from align_ray.reporting.results import RESULTS
from align_ray.reporting.tracking import Tracker, start_tracking, track
from align_ray.runtime import capacity, connect
from align_ray.spending import costs, price, spending


def alone(stage: Callable[..., Any]) -> Callable[..., Any]:
    """No other run may use the study's store meanwhile (see `Store.locked`)."""

    @functools.wraps(stage)
    def held(study: Study, *args: Any, **options: Any) -> Any:
        with study.store.locked():
            return stage(study, *args, **options)

    return held


def tracking(study: Study) -> Tracker:
    """The study's MLflow parent run."""
    return start_tracking(study.config, study.store)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's result file, the stages it reads and the fields of the configuration it depends on."""

    result: str
    needs: tuple[str, ...]
    fields: tuple[str, ...]


FORMAT = 1
"""Of the stages' results; one of another format, of an older or newer version, is made again."""
SAMPLE_FIELDS = ("targets", "candidates", "sampling", "embedding", "seed", "finetune.tokens", "finetune.eval_tokens")
STAGES = {
    "embed": Stage("corpora", (), SAMPLE_FIELDS),
    "align": Stage("alignment", ("embed",), ()),
    "contamination": Stage("contamination", ("embed",), ()),
    "samples": Stage("samples", ("embed",), ()),
    "search": Stage("search", ("embed",), ("search",)),
    "finetune": Stage("finetune", ("search",), ("finetune",)),
    "validate": Stage("validation", ("search",), ("finetune",)),
    "predict": Stage("prediction", ("embed",), ("finetune", "predict")),
}


def stored(study: Study, stage: str) -> dict[str, Any] | None:
    """The stored result of a stage; None where there is none or it was made from another configuration or sample."""
    made = costs(study.store).get(stage, {})
    if made.get("made_from") != _key(study, stage) or made.get("format", FORMAT) != FORMAT:
        return None
    return study.store.find_json(f"{STAGES[stage].result}.json")


def _key(study: Study, stage: str) -> str:
    """Digest of all that determines a stage's result."""
    config = study.config.model_dump(mode="json")
    values = []
    for field in STAGES[stage].fields:
        value = config
        for part in field.split("."):
            value = value[part]
        values.append(value)
    if stage == "search":
        values[0] = {**values[0], "sampler": "tpe"}  # a field of 0.1: what its searches found still belongs to them
    if stage == "search" and study.config.search.objective in TRAINED:
        values.append(config["finetune"])
    inputs: list[Any] = [_key(study, needed) for needed in STAGES[stage].needs]
    if not inputs:
        samples = study.store.find_mappings("corpora.json")
        inputs = [study.probe.digest, {name: counts.get("sample_digest") for name, counts in samples.items()}]
    return digest([values, inputs])


def need(study: Study, stage: str) -> dict[str, Any]:
    """The stored result of a stage; raises UserError where it has none for this configuration."""
    result = stored(study, stage)
    if result is None:
        raise UserError(
            f"{study.config.output} holds no result of the stage '{stage}' for this configuration; run that stage first."
        )
    return result


@alone
def timed(study: Study, stage: str, work: Callable[[], dict[str, Any]], on_workers: bool = False) -> Any:
    """Run a stage whose needs are met; record what it cost and what its result belongs to in cost.json; track its result."""
    for needed in STAGES[stage].needs:
        need(study, needed)
    tracker = tracking(study)
    with tracker.running():
        if on_workers:
            connect(study.config.cluster, study.say)
        start, room = time.perf_counter(), capacity(study.config.cluster) if on_workers else None
        if room and room.now < 1:
            study.say(f"no worker is there yet: waiting for the cluster to start one, at most {room.most}")
        result: dict[str, Any] | None = None
        try:
            with spending(study.config, study.store, room.most) if room else nullcontext():
                result = work()
        finally:
            seconds = time.perf_counter() - start
            record(study, stage, seconds, _held(study, room.now) if room else 0, result)
        track(tracker, study.config, study.store, stage, result)
    study.say(f"{stage}: {seconds:.1f} s")
    return RESULTS.get(stage, dict)(result)


@contextmanager
def charged(study: Study, work: str) -> Iterator[None]:
    """Connect to Ray; what runs within counts towards `cost.max_cost` and is recorded in cost.json, but is no stage of the study.
    Raises CapReached where nothing is left."""
    with study.store.locked():
        connect(study.config.cluster, study.say)
        start, room = time.perf_counter(), capacity(study.config.cluster)
        try:
            with spending(study.config, study.store, room.most):
                yield
        finally:
            record(study, work, time.perf_counter() - start, _held(study, room.now), None)


def _held(study: Study, before: int) -> int:
    """Workers held: those there were `before` or, where the cluster has grown, those there are."""
    with suppress(Exception):  # the cluster may be what failed
        return max(before, capacity(study.config.cluster).now)
    return before


def record(study: Study, stage: str, seconds: float, workers: int, result: dict[str, Any] | None) -> None:
    """Write to cost.json what a stage cost and, where it has a result, what that was made from.

    `seconds` and `worker_seconds` are of the last run, `spent` of all runs, also those that failed."""
    found = costs(study.store)
    before = found.get(stage, {})
    made = {"made_from": _key(study, stage), "format": FORMAT} if result is not None else {}
    if result is not None and stage == "embed":
        rate = {k: result["work"][k] for k in ("tokens", "actor_seconds")}
        made |= result["work"] | {"rate": rate if rate["tokens"] else before.get("rate")}
    held = seconds * workers
    now = {
        "seconds": seconds,
        "worker_seconds": held,
        "cost": price(study.config, held),
        "spent": before.get("spent", 0.0) + held,
    }
    study.store.write_json("cost.json", found | {stage: (made or before) | now})

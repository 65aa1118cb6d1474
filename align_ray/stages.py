"""What a stage is, and how it is run: one declaration at its function, from which commands, jobs, tracking and report
follow.

    @stage("alignment", Alignment, needs=(embed,), track=tracking.alignment)
    def align(study: Study) -> dict[str, Any]: ...

makes `align` a Stage. Calling it checks its needs, connects to Ray, runs the function, keeps the result under the
digest of all that determines it (OUTPUT/answers), tracks it and records what it cost. So another answer of one study
lies beside the first.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Generic, TypeVar

from align_ray import __version__
from align_ray.answers import INDIFFERENT, Answer, answers, differences, remember
from align_ray.claims import held
from align_ray.config import Config, digest
from align_ray.context import Study
from align_ray.errors import UserError
from align_ray.fisher.settings import PROCEDURE
from align_ray.observed import observed
from align_ray.reporting.result import Result
from align_ray.reporting.tracking import Tracker, start_tracking
from align_ray.runtime import capacity, connect, machines
from align_ray.spending import charge, costs, price, spending
from align_ray.store import Store

FORMAT = 2
"""Format of the stages' results; one of another format, of an older or newer version, is made again."""

Found = TypeVar("Found", bound=Result)


@dataclasses.dataclass(frozen=True, eq=False)
class Stage(Generic[Found]):
    """A stage of a study; call it with a Study to run it."""

    name: str
    """The name of its function, its command and its job script."""
    work: Callable[..., dict[str, Any]]
    """Gives the result as a JSON value."""
    file: str
    """The last result is OUTPUT/FILE.json, for people (of `embed` its counts); every one is
    OUTPUT/answers/FILE-DIGEST.json."""
    result: type[Found]
    needs: tuple["Stage[Any]", ...]
    """Stages whose result it reads."""
    fields: tuple[str, ...]
    """Fields of the configuration that determine the result beside those of the stages it needs."""
    further: Callable[[Study], tuple[str, ...]]
    """Fields that do so for some configurations alone."""
    check: Callable[[Study], None]
    """Raises a UserError where the configuration does not allow the stage, before anything is started."""
    track: Callable[[Tracker, Config, Store, Any], None]
    """Writes the result to MLflow."""
    on_workers: bool
    """Whether it needs Ray."""

    def __call__(self, study: Study, *arguments: Any, **options: Any) -> Found:
        with held(study.store, study.config):
            return _run(self, study, arguments, options)


def stage(
    file: str,
    result: type[Found],
    needs: tuple[Stage[Any], ...] = (),
    fields: tuple[str, ...] = (),
    further: Callable[[Study], tuple[str, ...]] = lambda study: (),
    check: Callable[[Study], None] = lambda study: None,
    track: Callable[[Tracker, Config, Store, Any], None] = lambda *_: None,
    on_workers: bool = True,
) -> Callable[[Callable[..., dict[str, Any]]], Stage[Found]]:
    """Declare a function of a Study a stage (see `Stage` for the fields)."""

    def declared(work: Callable[..., dict[str, Any]]) -> Stage[Found]:
        made = Stage(work.__name__, work, file, result, needs, fields, further, check, track, on_workers)
        object.__setattr__(made, "__doc__", work.__doc__)
        return made

    return declared


def stored(study: Study, wanted: Stage[Found]) -> Found | None:
    """The result of a stage; None where there is none of this configuration and sample.

    Where trainings are many, those over another number of seeds say the same with other intervals: the result over
    most of them is taken where there is none over the seeds asked for."""
    return next((found for _, found in _stored(study, wanted)), None)


def found_key(study: Study, wanted: Stage[Any]) -> str | None:
    """The key of what `stored` gives."""
    return next((key for key, _ in _stored(study, wanted)), None)


def _stored(study: Study, wanted: Stage[Found]) -> Iterator[tuple[str, Found]]:
    for seeds in _seeds(study, wanted):
        same = seeds == study.config.finetune.seeds
        key = answer_key(study if same else study.changed(finetune={"seeds": seeds}), wanted)
        # a torn file, or one of something else, counts as not there
        found = study.store.find(_answer(wanted, key), lambda data: wanted.result.parse(json.loads(data)))
        if found is not None:
            yield key, found


def _seeds(study: Study, wanted: Stage[Any]) -> list[int]:
    """Numbers of seeds that a stage may have been run over: the one asked for, then those of other answers."""
    asked = study.config.finetune.seeds
    if SEEDS not in wanted.fields:
        return [asked]
    others = {answer.config["finetune"]["seeds"] for answer in answers(study.store)} - {asked}
    return [asked, *sorted(others, reverse=True)]


SEEDS = "finetune.seeds"
"""The field by which results over all seeds of a training are told apart."""


def need(study: Study, wanted: Stage[Found]) -> Found:
    """The result of a stage; raises UserError where it has none for this configuration, which says what is different
    in the nearest one that has."""
    result = stored(study, wanted)
    if result is None:
        raise UserError(
            f"{study.config.output} holds no result of the stage '{wanted.name}' for this configuration"
            f"{_nearest(study, wanted)}; run that stage first."
        )
    return result


def _nearest(study: Study, wanted: Stage[Any]) -> str:
    """What tells this configuration from the nearest answer that has a result of the stage; "" where none has."""
    config, fields = study.config.model_dump(mode="json"), _fields(study, wanted)
    apart: list[tuple[Answer, list[str]]] = [
        (one, [str(d) for d in differences(config, one.config, fields)])
        for one in answers(study.store)
        if wanted.file in one.results
    ]
    if not apart:
        return ""
    answer, differing = min(apart, key=lambda found: len(found[1]))
    if not differing:
        return ": that of the same fields belongs to other text than what was drawn last, or to another probe"
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f": the nearest, answer {answer.id}, has {', '.join(differing[:3])}{more}"


def _fields(study: Study, wanted: Stage[Any]) -> tuple[str, ...]:
    """All fields of the configuration that a stage's result depends on, those of what it needs included."""
    own = [*wanted.fields, *wanted.further(study), "probe"]
    return tuple(dict.fromkeys([*own, *(f for needed in wanted.needs for f in _fields(study, needed))]))


def answer_key(study: Study, wanted: Stage[Any]) -> str:
    """Digest of all that determines a stage's result: fields of the configuration, the probe, the rows that are on
    disk now, and the batches that were embedded of them, so that a result is found only beside what it was made from.
    """
    config = study.config.model_dump(mode="json")
    fields, values = [*wanted.fields, *wanted.further(study)], []
    if "finetune" in fields and study.config.replay:
        fields.append("replay")  # part of every training
    for field in fields:
        value = config
        for part in field.split("."):
            value = value[part]
        values.append(_that_matters(field, value))
    inputs: list[Any] = [answer_key(study, needed) for needed in wanted.needs]
    if "finetune" in fields:
        inputs.append(study.model.digest)  # the folder's name is in the fields, not what lies there now
    for needed in wanted.needs:
        if not needed.needs:  # the embedding: a cap may have ended it early, and `auto` is another dtype on a GPU
            found = study.store.find_json(_answer(needed, answer_key(study, needed)))
            work = found.get("work", {}) if isinstance(found, dict) else {}
            inputs.append([work.get("key"), work.get("used")])
    if not inputs:
        samples = study.store.find_mappings("corpora.json")
        inputs = [study.probe.digest, {name: counts.get("rows_digest") for name, counts in samples.items()}]
        inputs += [PROCEDURE] if study.config.embedding.estimator == "reference" else []
    return digest([FORMAT, values, inputs])


def _that_matters(section: str, value: Any) -> Any:
    ignored = INDIFFERENT.get(section, ())
    return {k: v for k, v in value.items() if k not in ignored} if ignored else value


def _answer(wanted: Stage[Any], key: str) -> str:
    return f"answers/{wanted.file}-{key}.json"


def _run(wanted: Stage[Found], study: Study, arguments: tuple[Any, ...], options: dict[str, Any]) -> Found:
    wanted.check(study)
    for needed in wanted.needs:
        need(study, needed)
    tracker = dataclasses.replace(start_tracking(study.config, study.store), since=int(time.time() * 1000))
    with tracker.running():
        if wanted.on_workers:
            connect(study.config.cluster, study.say)
        start, room = time.perf_counter(), capacity(study.config.cluster) if wanted.on_workers else None
        if room and room.now < 1:
            study.say(f"no worker is there yet: waiting for the cluster to start one, at most {room.most}")
        made: dict[str, Any] = {}
        with observed(study, wanted.name, room) as log:
            try:
                with spending(study.config, study.store, room.most) if room else nullcontext():
                    result = wanted.result.parse(wanted.work(study, *arguments, **options))
                known = stored(study, wanted)
                kept = known if known is not None and known.covers(result) else result
                study.store.write_json(_answer(wanted, answer_key(study, wanted)), kept.dump())
                remember(study.store, study.config, __version__, _keys(study, wanted))
                study.store.write_bytes("config.yaml", study.config.to_yaml().encode())
                if wanted.needs:  # the sample's counts are a file of their own already
                    study.store.write_json(f"{wanted.file}.json", kept.dump())
                made = result.recorded()
            finally:
                seconds = time.perf_counter() - start
                log.add("spent", **record(study, wanted.name, seconds, _held(study, room.now) if room else 0, made))
        wanted.track(tracker, study.config, study.store, result)
    study.say(f"{wanted.name}: {seconds:.1f} s")
    return result


def _keys(study: Study, wanted: Stage[Any]) -> dict[str, str]:
    """By file, the keys of a stage's result and of those it was made from."""
    below = {file: key for needed in wanted.needs for file, key in _keys(study, needed).items()}
    return {**below, wanted.file: answer_key(study, wanted)}


@contextmanager
def charged(study: Study, work: str) -> Iterator[None]:
    """Connect to Ray; what runs within counts towards `cost.max_cost` and is recorded in cost.json, but is no stage
    of the study. Raises CapReached where nothing is left."""
    with held(study.store, study.config):
        connect(study.config.cluster, study.say)
        start, room = time.perf_counter(), capacity(study.config.cluster)
        try:
            with spending(study.config, study.store, room.most):
                yield
        finally:
            record(study, work, time.perf_counter() - start, _held(study, room.now), {})


def _held(study: Study, before: int) -> int:
    """Workers held: those there were `before` or, where the cluster has grown, those there are."""
    with suppress(Exception):  # the cluster may be what failed
        return max(before, capacity(study.config.cluster).now)
    return before


def record(study: Study, work: str, seconds: float, workers: int, made: dict[str, Any]) -> dict[str, Any]:
    """Write to cost.json what work cost and, where it has a result, what is kept of that (`made`); returns the cost.

    `seconds` and `worker_seconds` are of the last run, `spent` of all runs, also those that failed; `ended`, `machine`
    and `version` say when, where and by what."""
    before = costs(study.store).get(work, {})
    used = seconds * workers
    now = {
        "seconds": seconds,
        "worker_seconds": used,
        "cost": price(study.config, used),
        "ended": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machines() if workers else None,
        "version": __version__,
    }
    if made:
        made = {**made, "rate": made.get("rate") or before.get("rate")}
    charge(study.store, work, {**(made or before), **now}, used)
    return {**now, "workers": workers, "currency": study.config.cost.currency}

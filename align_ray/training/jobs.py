"""Training jobs on Ray Train: each starts from the model's weights (or from random ones), trains on given sequences,
and measures the loss of every target's held-out sequences before and after.

The jobs are shared out among as many Ray Train runs as the cluster holds at once (starting one costs ten seconds of
CPU), inside a Ray Tune experiment. A finished job's losses are in the store, keyed by all that determines them, and are
not computed again.
"""

import dataclasses
import posixpath
from collections.abc import Callable
from typing import Any

import numpy as np

from align_ray import progress
from align_ray.config import Config, digest
from align_ray.context import Study
from align_ray.corpora.harness import NATS
from align_ray.corpora.items import read_items
from align_ray.corpora.rows import Rows
from align_ray.corpora.sample import read_sample
from align_ray.fisher.probe import has_dropout
from align_ray.runtime import Capacity, capacity
from align_ray.spending import check_cap, seconds_left
from align_ray.store import Store
from align_ray.training.experiment import LAYOUT, drop_torn, experiment
from align_ray.training.loop import done_to, finished, rungs_file, train_loop
from align_ray.training.state import state_file

TRAINER = 2
"""Version of what a training does; another one's losses are not taken for this one's."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: its rows, the learning rate, the seed of the order (and of random weights), and the general text
    of which every batch gets its share."""

    rows: Rows
    learning_rate: float
    seed: int
    replay: Rows | None = None


@dataclasses.dataclass(frozen=True)
class Losses:
    """A target's loss on its held-out rows, float64 [m], nats per token, before and after a job."""

    before: np.ndarray
    after: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model makes of a task's n items before and after a job: the continuous score, float64 [n], nats per byte,
    higher is better, and whether each is answered, bool [n]. Of a task of lm-eval whose metric alone is known (`unit`
    is empty then) both are the metric."""

    before: np.ndarray
    after: np.ndarray
    right_before: np.ndarray
    right_after: np.ndarray
    unit: str = NATS


@dataclasses.dataclass(frozen=True)
class Whole:
    """A metric of all items of a task together before and after a job, higher is better, with its standard errors."""

    before: float
    after: float
    error_before: float
    error_after: float


@dataclasses.dataclass(frozen=True)
class Rung:
    """Losses by target on the validation half of its held-out rows, float64 [m // 2], nats per token, after so many
    steps."""

    steps: int
    losses: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a job came to: losses by target, those at every rung (the last one is the end, general text is there under
    the corpus' name), the seconds of the training alone, and its steps with the loss of their batch."""

    losses: dict[str, Losses]
    rungs: list[Rung]
    seconds: float
    training: list[tuple[int, float]]
    general: Losses | None = None
    """On general text, where the study has some for replay: what the training made the model forget."""
    tasks: dict[str, Answers] = dataclasses.field(default_factory=dict)
    """By target that has a task whose items are scored."""
    wholes: dict[str, Whole] = dataclasses.field(default_factory=dict)
    """By target that has a task of which only a metric of all items is known."""


def train_jobs(study: Study, heldout: dict[str, Rows], jobs: list[Job], scored: bool = True) -> list[Trained]:
    """Train every job whose result is not in the store; returns what every job came to.

    `heldout`: rows by target; `scored`: whether targets' tasks are wanted (see `job_keys`). Raises
    RuntimeError where Ray gives a training up, CapReached where `cost.max_cost` is used up.
    """
    keys = _train_missing(study, heldout, jobs, None, scored)
    return [_trained(study.store.read_json(f"finetune/{key}.json"), heldout) for key in keys]


@dataclasses.dataclass(frozen=True)
class SoFar:
    """What a job came to at a rung: the losses before by target, float64 [m], those at the rungs so far, and by target
    that has a task what the model made of it then, where the job was stopped there (not at the first rung); see
    `Trained`."""

    before: dict[str, np.ndarray]
    rungs: list[Rung]
    tasks: dict[str, Answers]
    wholes: dict[str, Whole]


def train_to_rung(study: Study, heldout: dict[str, Rows], jobs: list[Job], rung: int) -> list[SoFar]:
    """Train every job to a rung of `loop.RUNGS`, from where the store has it. Errors: see `train_jobs`."""
    found = []
    for key in _train_missing(study, heldout, jobs, rung):
        whole = study.store.find_json(f"finetune/{key}.json")
        if whole is not None:  # at its end; what a rung left behind is older
            part = {"before": {t: r["before"] for t, r in whole["targets"].items()}, **whole}
            part["tasks_before"] = {t: r["before"] for t, r in whole.get("tasks", {}).items()}
        else:
            part = study.store.read_json(rungs_file(key))
        before = {t: np.array(v) for t, v in part["before"].items()}
        at = part.get("tasks_at", {}).get(str(rung), {})
        tasks = _tasks({t: {"before": part["tasks_before"][t], "after": after} for t, after in at.items()})
        found.append(SoFar(before, _rungs(part["rungs"])[: rung + 1], *tasks))
    return found


def _train_missing(
    study: Study, heldout: dict[str, Rows], jobs: list[Job], rung: int | None, scored: bool = True
) -> list[str]:
    """Train what is not in the store, to a rung or to the end; returns the jobs' keys."""
    store, keys, kept = study.store, job_keys(study, heldout, jobs, scored), study.config.finetune.keep_weights
    study = study if scored else without_tasks(study)
    todo = {k: {"key": k, **vars(job)} for k, job in zip(keys, jobs, strict=True) if not done_to(store, k, rung, kept)}
    if todo:
        _train(study, heldout, list(todo.values()), rung)
        check_cap(study.config)
        # Ray Tune does not go on with an experiment that it has finished, whatever became of its results
        lost = [job for key, job in todo.items() if not done_to(store, key, rung, kept)]
        if lost:
            _train(study, heldout, lost, rung, resume=False)
    return keys


def job_keys(study: Study, heldout: dict[str, Rows], jobs: list[Job], scored: bool = True) -> list[str]:
    """What the jobs' results are stored under (see `job_key`). Not `scored`: a result with the scores of targets' tasks
    where it is there, else one without, which takes less."""
    fixed, share = common_inputs(study, heldout), replay_share(study)
    keys = [job_key(fixed, job, share) for job in jobs]
    if scored:
        return keys
    without, kept = job_keys(without_tasks(study), heldout, jobs), study.config.finetune.keep_weights
    return [k if finished(study.store, k, kept) else less for k, less in zip(keys, without, strict=True)]


def without_tasks(study: Study) -> Study:
    """The study for trainings of which the losses alone are wanted."""
    targets = [target.model_copy(update={"task": None}) for target in study.config.targets]
    return dataclasses.replace(study, config=study.config.model_copy(update={"targets": targets}))


def general_rows(study: Study) -> dict[str, Rows]:
    """Held-out rows of the study's general text, by the name of its corpus; none without replay."""
    replay = study.config.replay
    if replay is None or not len(rows := read_sample(study.store, replay.name).heldout):  # an older sample has none
        return {}
    return {replay.name: rows}


def common_inputs(study: Study, heldout: dict[str, Rows]) -> list[Any]:
    """What determines the results of all jobs alike, as a JSON value."""
    settings, heldout = study.config.finetune, general_rows(study) | heldout
    return [
        TRAINER + has_dropout(study.model),  # version 3 draws it step by step; without dropout it is version 2
        study.model.digest,
        settings.epochs,
        settings.batch_size,
        settings.scratch,
        {name: rows.digest() for name, rows in heldout.items()},
        settings.lora_rank,
        *_later_inputs(study),
    ]


def _later_inputs(study: Study) -> list[Any]:
    """What came later, where it is not at its default: results from before keep their keys."""
    settings = study.config.finetune
    tasks = {name: items.digest() for name, items in read_items(study).items()}
    changed: dict[str, Any] = {"tasks": tasks} if tasks else {}
    if settings.dtype != "float32":
        changed["dtype"] = settings.dtype
    if settings.lora_rank is not None and settings.lora_targets != "all-linear":
        changed["lora_targets"] = settings.lora_targets
    return [changed] if changed else []


def job_key(fixed: list[Any], job: Job, replay_share: float) -> str:
    """Digest of all that determines a job's results; `fixed` from `common_inputs`."""
    share = [job.replay.digest(), replay_share] if job.replay is not None else None
    return digest([fixed, share, job.rows.digest(), job.learning_rate, job.seed])


def heldout_probabilities(
    study: Study, heldout: dict[str, Rows], jobs: list[Job], scored: bool
) -> dict[str, np.ndarray]:
    """Probability of every held-out token after each job, by target float32 [jobs, m, T - 1], NaN where a token does
    not count; trains what is missing. `scored`: see `train_jobs`."""
    from safetensors.numpy import load

    train_jobs(study, heldout, jobs, scored)
    keys = job_keys(study, heldout, jobs, scored)
    parts = [load(study.store.read_bytes(f"finetune/{key}.safetensors")) for key in keys]
    return {t: np.exp(-np.stack([p[t] for p in parts])) for t in heldout}


def _trained(stored: dict[str, Any], heldout: dict[str, Rows]) -> Trained:
    losses = {t: Losses(np.array(r["before"]), np.array(r["after"])) for t, r in stored["targets"].items()}
    general = [losses.pop(name) for name in [*losses] if name not in heldout]
    kept = general[0] if general else None
    tasks = _tasks(stored.get("tasks", {}))
    return Trained(losses, _rungs(stored["rungs"]), stored["seconds"], stored["training"], kept, *tasks)


def _tasks(stored: dict[str, Any]) -> tuple[dict[str, Answers], dict[str, Whole]]:
    whole = {t for t, r in stored.items() if isinstance(r["after"], dict) and "whole" in r["after"]}
    answers = {t: _answers(r) for t, r in stored.items() if t not in whole}
    return answers, {t: _whole(stored[t]["before"], stored[t]["after"]) for t in stored if t in whole}


def _whole(before: dict[str, Any], after: dict[str, Any]) -> Whole:
    return Whole(before["whole"], after["whole"], before["error"], after["error"])


def _answers(stored: dict[str, Any]) -> Answers:
    (before, right_before), (after, right_after) = _scored(stored["before"]), _scored(stored["after"])
    unit = stored["after"].get("unit", NATS) if isinstance(stored["after"], dict) else NATS
    return Answers(before, after, right_before, right_after, unit)


def _scored(stored: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and which items are answered; an earlier version stored margins alone."""
    if isinstance(stored, dict):
        return np.array(stored["score"]), np.array(stored["right"])
    return np.array(stored), np.array(stored) > 0


def _rungs(stored: list[dict[str, Any]]) -> list[Rung]:
    return [Rung(r["steps"], {t: np.array(v) for t, v in r["losses"].items()}) for r in stored]


def _train(
    study: Study, heldout: dict[str, Rows], jobs: list[dict[str, Any]], rung: int | None, resume: bool = True
) -> None:
    """Share the jobs out among as many Ray Train runs as the cluster holds at once, inside one Ray Tune experiment."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    config, store, kept = study.config, study.store, study.config.finetune.keep_weights
    room = capacity(config.cluster)
    slots = min(len(jobs), runs_at_once(config, room))
    storage = store.place("train")
    settings = loop_settings(study, heldout) | {"rung": rung}
    wanted = [rung, kept]  # a finished experiment of other wishes is not gone on with
    what = [*wanted, *(job["key"] for job in jobs)]

    def run(share: list[dict[str, Any]]) -> None:
        name = f"share-{digest([*wanted, *(job['key'] for job in share)])}"
        drop_torn(f"{storage}/{name}/checkpoint_manager_snapshot.json")
        TorchTrainer(
            train_loop,
            train_loop_config={**settings, "jobs": share},
            scaling_config=scaling(config, room.use_gpu),
            run_config=train.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=2),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    def trial(point: dict[str, int], jobs: list[dict[str, Any]]) -> None:
        train_share(jobs[point["share"] :: slots], run, lambda share: reached(store, share, rung, kept))

    tuner = experiment(
        storage,
        f"finetune-{digest([LAYOUT, slots, what, config.cost.max_cost])}",
        tune.with_parameters(trial, jobs=jobs),  # through the object store: rows of many jobs are megabytes
        {"share": tune.grid_search(list(range(slots)))},
        tune.TuneConfig(max_concurrent_trials=slots, time_budget_s=seconds_left()),
        driver_resources(),
        # under a cap always anew: Tune restores what was left of the old time budget, and finished trainings are in the
        # store
        resume=resume and config.cost.max_cost is None,
        callbacks=[job_counter()],
    )
    with progress.steps("trainings done", len(jobs)):
        results = tuner.fit()
    for error in results.errors:
        raise RuntimeError(f"fine-tuning failed: {error}") from error


def train_share(
    share: list[dict[str, Any]],
    run: Callable[[list[dict[str, Any]]], None],
    reached: Callable[[list[dict[str, Any]]], list[tuple[bool, float | None]]],
) -> None:
    """Train a share's jobs whatever dies meanwhile: failures count for the job that was under way, and from anew once
    a training went on.

    `run`: trains jobs one after the other, and gives up with Ray Train's TrainingFailedError; `reached`: see `reached`.
    A job that cannot be brought forward is left behind, and its error raised when the others are done; where the next
    one cannot either it is not the job's fault, and raised at once.
    """
    from ray.train import TrainingFailedError

    failed, went_on = None, True
    while share := [job for job, (done, _) in zip(share, reached(share), strict=True) if not done]:
        before = reached(share)
        try:
            run(share)
            break
        except TrainingFailedError as error:
            if reached(share) != before:
                went_on = True
            elif not went_on:
                raise
            else:
                failed, went_on, share = error, False, share[1:]
    if failed is not None:
        raise failed


def reached(store: Store, share: list[dict[str, Any]], rung: int | None, kept: bool) -> list[tuple[bool, float | None]]:
    """How far jobs are: whether each is done (see `loop.done_to`), and when its last checkpoint was written."""
    written = store.written("finetune/state")
    return [
        (done_to(store, j["key"], rung, kept), written.get(posixpath.basename(state_file(j["key"])))) for j in share
    ]


def loop_settings(study: Study, heldout: dict[str, Rows]) -> dict[str, Any]:
    """What `train_loop` is told of the study; the jobs come with it."""
    measured = general_rows(study) | heldout
    given = {"located": study.model, "store": study.store, "targets": measured, "replay_share": replay_share(study)}
    given["tasks"] = read_items(study)
    return given | study.config.finetune.model_dump()


def replay_share(study: Study) -> float:
    """Of the rows of every batch."""
    return study.config.replay.share if study.config.replay else 0.0


def job_counter() -> Any:
    """A Ray Tune callback that counts every result of a trial as a step of the progress."""
    from ray import tune

    class JobCounter(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            progress.step()

    return JobCounter()


def runs_at_once(config: Config, room: Capacity) -> int:
    """Training runs that the cluster holds together."""
    share = config.finetune.gpus_per_worker if room.use_gpu else 1.0
    return max(1, int(room.most / (config.finetune.workers * share)))


def scaling(config: Config, use_gpu: bool) -> Any:
    """Ray Train's ScalingConfig of one run."""
    from ray import train

    part = {"GPU": config.finetune.gpus_per_worker} if use_gpu else {"CPU": 1}
    return train.ScalingConfig(num_workers=config.finetune.workers, use_gpu=use_gpu, resources_per_worker=part)


def driver_resources() -> dict[str, float]:
    """Where the cluster offers `driver` (an on-demand head), runs are driven from there, never from a spot node."""
    import ray

    return {"driver": 1} if ray.cluster_resources().get("driver", 0) >= 1 else {"cpu": 0.1}

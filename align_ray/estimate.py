"""What a run will cost, before anything is started.

An estimate counts floating point operations; how many of them a worker does in a second is measured by what the store
holds already, or assumed, which the estimate says.
"""

import dataclasses
import os
from typing import Any

from align_ray.config import TRAINED, Config
from align_ray.context import Study
from align_ray.corpora.items import read_items
from align_ray.corpora.sample import replay_tokens
from align_ray.corpora.sources import plan_fragments
from align_ray.embedding.scores import SAMPLES
from align_ray.fisher.estimators import stored_numbers
from align_ray.fisher.probe import parameters, random_model
from align_ray.mixture.check import CHECKED
from align_ray.mixture.predicted import RUNS
from align_ray.spending import costs, price
from align_ray.training.finetune import MIXED
from align_ray.training.loop import RUNGS
from align_ray.training.memory import planned_memory
from align_ray.training.rows import scored_alone
from align_ray.training.step import learned, with_adapters
from align_ray.training.validate import VALIDATED

EXACT_PASSES = (1.3, 0.9)
"""Forward passes that the exact estimator costs: once, and per label draw: 2.2 for R=1 and 4.9 for R=4
(benchmarks/README.md measured 2.19 and 4.50 in float32, 2.65 and 6.11 in bfloat16)."""
REFERENCE_PASSES = 21.0
"""The same of the published procedure, per draw."""
TRAINING_PASSES = 3.0
MEASURED = 4.0
"""Times that a training measures the held-out text: before, after, and half of it at four rungs."""
ASSUMED_TFLOPS = {False: 0.1, True: 50.0}
"""What a CPU and a GPU achieve where nothing was measured."""
START_SECONDS = 10.0
"""A pool of workers needs so long before it works."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage has to do: tokens that go through a model, and the floating point operations of it."""

    tokens: int
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.flops + other.flops)


def passes(config: Config) -> float:
    """Forward passes per token of the estimator."""
    settings = config.embedding
    if settings.estimator == "reference":
        return REFERENCE_PASSES * settings.draws
    return EXACT_PASSES[0] + EXACT_PASSES[1] * (settings.draws if settings.estimator == "exact" else 0)


def planned_work(study: Study) -> dict[str, Work]:
    """The work of every stage of `run` that needs workers, and of `validate`, at most: corpora may be smaller than the
    configuration allows for, and stored results are not computed again."""
    config = study.config
    forward = 2.0 * sum(parameters(study.probe))
    forward_trained = 2.0 * sum(parameters(study.model, config.finetune.scratch))
    sampling, tune = config.sampling, config.finetune
    batch = sampling.batch_size * sampling.sequence_length
    held, candidates = len(config.targets) * tune.eval_tokens, len(config.candidates)

    def embedding(batches: int) -> Work:
        return Work(batches * batch, batches * batch * forward * passes(config))

    asked = sum(items.tokens for items in read_items(study).values())

    def training(runs: int, tokens: int, scored: int = 2) -> Work:
        """`scored`: times that the targets' tasks are scored, before and after."""
        seen, general = tokens * tune.epochs, replay_tokens(config) * tokens / tune.tokens * tune.epochs
        measured = MEASURED * held + scored * asked
        return Work(runs * seen, runs * ((seen + general) * TRAINING_PASSES + measured) * forward_trained)

    # to choose one
    rates = training(len(tune.learning_rate) if len(tune.learning_rate) > 1 else 0, tune.tokens, 0)
    experts = training(candidates, tune.tokens, 2 if scored_alone(config) else 0)
    search = embedding(len(CHECKED) * max(2, sampling.batches // 2))  # to check the prediction
    if config.search.objective in TRAINED:
        if config.search.objective == "mixmin":  # trains on every candidate alone, as finetune does
            proxies = experts + rates
        elif config.search.objective == "predicted":  # and on some mixtures
            proxies = experts + training(min(RUNS, config.search.trials), tune.tokens, 0) + rates
        else:
            proxies = training(config.search.trials, config.search.proxy_tokens, 0)
        search += proxies
    trained = config.choose.by == "training"
    chosen = {"choose": training(candidates, tune.tokens, 1 + len(RUNGS)) + rates} if trained else {}
    alone = min(candidates, len(config.targets)) if trained else candidates
    return {
        "embed": embedding(len(config.corpora) * sampling.batches),
        "samples": embedding(len(config.corpora) * min(sampling.batches, -(-SAMPLES // sampling.batch_size))),
        **chosen,
        "search": search,
        "finetune": training((alone + len(MIXED)) * tune.seeds, tune.tokens) + rates,
        "validate": training((len(VALIDATED) + 1) * tune.seeds, tune.tokens) + experts + rates,
    }


def estimate(study: Study, gpu: bool) -> dict[str, Any]:
    """Tokens, worker-seconds and money of every stage before anything is started; a JSON value (estimate.json).

    `seconds`: of `run` on `workers` (None: one is assumed); `rungs`, `kept` and `embeddings`: see there.
    `rate`: achieved TFLOP/s of a worker and where the figure is from. `corpora`: bytes on disk to be read, None where
    the source does not tell (a hub data set). `memory`: of a worker of the trainings (`training/memory.py`). `gpu`:
    whether GPUs are assumed where nothing was measured. Raises CapacityError where a training cannot fit.
    """
    config, work = study.config, planned_work(study)
    tflops, source = achieved_tflops(study, gpu)
    stages: dict[str, dict[str, Any]] = {}
    for stage, todo in work.items():
        seconds = START_SECONDS + todo.flops / (tflops * 1e12)
        stages[stage] = {"tokens": todo.tokens, "worker_seconds": seconds, "cost": price(config, seconds)}
    sizes = {c.name: sum(f.bytes for f in plan_fragments(c)) or None for c in config.read}
    total = sum(row["worker_seconds"] for stage, row in stages.items() if stage != "validate")
    workers = workers_here(config, gpu)
    return {
        "currency": config.cost.currency,
        "price_per_worker_hour": config.cost.price_per_hour,
        "rate": {
            "tflops": tflops,
            "tokens_per_second": tflops * 1e12 * work["embed"].tokens / work["embed"].flops,
            "source": source,
            "device": "GPU" if gpu else "CPU",
        },
        "corpora": sizes,
        "memory": planned_memory(study, gpu),
        "stages": stages,
        "rungs": rungs(config, stages["choose"]["worker_seconds"]) if "choose" in stages else [],
        "kept": kept(study),
        "embeddings": stored_embeddings(study),
        "workers": workers,
        "seconds": total / (workers or 1),
    }


def rungs(config: Config, seconds: float) -> list[dict[str, Any]]:
    """By rung of the choice by training: tokens of each candidate's training up to there, and the worker-seconds that
    it takes to bring all candidates there from the rung before (`worker_seconds`): at most, since those without hope
    stop. `seconds`: of all whole trainings."""
    shares = [*RUNGS, 1.0]
    return [
        {"share": share, "tokens": round(config.finetune.tokens * share), "worker_seconds": seconds * (share - last)}
        for share, last in zip(shares, [0.0, *shares[:-1]], strict=True)
    ]


def kept(study: Study) -> dict[str, Any]:
    """What trainings leave in the output folder beside losses: `weights` and `bytes` of the changed weights that are
    kept, and `state_bytes` of a training that is under way, of which the choice by training has one a candidate until
    it is at its end; a JSON value, {} where nothing is kept."""
    config, candidates = study.config, len(study.config.candidates)
    tune, chosen = config.finetune, config.choose.by == "training"
    predicted = candidates if config.search.objective == "predicted" else 0
    alone = min(candidates, len(config.targets)) if chosen else candidates
    files = (alone + len(MIXED)) * tune.seeds if tune.keep_weights else predicted
    if tune.keep_weights and (chosen or predicted):
        files += candidates - alone  # the first seed's training of each candidate is that of the choice
    if not files and not chosen:
        return {}
    parameters = trained_parameters(study)
    states = candidates if chosen else 0
    return {
        "weights": files,
        "bytes": 2 * parameters * files,
        "states": states,
        "state_bytes": 16 * parameters * states,
    }


def stored_embeddings(study: Study) -> dict[str, Any]:
    """What the embedding stage leaves in the output folder: `entries` of an embedding (filters of the probe, vocabulary
    included), how many numbers a batch's unit holds (`numbers`, float32), and `bytes` of all batches of the corpora
    (those that check the mixture or contamination come to it); a JSON value."""
    import torch

    config = study.config
    with torch.device("meta"):
        entries, numbers = stored_numbers(random_model(study.probe, {}), config.embedding.plain())
    return {
        "entries": entries,
        "numbers": numbers,
        "bytes": 4 * numbers * config.sampling.batches * len(config.corpora),
    }


def trained_parameters(study: Study) -> int:
    """Weights that a training changes, from the configuration alone: all, or those of LoRA's adapters."""
    import torch

    tune = study.config.finetune
    with torch.device("meta"):
        model = random_model(study.model, tune.scratch or {})
        model = model if tune.lora_rank is None else with_adapters(model, tune.lora_rank, tune.lora_targets)
    return sum(parameter.numel() for parameter in learned(model).values())


def workers_here(config: Config, gpu: bool) -> int | None:
    """Workers of a Ray that starts on this machine; None where a cluster is named, whose size is not known yet."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return config.cluster.max_actors
    import torch

    here = torch.cuda.device_count() if gpu else os.cpu_count() or 1
    return max(1, min(here, config.cluster.max_actors or here))


def achieved_tflops(study: Study, gpu: bool) -> tuple[float, str]:
    """TFLOP/s of one worker, and whether that was given, measured in this study or assumed."""
    config = study.config
    if config.cost.tflops:
        return config.cost.tflops, "given"
    done = costs(study.store).get("embed", {}).get("rate")
    if done:
        flops = done["tokens"] * 2.0 * sum(parameters(study.probe)) * passes(config)
        return flops / done["actor_seconds"] / 1e12, "measured in this study"
    return ASSUMED_TFLOPS[gpu], "assumed"

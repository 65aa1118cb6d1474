"""What each Ray Train worker runs: training jobs one after the other, each from the model's weights (or from random
ones), to its end or to a rung, and the losses of every target's held-out rows before, at every rung and after
(`step.py`).

The rate is constant after a short warm-up, and losses are those of an average of the last weights. So a run's losses
at a rung are nearly what a run of so many steps comes to (its warm-up may be shorter): one run stands for shorter ones.
What is under way is kept in the store (`state.py`), and goes on there on any worker.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from align_ray import metrics
from align_ray.config import Config
from align_ray.corpora.items import Asked
from align_ray.corpora.rows import Rows, validation_half
from align_ray.fisher.probe import load_tokenizer
from align_ray.store import Store
from align_ray.training.answers import task_answers
from align_ray.training.shard import average_gradients, is_sharded, shard, whole
from align_ray.training.state import Progress, load_state, save_state, state_file
from align_ray.training.step import (
    Average,
    add_gradients,
    give_weights,
    heldout_losses,
    learned,
    losses_of,
    master_weights,
    sequence_losses,
    trainable_model,
)

RUNGS = (0.02, 0.06, 0.16, 0.40)
"""Shares of all steps at which losses are measured, beside the end; never under LEAST_STEPS."""
LEAST_STEPS = 2
"""Of a rung, and of the warm-up."""
ASKED_EVERY = 8
"""Steps after which a training asks whether its state is to be kept: workers agree on that, which waits for all."""


def train_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs: one job after the other, each from its initial weights or from what is kept of
    it, to its end or, where the settings name a `rung`, to that one of RUNGS.

    A job's losses by target go to the store as soon as it is there; a restarted run skips what is done.
    """
    import torch
    from ray import train
    from safetensors.numpy import save

    context = train.get_context()
    rank, store, kept = context.get_world_rank(), settings["store"], settings["keep_weights"]
    device, heldout, rung = on_worker(), settings["targets"], settings.get("rung")
    tasks: dict[str, Asked] = settings["tasks"]
    tokenizer = load_tokenizer(settings["located"]) if tasks else None

    def answers(model: Any) -> dict[str, dict[str, Any]]:
        return {name: task_answers(model, asked, tokenizer, device) for name, asked in tasks.items()}

    before: dict[str, np.ndarray] = {}
    tasks_before: dict[str, Any] = {}
    for job in settings["jobs"]:
        key = job["key"]
        if done_to(store, key, rung, kept):
            train.report({"job": key})
            continue
        torch.manual_seed(job["seed"])
        model = worker_model(settings, device)
        first = _gathered(learned(model), rank == 0) if kept else {}
        model.eval()
        passed = store.find_mapping(rungs_file(key))
        if passed:
            before = {name: np.array(losses) for name, losses in passed["before"].items()}
            tasks_before = passed.get("tasks_before") or answers(model)
        elif not before or settings["scratch"] is not None:  # random weights differ from seed to seed
            before = {name: sequence_losses(heldout_losses(model, rows, device)) for name, rows in heldout.items()}
            tasks_before = answers(model)

        @functools.cache  # two rungs of a short training are at one step
        def losses_at_rung(steps: int, model: Any = model) -> dict[str, Any]:
            found = {n: sequence_losses(heldout_losses(model, validation_half(r), device)) for n, r in heldout.items()}
            if rank == 0:
                for name, values in found.items():
                    metrics.gauge("align_ray_heldout_loss", values.mean(), target=name)
            return {"steps": steps, "losses": {name: values.tolist() for name, values in found.items()}}

        tasks_at: dict[str, Any] = passed.get("tasks_at", {})  # by rung at which it was stopped
        done = train_model(model, job, settings, device, RUNGS, losses_at_rung, store, rung)
        started = {name: values.tolist() for name, values in before.items()}
        if rung is not None:
            if rung > 0 and tasks:  # at the first nobody stops (`rungs.py`)
                with done.average.in_place():
                    tasks_at[str(rung)] = answers(model)
            if rank == 0:
                so_far = {"before": started, "rungs": done.rungs, "seconds": done.seconds}
                so_far |= {"tasks_before": tasks_before, "tasks_at": tasks_at}
                store.write_json(rungs_file(key), so_far)
            train.report({"job": key})
            continue
        with done.average.in_place():
            tokens = {name: heldout_losses(model, rows, device) for name, rows in heldout.items()}
            tasks_after = answers(model)
            average = _gathered(done.average.values, rank == 0) if kept else {}
            if rank == 0 and kept:
                store.write_bytes(weights_file(key), _differences(average, first, settings["lora_rank"]))
        if rank == 0:
            store.write_bytes(f"finetune/{key}.safetensors", save(tokens))
            after = {name: sequence_losses(values) for name, values in tokens.items()}
            last = {name: validation_half(values).tolist() for name, values in after.items()}
            result = {
                "targets": {n: {"before": started[n], "after": after[n].tolist()} for n in heldout},
                "rungs": [*done.rungs, {"steps": len(done.losses), "losses": last}],
                "seconds": done.seconds,
                "training": list(enumerate(done.losses, start=1)),
                "tasks": {n: {"before": tasks_before[n], "after": tasks_after[n]} for n in tasks},
                "tasks_at": tasks_at,
            }
            store.write_json(f"finetune/{key}.json", result)
            store.remove(state_file(key))
            store.remove(rungs_file(key))
        train.report({"job": key})


def on_worker() -> Any:
    """The device of a Ray Train worker."""
    import torch
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # one CPU a worker
    return device


def worker_model(settings: dict[str, Any], device: Any) -> Any:
    """The model as a run starts from, whole on a worker's device, or the worker's share of it: then its blocks come to
    the device one after the other. Errors: see `step.trainable_model` and `shard.shard`."""
    import torch

    if not settings["shard"]:
        return trainable_model(settings, device)
    return shard(trainable_model(settings, torch.device("cpu")), device, settings["dtype"])


def train_model(
    model: Any,
    job: dict[str, Any],
    settings: dict[str, Any],
    device: Any,
    rungs: tuple[float, ...],
    at_rung: Callable[[int], Any],
    store: Store | None = None,
    rung: int | None = None,
) -> Progress:
    """`epochs` passes over the job's rows: AdamW, clipping at 1, a constant rate after a warm-up; of these the steps to
    `rung`, or all.

    The model is trained in place. `rungs`: shares of all steps after which `at_rung` is called with the number of
    steps, the model being the average then; what it gives is in the result. With a `store` the training goes on from
    what that holds, and its state is kept there at `rung` and every `finetune.checkpoint_every` seconds. What is drawn
    at random in a step (dropout) follows from the job's seed and the step, so that a training that was stopped is the
    same.
    """
    import torch
    from ray import train
    from ray.train.torch import prepare_model

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    shared_out = is_sharded(model)
    wrapped, weights = losses_of(model) if shared_out else prepare_model(losses_of(model)), master_weights(model)
    parameters = list(weights.values())
    optimiser = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0)
    per_epoch = len(list(batches(job, settings, 0)))
    total = per_epoch * settings["epochs"]
    measured = rung_steps(rungs, total)
    last = total if rung is None else measured[rung]
    progress = Progress(Average(model, weights))
    losses: list[Any] = []
    tokens = 0  # since the last pause
    if store:
        load_state(store, job["key"], optimiser, progress)
    first = len(progress.losses)
    schedule = warm_up(optimiser, first, total)
    wrapped.train()
    kept = start = time.perf_counter()

    def pause(keep: bool) -> None:
        """Read the losses, which waits for the device, count the time, and keep the state."""
        nonlocal kept, start, tokens
        progress.losses += _mean_over_workers(losses, world)
        losses.clear()
        if rank == 0 and progress.losses:
            metrics.gauge("align_ray_training_loss", progress.losses[-1])
            metrics.count("align_ray_tokens", tokens, work="trained")
        tokens = 0
        progress.seconds += time.perf_counter() - start
        if keep and store:
            save_state(store, job["key"], optimiser, progress, rank == 0)
            kept = time.perf_counter()
        start = time.perf_counter()

    for step, batch in enumerate(islice(steps_of(job, settings), first, last), start=first + 1):
        torch.manual_seed(seed_of(job["seed"], step, rank))
        scored = int(batch.scored[:, 1:].sum())
        parts = micro_batches(batch, rank, world, settings["micro_batch_size"])
        losses.append(add_gradients(wrapped, weights, parts, scored, device, world))
        if shared_out:
            average_gradients(parameters)
        tokens += scored
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        give_weights(model, weights)
        schedule.step()
        optimiser.zero_grad()
        progress.average.update()
        if step in measured:
            pause(keep=False)
            with progress.average.in_place():
                progress.rungs += [at_rung(step) for _ in range(measured.count(step))]  # a proxy reports each
            start = time.perf_counter()
        due = time.perf_counter() - kept > settings["checkpoint_every"]
        if store and step < total and (step == last or (step % ASKED_EVERY == 0 and _agreed(due, world, device))):
            pause(keep=True)
    pause(keep=False)
    return progress


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of what is drawn at random in a step on a worker."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _agreed(due: bool, world: int, device: Any) -> bool:
    """What the first worker says: its clock decides for all."""
    import torch

    if world == 1:
        return due
    said = torch.tensor([float(due)], device=device)
    torch.distributed.broadcast(said, 0)
    return bool(said.item())


def steps_of(job: dict[str, Any], settings: dict[str, Any]) -> Iterator[Rows]:
    """The rows of every step of a whole training."""
    for epoch in range(settings["epochs"]):
        yield from batches(job, settings, epoch)


def batches(job: dict[str, Any], settings: dict[str, Any], epoch: int) -> Iterator[Rows]:
    """The rows of every step of an epoch: `batch_size`, of which the configured share is from the job's replay rows,
    those again and again. Shuffled by (seed, epoch)."""
    rows, replay, size = job["rows"], job["replay"], settings["batch_size"]
    general = replay_rows(size, settings["replay_share"]) if replay is not None else 0
    own = size - general
    order = np.random.default_rng([job["seed"], epoch]).permutation(len(rows))
    parts = [rows[order[start : start + own]] for start in range(0, len(rows), own)]
    if not general:
        yield from parts
        return
    again = np.random.default_rng([job["seed"], epoch, 1]).permutation(len(replay))
    beside = np.resize(again, len(parts) * general).reshape(len(parts), general)
    yield from (Rows.joined([part, replay[more]]) for part, more in zip(parts, beside, strict=True))


def replay_rows(batch_size: int, share: float) -> int:
    """Rows of general text in every batch: the share, at least one and never all."""
    return min(batch_size - 1, max(1, round(share * batch_size)))


def own_rows(config: Config) -> int:
    """Rows of a step that are not of the replay text."""
    size = config.finetune.batch_size
    return size - (replay_rows(size, config.replay.share) if config.replay else 0)


def share_of(batch: Rows, rank: int, world: int) -> Rows:
    """A worker's rows of a batch. Every worker takes part in every step: one without a row has one that counts for
    nothing."""
    own = batch[rank::world]
    if len(own):
        return own
    return dataclasses.replace(batch[:1], scored=np.zeros_like(batch.scored[:1]))


def micro_batches(batch: Rows, rank: int, world: int, size: int | None) -> list[Rows]:
    """A worker's rows of a batch in groups of `size` (None: all in one), as many groups on every worker."""
    if size is None:
        return [share_of(batch, rank, world)]
    return [share_of(batch[start : start + size * world], rank, world) for start in range(0, len(batch), size * world)]


def rung_steps(rungs: tuple[float, ...], total: int) -> list[int]:
    """The steps at which rungs are measured: the shares of all steps, each at least LEAST_STEPS and at most all."""
    return [min(total, max(LEAST_STEPS, round(share * total))) for share in rungs]


def effective_steps(steps: int, total: int) -> float:
    """Steps at the full rate that so many steps come to, of a run of `total`: less in the warm-up."""
    rise = max(LEAST_STEPS, round(0.02 * total))
    return float(sum(min(1.0, (step + 1) / (rise + 1)) for step in range(steps)))


def warm_up(optimiser: Any, start: int, total: int) -> Any:
    """The learning rate from step `start` on, as a scheduler: up over 2% of all `total` steps, at least LEAST_STEPS,
    then constant."""
    from torch.optim.lr_scheduler import LambdaLR

    rise = max(LEAST_STEPS, round(0.02 * total))
    return LambdaLR(optimiser, lambda taken: min(1.0, (start + taken + 1) / (rise + 1)))


def _mean_over_workers(losses: list[Any], world: int) -> list[float]:
    """Losses of steps, of all workers together: each holds its part times the number of workers."""
    import torch

    if not losses:
        return []
    total = torch.stack(losses)
    if world > 1:
        torch.distributed.all_reduce(total)
    return (total / world).tolist()


def _gathered(tensors: dict[str, Any], keep: bool) -> dict[str, Any]:
    """Copies of weights in float32 on the CPU, whole; none where they are not to be kept. All workers take part."""
    found = {name: whole(tensor.detach(), keep) for name, tensor in tensors.items()}
    return {name: tensor.float().clone() for name, tensor in found.items() if keep}


def _differences(average: dict[str, Any], first: dict[str, Any], lora_rank: int | None) -> bytes:
    """Safetensors of what a training changed: the average of its weights less the initial ones, in bfloat16; of LoRA
    the adapters themselves, whose initial ones are random. Not of the model's parameters: bfloat16 ones are rounded to
    steps as large as what a training changes."""
    import torch
    from safetensors.torch import save

    changed = average if lora_rank else {name: value - first[name] for name, value in average.items()}
    return save({name: value.to(torch.bfloat16).contiguous() for name, value in changed.items()})


def weights_file(key: str) -> str:
    """Where in the store a job's weights are."""
    return f"finetune/weights/{key}.safetensors"


def rungs_file(key: str) -> str:
    """Where in the store the losses of a training that is not at its end are."""
    return f"finetune/state/{key}.json"


def done_to(store: Store, key: str, rung: int | None, keep_weights: bool = False) -> bool:
    """Whether a job is at its end, whole, or its losses at least at a rung of RUNGS are there."""
    if finished(store, key, keep_weights):
        return True
    found = store.find_json(rungs_file(key)) if rung is not None else None
    return isinstance(found, dict) and len(found["rungs"]) > (rung or 0)


def finished(store: Store, key: str, keep_weights: bool = False) -> bool:
    """Whether a job's losses, and its weights where they are to be kept, are in the store, whole."""
    from safetensors.numpy import load

    files = f"finetune/{key}.json", f"finetune/{key}.safetensors"
    whole = bool(store.find_json(files[0]) and store.find(files[1], load))
    return whole and (not keep_weights or store.exists(weights_file(key)))

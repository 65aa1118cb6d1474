"""What each Ray Train worker runs: training jobs one after the other, each from the model's weights (or from random
ones), with a checkpoint between epochs, and the losses of every target's held-out rows before, at every rung and after
(`step.py`).

The rate is constant after a short warm-up, and losses are those of an average of the last weights. So a run's losses
at a rung are nearly what a run of so many steps comes to (its warm-up may be shorter): one run stands for shorter ones.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_ray.corpora.rows import Rows, validation_half
from align_ray.store import Store
from align_ray.training.step import Average, heldout_losses, learned, sequence_losses, step_loss, trainable_model

RUNGS = (0.02, 0.06, 0.16, 0.40)
"""Shares of all steps at which losses are measured, beside the end; never under LEAST_STEPS."""
LEAST_STEPS = 2
"""Of a rung, and of the warm-up."""


@dataclasses.dataclass
class Progress:
    """How far a training is."""

    losses: list[float]
    """The loss of every step's batch before the step, nats per token."""
    rungs: list[dict[str, Any]]
    """What was measured at the rungs that were passed."""
    average: Average
    """Of the weights so far."""


def train_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs: one job after the other, each from its initial weights.

    A job's losses by target go to the store as soon as it is done; a restarted run skips finished jobs and resumes the
    one in flight from its last epoch.
    """
    import torch
    from ray import train
    from safetensors.numpy import save

    rank, store, kept = train.get_context().get_world_rank(), settings["store"], settings["keep_weights"]
    device, heldout = on_worker(), settings["targets"]
    before: dict[str, np.ndarray] = {}
    for job in settings["jobs"]:
        if finished(store, job["key"], kept):
            train.report({"job": job["key"]})
            continue
        torch.manual_seed(job["seed"])
        model = trainable_model(settings, device)
        first = {name: p.detach().float().cpu().clone() for name, p in learned(model).items()} if kept else {}
        model.eval()
        if not before or settings["scratch"] is not None:  # random weights differ from seed to seed
            before = {name: sequence_losses(heldout_losses(model, rows, device)) for name, rows in heldout.items()}
        watch = _Watch()

        def losses_at_rung(steps: int, model: Any = model, watch: _Watch = watch) -> dict[str, Any]:
            with watch:
                found = {
                    n: sequence_losses(heldout_losses(model, validation_half(r), device)) for n, r in heldout.items()
                }
            return {"steps": steps, "losses": {name: values.tolist() for name, values in found.items()}}

        start = time.perf_counter()
        done = train_model(model, job, settings, device, RUNGS, losses_at_rung)
        seconds = time.perf_counter() - start - watch.seconds
        with done.average.in_place():
            tokens = {name: heldout_losses(model, rows, device) for name, rows in heldout.items()}
            if rank == 0 and kept:
                store.write_bytes(weights_file(job["key"]), _differences(model, first, settings["lora_rank"]))
        if rank == 0:
            store.write_bytes(f"finetune/{job['key']}.safetensors", save(tokens))
            after = {name: sequence_losses(values) for name, values in tokens.items()}
            last = {name: validation_half(values).tolist() for name, values in after.items()}
            result = {
                "targets": {n: {"before": before[n].tolist(), "after": after[n].tolist()} for n in heldout},
                "rungs": [*done.rungs, {"steps": len(done.losses), "losses": last}],
                "seconds": seconds,
                "training": list(enumerate(done.losses, start=1)),
            }
            store.write_json(f"finetune/{job['key']}.json", result)
        train.report({"job": job["key"]})


class _Watch:
    """Seconds spent within."""

    def __init__(self) -> None:
        self.seconds, self._start = 0.0, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


def on_worker() -> Any:
    """The device of a Ray Train worker."""
    import torch
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # one CPU a worker
    return device


def train_model(
    model: Any,
    job: dict[str, Any],
    settings: dict[str, Any],
    device: Any,
    rungs: tuple[float, ...],
    at_rung: Callable[[int], Any],
    checkpoints: bool = True,
) -> Progress:
    """`epochs` passes over the job's rows: AdamW, clipping at 1, a constant rate after a warm-up.

    The model is trained in place. `rungs`: shares of all steps after which `at_rung` is called with the number of
    steps, the model being the average then; what it gives is in the result. Between epochs a checkpoint (safetensors)
    is reported to Ray Train, unless `checkpoints` is off.
    """
    import torch
    from ray import train
    from ray.train.torch import prepare_model

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    wrapped = prepare_model(model)
    parameters = list(learned(model).values())
    optimiser = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0)
    per_epoch = len(list(batches(job, settings, 0)))
    total = per_epoch * settings["epochs"]
    measured = rung_steps(rungs, total)
    progress, losses = Progress([], [], Average(model)), []
    first = _resume(model, optimiser, progress, job["key"]) if checkpoints else 0
    schedule = warm_up(optimiser, first * per_epoch, total)
    for epoch in range(first, settings["epochs"]):
        wrapped.train()
        for step, batch in enumerate(batches(job, settings, epoch), start=epoch * per_epoch + 1):
            scored = int(batch.scored[:, 1:].sum())
            loss = step_loss(wrapped, share_of(batch, rank, world), scored, device, world)
            loss.backward()
            losses.append(loss.detach())  # read at the end of an epoch: reading waits for the device
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            progress.average.update()
            for _ in range(measured.count(step)):
                with progress.average.in_place():
                    progress.rungs.append(at_rung(step))
        progress.losses += _mean_over_workers(losses, world)
        losses = []
        if checkpoints and epoch + 1 < settings["epochs"]:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    _save(model, optimiser, progress, job["key"], epoch + 1, Path(folder))
                train.report(
                    {"epoch": epoch + 1}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None
                )
    return progress


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


def share_of(batch: Rows, rank: int, world: int) -> Rows:
    """A worker's rows of a batch. Every worker takes part in every step: one without a row has one that counts for
    nothing."""
    own = batch[rank::world]
    if len(own):
        return own
    return dataclasses.replace(batch[:1], scored=np.zeros_like(batch.scored[:1]))


def rung_steps(rungs: tuple[float, ...], total: int) -> list[int]:
    """The steps at which rungs are measured: the shares of all steps, each at least LEAST_STEPS and at most all."""
    return [min(total, max(LEAST_STEPS, round(share * total))) for share in rungs]


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


def _save(model: Any, optimiser: Any, progress: Progress, key: str, epochs: int, folder: Path) -> None:
    """Trained weights, their average, AdamW's moments, and the position: flat safetensors and JSON, no pickle."""
    from safetensors.torch import save_file

    save_file({name: p.detach().contiguous() for name, p in learned(model).items()}, folder / "model.safetensors")
    save_file(progress.average.values, folder / "average.safetensors")
    moments = {f"{i}/{k}": v.contiguous() for i, s in optimiser.state_dict()["state"].items() for k, v in s.items()}
    save_file(moments, folder / "optimiser.safetensors")
    position = {"job": key, "epochs": epochs, "averaged": progress.average.steps}
    position |= {"losses": progress.losses, "rungs": progress.rungs}
    (folder / "position.json").write_text(json.dumps(position))


def _resume(model: Any, optimiser: Any, progress: Progress, key: str) -> int:
    """Take up what the run's last checkpoint holds of this job; returns the epochs done."""
    from ray import train
    from safetensors.torch import load_file

    checkpoint = train.get_checkpoint()
    if not checkpoint:
        return 0
    with checkpoint.as_directory() as place:
        folder = Path(place)
        position = json.loads((folder / "position.json").read_text())
        if position["job"] != key:
            return 0
        saved, average = load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors")
        for name, parameter in learned(model).items():
            parameter.data.copy_(saved[name])
            progress.average.values[name].copy_(average[name])
        _load_optimiser(optimiser, load_file(folder / "optimiser.safetensors"))
    progress.average.steps = position["averaged"]
    progress.losses, progress.rungs = position["losses"], position["rungs"]
    return position["epochs"]


def _load_optimiser(optimiser: Any, flat: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _differences(model: Any, first: dict[str, Any], lora_rank: int | None) -> bytes:
    """Safetensors of what a training changed: trained weights less the initial ones, in bfloat16; of LoRA the adapters
    themselves, whose initial ones are random."""
    import torch
    from safetensors.torch import save

    now = {name: p.detach().float().cpu() for name, p in learned(model).items()}
    changed = now if lora_rank else {name: value - first[name] for name, value in now.items()}
    return save({name: value.to(torch.bfloat16).contiguous() for name, value in changed.items()})


def weights_file(key: str) -> str:
    """Where in the store a job's weights are."""
    return f"finetune/weights/{key}.safetensors"


def finished(store: Store, key: str, keep_weights: bool = False) -> bool:
    """Whether a job's losses, and its weights where they are to be kept, are in the store, whole."""
    from safetensors.numpy import load

    files = f"finetune/{key}.json", f"finetune/{key}.safetensors"
    whole = bool(store.find_json(files[0]) and store.find(files[1], load))
    return whole and (not keep_weights or store.exists(weights_file(key)))

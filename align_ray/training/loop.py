"""What each Ray Train worker runs: training jobs one after the other, each from the model's weights (or from random
ones), with a checkpoint between epochs, and the loss of every target's held-out sequences before and after
(`step.py`)."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_ray.fisher.probe import has_bfloat16
from align_ray.store import Store
from align_ray.training.step import heldout_losses, sequence_losses, token_losses, trainable_model


def train_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs: one job after the other, each from its initial weights.

    A job's losses by target go to the store as soon as it is done; a restarted run skips finished jobs and resumes the
    one in flight from its last epoch.
    """
    import torch
    from ray import train
    from safetensors.numpy import save

    rank, store, scratch = train.get_context().get_world_rank(), settings["store"], settings["scratch"]
    device, heldout = on_worker(settings)
    before: dict[str, np.ndarray] = {}
    for job in settings["jobs"]:
        if finished(store, job["key"]):
            train.report({"job": job["key"]})
            continue
        torch.manual_seed(job["seed"])
        model = trainable_model(settings, device)
        if not before or scratch is not None:  # random weights differ from seed to seed
            before = {name: sequence_losses(model, rows) for name, rows in heldout.items()}
        start = time.perf_counter()
        training = train_model(model, job, settings, device)
        seconds = time.perf_counter() - start
        model.eval()
        tokens = {name: heldout_losses(model, rows) for name, rows in heldout.items()}
        if rank == 0:
            store.write_bytes(f"finetune/{job['key']}.safetensors", save(tokens))
            after = {name: values.astype(np.float64).mean(1) for name, values in tokens.items()}
            losses = {name: {"before": before[name].tolist(), "after": after[name].tolist()} for name in heldout}
            done = {"targets": losses, "seconds": seconds, "training": training}
            store.write_json(f"finetune/{job['key']}.json", done)
        train.report({"job": job["key"]})


def on_worker(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The device of a Ray Train worker, and the targets' held-out sequences on it, int64 [m, T] by target."""
    import torch
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # one CPU a worker
    targets = settings["targets"].items()
    return device, {name: torch.as_tensor(rows, dtype=torch.long, device=device) for name, rows in targets}


def train_model(
    model: Any,
    job: dict[str, Any],
    settings: dict[str, Any],
    device: Any,
    rungs: tuple[float, ...] = (),
    at_rung: Callable[[int], None] = lambda rung: None,
) -> list[tuple[int, float]]:
    """`epochs` passes over the job's rows (int32 [n, T]): AdamW, clipping at 1, linear decay after 10 % warm-up.

    The model is trained in place; between epochs a checkpoint (safetensors) is reported to Ray Train. `rungs`: shares
    of all steps after which `at_rung` is called with 1, 2, ... instead, without checkpoints. Returns the steps, from
    the resumed one on, with the loss of this worker's part of their batch before the step, nats per token.
    """
    import torch
    from ray import train
    from ray.train.torch import prepare_model
    from safetensors.torch import load_file

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    wrapped = prepare_model(model)
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=job["learning_rate"], weight_decay=0.0)
    rows, size = torch.as_tensor(job["rows"], dtype=torch.long), settings["batch_size"]
    per_epoch = -(-len(rows) // size)
    total = per_epoch * settings["epochs"]
    first, losses = 0, []
    checkpoint = None if rungs else train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            key, _, finished = (Path(folder) / "position").read_text().partition(" ")
            if key == job["key"]:
                first = int(finished)
                model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
                _load_optimiser(optimiser, load_file(Path(folder) / "optimiser.safetensors"))
    schedule = warm_up_and_decay(optimiser, first * per_epoch, total)
    for epoch in range(first, settings["epochs"]):
        wrapped.train()
        order = np.random.default_rng([job["seed"], epoch]).permutation(len(rows))
        for step, start in enumerate(range(0, len(rows), size), epoch * per_epoch):
            # Every rank takes part in every step; a short last batch is shared out with repetition.
            batch = np.resize(order[start : start + size], -(-min(size, len(rows) - start) // world) * world)
            ids = rows[batch[rank::world]].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                loss = token_losses(wrapped, ids).mean()
            loss.backward()
            losses.append(loss.detach())  # read at the end: reading waits for the device
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            for rung, share in enumerate(rungs, start=1):
                if step + 1 == max(1, round(share * total)):
                    at_rung(rung)
        if epoch + 1 < settings["epochs"] and not rungs:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    _save(model, optimiser, f"{job['key']} {epoch + 1}", Path(folder))
                train.report(
                    {"epoch": epoch + 1}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None
                )
    return list(enumerate(torch.stack(losses).tolist(), start=first * per_epoch + 1)) if losses else []


def warm_up_and_decay(optimiser: Any, start: int, total: int) -> Any:
    """The learning rate from step `start` on, as a scheduler: up over a tenth of all `total` steps, then down to 0."""
    from torch.optim.lr_scheduler import LambdaLR

    def share(step: int) -> float:
        return min((step + 1) / (0.1 * total + 1), 1.0, (total - step) / (0.9 * total))

    return LambdaLR(optimiser, lambda taken: share(start + taken))


def _save(model: Any, optimiser: Any, position: str, folder: Path) -> None:
    """Model, AdamW's moments and the position (job, epochs done): flat safetensors, no pickle."""
    from safetensors.torch import save_file

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {
        k: v.contiguous()
        for k, v in model.state_dict().items()
        if k in learned and not (tied and k == "lm_head.weight")
    }
    save_file(state, folder / "model.safetensors")
    moments = optimiser.state_dict()["state"]
    save_file(
        {f"{i}/{k}": v.contiguous() for i, s in moments.items() for k, v in s.items()}, folder / "optimiser.safetensors"
    )
    (folder / "position").write_text(position)


def _load_optimiser(optimiser: Any, flat: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def finished(store: Store, key: str) -> bool:
    """Whether a job's losses are in the store, whole."""
    from safetensors.numpy import load

    return bool(store.find_json(f"finetune/{key}.json") and store.find(f"finetune/{key}.safetensors", load))

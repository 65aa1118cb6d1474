"""Proof by training: Ray Train fine-tunes the model on every candidate, the found mixture and the uniform one.

Every run has the same number of tokens and the same optimiser; what differs is the text. The loss of each target's
held-out sequences is measured before and after. The runs are shared out among as many Ray Train runs as the cluster holds
at once (starting one costs ten seconds of CPU), inside a Ray Tune experiment. A finished run's result is in the store,
keyed by all that determines it, and is not run again.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from align_ray.config import Config, digest
from align_ray.embedding import read_sample
from align_ray.mixture import split_tokens
from align_ray.probe import Located, load_model
from align_ray.runtime import capacity
from align_ray.store import Store

OVERLAP_TOKENS = 13


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: its name and the weights (in tokens) of the candidates it trains on."""

    name: str
    weights: dict[str, float]


def planned_runs(config: Config, search: dict[str, Any]) -> list[Run]:
    """Every candidate alone, then `uniform` (within the caps) and `mixture` (the one the search chose)."""
    alone = [Run(c.name, {c.name: 1.0}) for c in config.candidates]
    chosen = {"uniform": "uniform", "mixture": search["chosen"]}
    return [*alone, *(Run(name, search["mixtures"][key]["weights"]) for name, key in chosen.items())]


def training_rows(config: Config, store: Store, run: Run) -> np.ndarray:
    """The training sequences of a run, int32 [n, T]: the first of each corpus' sample, in proportion to the weights.

    A corpus with fewer sequences than asked for is repeated.
    """
    total = -(-config.finetune.tokens // config.sampling.sequence_length)
    parts = []
    for (name, _), count in zip(run.weights.items(), split_tokens(np.array(list(run.weights.values())), total), strict=True):
        rows = read_sample(store, name).training
        parts.append(rows[np.arange(count) % max(1, len(rows))])
    return np.concatenate(parts)


def overlap(training: np.ndarray, heldout: np.ndarray) -> float:
    """Share of the held-out 13-token windows that occur in the training sequences."""

    def windows(rows: np.ndarray) -> list[bytes]:
        views = np.lib.stride_tricks.sliding_window_view(rows.astype(np.int32), OVERLAP_TOKENS, axis=1)
        return [window.tobytes() for window in views.reshape(-1, OVERLAP_TOKENS)]

    seen = set(windows(training))
    found = [window in seen for window in windows(heldout)]
    return float(np.mean(found)) if found else 0.0


def finetune_runs(config: Config, store: Store, located: Located, runs: list[Run]) -> dict[str, Any]:
    """Fine-tune on every run whose result is not in the store; returns a JSON value.

    `runs[name]`: weights, training sequences, and by target `before` and `after` (nats per token on held-out text),
    `change` with its standard error over held-out sequences, and `overlap`.
    """
    targets = {t.name: read_sample(store, t.name).heldout for t in config.targets}
    fixed = [located.digest, config.finetune.model_dump(), config.seed, {n: rows.tolist() for n, rows in targets.items()}]
    jobs = {}
    for run in runs:
        rows = training_rows(config, store, run)
        jobs[run.name] = {"key": digest([fixed, rows.tolist()]), "rows": rows}
    todo = {job["key"]: job for job in jobs.values() if not store.exists(f"finetune/{job['key']}.json")}
    if todo:
        _train(config, store, {"located": located, "store": store, "targets": targets}, list(todo.values()))
    report = {}
    for run in runs:
        result, rows = store.read_json(f"finetune/{jobs[run.name]['key']}.json"), jobs[run.name]["rows"]
        for target, heldout in targets.items():
            result[target]["overlap"] = overlap(rows, heldout)
        report[run.name] = {"weights": run.weights, "sequences": len(rows), "targets": result}
    return {"tokens": len(rows) * config.sampling.sequence_length, "runs": report}


def _train(config: Config, store: Store, settings: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    """Share the jobs out among as many Ray Train runs as the cluster holds at once, inside one Ray Tune experiment."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer

    room = capacity(config.cluster)
    slots = min(len(jobs), max(1, room.most // config.finetune.workers))
    local = store.local_path("train")
    storage = str(local) if local else f"{store.uri}/train"
    settings = {**settings, **config.finetune.model_dump(), "seed": config.seed}

    def trial(point: dict[str, int]) -> None:
        share = jobs[point["share"] :: slots]
        TorchTrainer(
            train_loop,
            train_loop_config={**settings, "jobs": share},
            scaling_config=train.ScalingConfig(num_workers=config.finetune.workers, use_gpu=room.use_gpu),
            run_config=train.RunConfig(
                name=f"share-{digest([job['key'] for job in share])}",
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=2),
                checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
        tune.report({"jobs": len(share)})

    name = f"finetune-{digest([slots, [job['key'] for job in jobs]])}"
    space = {"share": tune.grid_search(list(range(slots)))}
    if tune.Tuner.can_restore(f"{storage}/{name}"):
        tuner = tune.Tuner.restore(f"{storage}/{name}", trainable=trial, resume_errored=True, param_space=space)
    else:
        tuner = tune.Tuner(
            tune.with_resources(trial, _driver_resources()),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=slots),
            run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0, failure_config=tune.FailureConfig(max_failures=2)),
        )
    for error in tuner.fit().errors:
        raise RuntimeError(f"fine-tuning failed: {error}")


def _driver_resources() -> dict[str, float]:
    """Where the cluster offers `driver` (an on-demand head), runs are driven from there, never from a spot node."""
    import ray

    return {"driver": 1} if ray.cluster_resources().get("driver", 0) >= 1 else {"cpu": 0.1}


def train_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs: one job after the other, each from the initial weights.

    A job's losses by target go to the store as soon as it is done; a restarted run skips finished jobs and resumes the
    one in flight from its last epoch.
    """
    import torch
    from ray import train
    from ray.train.torch import get_device

    rank, store, device = train.get_context().get_world_rank(), settings["store"], get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    heldout = {name: torch.as_tensor(rows, dtype=torch.long, device=device) for name, rows in settings["targets"].items()}
    before: dict[str, np.ndarray] = {}
    todo = [job for job in settings["jobs"] if not store.exists(f"finetune/{job['key']}.json")]
    for job in todo:
        torch.manual_seed(settings["seed"])
        model = load_model(settings["located"], str(device))
        before = before or {name: sequence_losses(model, rows) for name, rows in heldout.items()}
        train_model(model, job, settings, device)
        model.eval()
        result = {name: _change(before[name], sequence_losses(model, rows)) for name, rows in heldout.items()}
        if rank == 0:
            store.write_json(f"finetune/{job['key']}.json", result)


def train_model(model: Any, job: dict[str, Any], settings: dict[str, Any], device: Any) -> None:
    """`epochs` passes over the job's rows (int32 [n, T]): AdamW, clipping at 1, linear decay after 10 % warm-up.

    The model is trained in place; between epochs a checkpoint (safetensors) is reported to Ray Train.
    """
    import torch
    from ray import train
    from ray.train.torch import prepare_model
    from safetensors.torch import load_file

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    wrapped = prepare_model(model)
    optimiser = torch.optim.AdamW(wrapped.parameters(), lr=settings["learning_rate"], weight_decay=0.0)
    rows, size = torch.as_tensor(job["rows"], dtype=torch.long), settings["batch_size"]
    per_epoch = -(-len(rows) // size)
    total = per_epoch * settings["epochs"]
    first = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            key, _, epoch = (Path(folder) / "position").read_text().partition(" ")
            if key == job["key"]:
                first = int(epoch)
                model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
                _load_optimiser(optimiser, load_file(Path(folder) / "optimiser.safetensors"))
    for epoch in range(first, settings["epochs"]):
        wrapped.train()
        order = np.random.default_rng([settings["seed"], epoch]).permutation(len(rows))
        for step, start in enumerate(range(0, len(rows), size), epoch * per_epoch):
            rate = min((step + 1) / (0.1 * total + 1), 1.0, (total - step) / (0.9 * total))
            for group in optimiser.param_groups:
                group["lr"] = settings["learning_rate"] * rate
            # Every rank takes part in every step; a short last batch is shared out with repetition.
            batch = np.resize(order[start : start + size], -(-min(size, len(rows) - start) // world) * world)
            ids = rows[batch[rank::world]].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                loss = token_losses(wrapped, ids).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        if epoch + 1 < settings["epochs"]:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    _save(model, optimiser, f"{job['key']} {epoch + 1}", Path(folder))
                train.report({"epoch": epoch + 1}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None)


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """Mean losses, and their change with its standard error over the (paired) held-out sequences."""
    change = after - before
    error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else None
    return {"before": float(before.mean()), "after": float(after.mean()), "change": float(change.mean()), "change_error": error}


def token_losses(model: Any, ids: Any) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def has_bfloat16(device: Any) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones (training only; losses are float32)."""
    import torch

    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def sequence_losses(model: Any, ids: Any) -> np.ndarray:
    """Mean cross-entropy of each sequence, float64 [n], nats per token."""
    import torch

    with torch.no_grad():
        parts = [token_losses(model, chunk).mean(1).double().cpu() for chunk in ids.split(8)]
    return torch.cat(parts).numpy()


def _save(model: Any, optimiser: Any, position: str, folder: Path) -> None:
    """Model, AdamW's moments and the position (job, epochs done): flat safetensors, no pickle."""
    from safetensors.torch import save_file

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / "model.safetensors")
    moments = optimiser.state_dict()["state"]
    save_file({f"{i}/{k}": v.contiguous() for i, s in moments.items() for k, v in s.items()}, folder / "optimiser.safetensors")
    (folder / "position").write_text(position)


def _load_optimiser(optimiser: Any, flat: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})

"""Proof by training: Ray Train fine-tunes the model on every candidate, the found mixture and the uniform one.

Every run has the same number of tokens and the same optimiser; what differs is the text. The loss of each target's
held-out sequences is measured before and after. Each run is a Ray Train run of its own, inside a Ray Tune grid that
bounds how many run at once and resumes after a kill; a finished run is not run again.
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
    """Fine-tune on every run; returns a JSON value.

    `runs[name]`: weights, training sequences, and by target `before` and `after` (nats per token on held-out text),
    `change` with its standard error over held-out sequences, and `overlap`.
    """
    from ray import train, tune
    from ray.train.torch import TorchTrainer

    targets = {t.name: read_sample(store, t.name).heldout for t in config.targets}
    local = store.local_path("train")
    storage = str(local) if local else f"{store.uri}/train"
    settings = {**config.finetune.model_dump(), "seed": config.seed, "located": located, "targets": targets}
    room = capacity(config.cluster)

    def trial(point: dict[str, Any]) -> None:
        run = Run(**point["run"])
        rows = training_rows(config, store, run)
        key = digest([located.digest, rows.tolist(), config.finetune.model_dump(), config.seed])
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={**settings, "rows": rows},
            scaling_config=train.ScalingConfig(num_workers=config.finetune.workers, use_gpu=room.use_gpu),
            run_config=train.RunConfig(
                name=f"{run.name}-{key}",
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=2),
                checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            ),
        )
        tune.report({"result": trainer.fit().return_value})

    space = {"run": tune.grid_search([dataclasses.asdict(run) for run in runs])}
    name = f"finetune-{digest([space['run'], located.digest, config.model_dump(mode='json')])}"
    path = f"{storage}/{name}"
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable=trial, resume_errored=True, param_space=space)
    else:
        tuner = tune.Tuner(
            tune.with_resources(trial, _driver_resources()),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=max(1, room.most // config.finetune.workers)),
            run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0, failure_config=tune.FailureConfig(max_failures=2)),
        )
    fitted = tuner.fit()
    for error in fitted.errors:
        raise RuntimeError(f"a fine-tuning run failed: {error}")
    results = {result.config["run"]["name"]: result.metrics["result"] for result in fitted}
    report = {}
    for run in runs:
        rows = training_rows(config, store, run)
        report[run.name] = {"weights": run.weights, "sequences": len(rows), **results[run.name]}
        for target, heldout in targets.items():
            report[run.name]["targets"][target]["overlap"] = overlap(rows, heldout)
    return {"tokens": len(rows) * config.sampling.sequence_length, "runs": report}


def _driver_resources() -> dict[str, float]:
    """Where the cluster offers `driver` (an on-demand head), runs are driven from there, never from a spot node."""
    import ray

    return {"driver": 1} if ray.cluster_resources().get("driver", 0) >= 1 else {"cpu": 0.1}


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs: `epochs` passes over `rows` (int32 [n, T]), AdamW, linear decay after warm-up.

    A checkpoint (safetensors) after each epoch; a restarted run goes on from the last one. Returns losses by target.
    """
    import torch
    from ray import train
    from ray.train.torch import get_device, prepare_model
    from safetensors.torch import load_file, save_file

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(settings["seed"])
    model = load_model(settings["located"], str(device))
    heldout = {name: torch.as_tensor(rows, dtype=torch.long, device=device) for name, rows in settings["targets"].items()}
    before = {name: sequence_losses(model, rows) for name, rows in heldout.items()}

    wrapped = prepare_model(model)
    optimiser = torch.optim.AdamW(wrapped.parameters(), lr=settings["learning_rate"], weight_decay=0.0)
    rows = torch.as_tensor(settings["rows"], dtype=torch.long)
    size = settings["batch_size"]
    per_epoch = -(-len(rows) // size)
    total = per_epoch * settings["epochs"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / (0.1 * total + 1), 1.0, (total - step) / (0.9 * total)))
    first = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
            first = int((Path(folder) / "epoch").read_text())
            if first < settings["epochs"]:
                _load_optimiser(optimiser, load_file(Path(folder) / "optimiser.safetensors"))
                schedule.last_epoch = first * per_epoch
    for epoch in range(first, settings["epochs"]):
        wrapped.train()
        order = np.random.default_rng([settings["seed"], epoch]).permutation(len(rows))
        for start in range(0, len(rows), size):
            ids = rows[order[start : start + size][rank::world]].to(device)
            if len(ids):
                loss = token_losses(wrapped, ids).mean()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                _save(save_file, model, optimiser, epoch + 1, settings["epochs"], Path(folder))
            train.report({"epoch": epoch + 1}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None)
    model.eval()
    result = {}
    for name, ids in heldout.items():
        after = sequence_losses(model, ids)
        change = after - before[name]
        result[name] = {
            "before": float(before[name].mean()),
            "after": float(after.mean()),
            "change": float(change.mean()),
            "change_error": float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else None,
        }
    return {"targets": result}


def token_losses(model: Any, ids: Any) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def sequence_losses(model: Any, ids: Any) -> np.ndarray:
    """Mean cross-entropy of each sequence, float64 [n], nats per token."""
    import torch

    with torch.no_grad():
        parts = [token_losses(model, chunk).mean(1).double().cpu() for chunk in ids.split(8)]
    return torch.cat(parts).numpy()


def _save(save_file: Any, model: Any, optimiser: Any, epoch: int, epochs: int, folder: Path) -> None:
    """Model, epoch and, unless this was the last epoch, AdamW's moments: flat safetensors, no pickle."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / "model.safetensors")
    (folder / "epoch").write_text(str(epoch))
    if epoch < epochs:
        moments = optimiser.state_dict()["state"]
        save_file({f"{i}/{k}": v.contiguous() for i, s in moments.items() for k, v in s.items()}, folder / "optimiser.safetensors")


def _load_optimiser(optimiser: Any, flat: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})

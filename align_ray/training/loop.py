"""Training jobs on Ray Train: each starts from the model's weights (or from random ones), trains on given sequences, and
measures the loss of every target's held-out sequences before and after.

The jobs are shared out among as many Ray Train runs as the cluster holds at once (starting one costs ten seconds of CPU),
inside a Ray Tune experiment. A finished job's losses are in the store, keyed by all that determines them, and are not
computed again.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_ray import progress
from align_ray.config import Config, digest
from align_ray.fisher.probe import Located, load_model, random_model
from align_ray.runtime import Capacity, capacity
from align_ray.spending import check_cap, seconds_left
from align_ray.store import Store
from align_ray.training.experiment import drop_torn, restorable


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: int32 rows [n, T], the peak learning rate, and the seed of the order (and of random weights)."""

    rows: np.ndarray
    learning_rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Losses:
    """A target's loss on its held-out sequences, float64 [m], nats per token, before and after a job."""

    before: np.ndarray
    after: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a job came to: losses by target, the seconds of the training alone, and its steps with the loss of their batch."""

    losses: dict[str, Losses]
    seconds: float
    training: list[tuple[int, float]]


def train_jobs(
    config: Config, store: Store, located: Located, heldout: dict[str, np.ndarray], jobs: list[Job]
) -> list[Trained]:
    """Train every job whose result is not in the store; returns what every job came to.

    `heldout`: int32 [m, T] by target. Raises RuntimeError where Ray gives a training up, CapReached where `cost.max_cost` is used up.
    """
    keys = job_keys(config, located, heldout, jobs)
    todo = {k: {"key": k, **vars(job)} for k, job in zip(keys, jobs, strict=True) if not finished(store, k)}
    if todo:
        _train(config, store, {"located": located, "store": store, "targets": heldout}, list(todo.values()))
        check_cap(config)
    return [_trained(store.read_json(f"finetune/{key}.json")) for key in keys]


def job_keys(config: Config, located: Located, heldout: dict[str, np.ndarray], jobs: list[Job]) -> list[str]:
    """What a job's results are stored under: the digest of all that determines them."""
    settings = config.finetune
    fixed = [
        located.digest,
        settings.epochs,
        settings.batch_size,
        settings.scratch,
        {n: r.tolist() for n, r in heldout.items()},
        *([settings.lora_rank] if settings.lora_rank else []),
    ]
    return [digest([fixed, job.rows.tolist(), job.learning_rate, job.seed]) for job in jobs]


def heldout_probabilities(
    config: Config, store: Store, located: Located, heldout: dict[str, np.ndarray], jobs: list[Job]
) -> dict[str, np.ndarray]:
    """Probability of every held-out token after each job, by target float32 [jobs, m, T - 1]; trains what is missing."""
    from safetensors.numpy import load

    train_jobs(config, store, located, heldout, jobs)
    parts = [load(store.read_bytes(f"finetune/{key}.safetensors")) for key in job_keys(config, located, heldout, jobs)]
    return {t: np.exp(-np.stack([p[t] for p in parts])) for t in heldout}


def finished(store: Store, key: str) -> bool:
    """Whether a job's losses are in the store, whole."""
    from safetensors.numpy import load

    return bool(store.find_json(f"finetune/{key}.json") and store.find(f"finetune/{key}.safetensors", load))


def _trained(stored: dict[str, Any]) -> Trained:
    losses = {t: Losses(np.array(r["before"]), np.array(r["after"])) for t, r in stored["targets"].items()}
    return Trained(losses, stored["seconds"], stored.get("training", []))


def _train(config: Config, store: Store, settings: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    """Share the jobs out among as many Ray Train runs as the cluster holds at once, inside one Ray Tune experiment."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    room = capacity(config.cluster)
    slots = min(len(jobs), runs_at_once(config, room))
    local = store.local_path("train")
    storage = str(local) if local else f"{store.uri}/train"
    settings = {**settings, **config.finetune.model_dump()}

    def trial(point: dict[str, int], jobs: list[dict[str, Any]]) -> None:
        share = jobs[point["share"] :: slots]
        run = f"share-{digest([job['key'] for job in share])}"
        drop_torn(f"{storage}/{run}/checkpoint_manager_snapshot.json")
        TorchTrainer(
            train_loop,
            train_loop_config={**settings, "jobs": share},
            scaling_config=scaling(config, room.use_gpu),
            run_config=train.RunConfig(
                name=run,
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=2),
                checkpoint_config=train.CheckpointConfig(num_to_keep=1),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    name = f"finetune-{digest([slots, [job['key'] for job in jobs], config.cost.max_cost])}"
    space = {"share": tune.grid_search(list(range(slots)))}
    trainable = tune.with_parameters(trial, jobs=jobs)  # through the object store: rows of many jobs are megabytes
    # under a cap always anew: Tune restores what was left of the old time budget, and finished trainings are in the store
    if config.cost.max_cost is None and restorable(f"{storage}/{name}"):
        tuner = tune.Tuner.restore(f"{storage}/{name}", trainable=trainable, resume_errored=True, param_space=space)
    else:
        tuner = tune.Tuner(
            tune.with_resources(trainable, driver_resources()),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=slots, time_budget_s=seconds_left()),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[job_counter()],
            ),
        )
    with progress.steps("trainings done", len(jobs)):
        results = tuner.fit()
    for error in results.errors:
        raise RuntimeError(f"fine-tuning failed: {error}") from error


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


def train_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs: one job after the other, each from its initial weights.

    A job's losses by target go to the store as soon as it is done; a restarted run skips finished jobs and resumes the
    one in flight from its last epoch.
    """
    import torch
    from ray import train
    from ray.train.torch import get_device
    from safetensors.numpy import save

    rank, store, device = train.get_context().get_world_rank(), settings["store"], get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    heldout = {name: torch.as_tensor(rows, dtype=torch.long, device=device) for name, rows in settings["targets"].items()}
    scratch = settings["scratch"]
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


def trainable_model(settings: dict[str, Any], device: Any) -> Any:
    """The model as a run starts from: its weights or random ones; with LoRA, frozen but for the adapters."""
    located, scratch, rank = settings["located"], settings["scratch"], settings["lora_rank"]
    model = load_model(located, str(device)) if scratch is None else random_model(located, scratch).to(device)
    if rank is None:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def train_model(
    model: Any,
    job: dict[str, Any],
    settings: dict[str, Any],
    device: Any,
    rungs: tuple[float, ...] = (),
    at_rung: Callable[[int], None] = lambda rung: None,
) -> list[tuple[int, float]]:
    """`epochs` passes over the job's rows (int32 [n, T]): AdamW, clipping at 1, linear decay after 10 % warm-up.

    The model is trained in place; between epochs a checkpoint (safetensors) is reported to Ray Train. `rungs`: shares of all
    steps after which `at_rung` is called with 1, 2, ... instead, without checkpoints. Returns the steps, from the resumed one
    on, with the loss of this worker's part of their batch before the step, nats per token.
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
    for epoch in range(first, settings["epochs"]):
        wrapped.train()
        order = np.random.default_rng([job["seed"], epoch]).permutation(len(rows))
        for step, start in enumerate(range(0, len(rows), size), epoch * per_epoch):
            rate = min((step + 1) / (0.1 * total + 1), 1.0, (total - step) / (0.9 * total))
            for group in optimiser.param_groups:
                group["lr"] = job["learning_rate"] * rate
            # Every rank takes part in every step; a short last batch is shared out with repetition.
            batch = np.resize(order[start : start + size], -(-min(size, len(rows) - start) // world) * world)
            ids = rows[batch[rank::world]].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                loss = token_losses(wrapped, ids).mean()
            loss.backward()
            losses.append(loss.detach())  # read at the end: reading waits for the device
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            for rung, share in enumerate(rungs, start=1):
                if step + 1 == max(1, round(share * total)):
                    at_rung(rung)
        if epoch + 1 < settings["epochs"] and not rungs:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    _save(model, optimiser, f"{job['key']} {epoch + 1}", Path(folder))
                train.report({"epoch": epoch + 1}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None)
    return list(enumerate(torch.stack(losses).tolist(), start=first * per_epoch + 1)) if losses else []


def token_losses(model: Any, ids: Any) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def has_bfloat16(device: Any) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def heldout_losses(model: Any, ids: Any) -> np.ndarray:
    """Cross-entropy of every next token, float32 [n, T-1], nats; matrices in bfloat16 where the device has it (which moves a
    loss by about 1e-4), softmax in float32."""
    import torch

    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=has_bfloat16(ids.device)):
        return torch.cat([token_losses(model, chunk).float().cpu() for chunk in ids.split(8)]).numpy()


def sequence_losses(model: Any, ids: Any) -> np.ndarray:
    """Mean cross-entropy of each sequence, float64 [n], nats per token."""
    return heldout_losses(model, ids).astype(np.float64).mean(1)


def _save(model: Any, optimiser: Any, position: str, folder: Path) -> None:
    """Model, AdamW's moments and the position (job, epochs done): flat safetensors, no pickle."""
    from safetensors.torch import save_file

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k in learned and not (tied and k == "lm_head.weight")}
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

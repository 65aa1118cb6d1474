"""The most expensive objective, real loss: proxies are trained on mixtures.

`tune`: Optuna proposes, every trial is a Ray Train run, ASHA stops the bad ones early. `swarm`: all mixtures are
designed beforehand, and a surrogate of the loss is optimised under the same constraints.
"""

from typing import Any

import numpy as np
from scipy.stats import qmc

from align_ray.config import Config, digest
from align_ray.context import Study, target_weights
from align_ray.corpora.rows import validation_half
from align_ray.mixture.constraints import Constraints, from_unit_cube, nearest, to_unit_cube
from align_ray.mixture.tune import sampler
from align_ray.progress import steps
from align_ray.runtime import capacity
from align_ray.spending import check_cap, seconds_left
from align_ray.training.experiment import LAYOUT, experiment
from align_ray.training.jobs import (
    common_inputs,
    driver_resources,
    job_counter,
    job_key,
    loop_settings,
    replay_share,
    runs_at_once,
    scaling,
    train_jobs,
    without_tasks,
)
from align_ray.training.loop import on_worker, train_model, worker_model
from align_ray.training.rows import (
    heldout_rows,
    mixture_job,
    mixture_jobs,
    replay_text,
    training_rows,
    unique_sequences,
    with_rate,
)
from align_ray.training.step import heldout_losses, sequence_losses

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the proxy's tokens after which its loss is reported."""


def combined(config: Config, losses: dict[str, float]) -> float:
    """What is minimised: the targets' losses by their weights, or the largest."""
    share, values = target_weights(config), np.array([losses[t.name] for t in config.targets])
    return float(values.max() if share is None else share @ values)


def tune_loss(
    study: Study, tokens: dict[str, int], constraints: Constraints, starts: list[np.ndarray], storage: str
) -> list[dict[str, Any]]:
    """Ray Train inside Ray Tune; resumes, and a proxy trained to its end is kept in the store. Returns the trials
    that reached the last rung, best first: `weights`, `loss` (`combined`, nats per token on the validation half of
    the held-out sequences), `losses` by target. Raises RuntimeError where Ray gives one up, CapReached where
    `cost.max_cost` is used up."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    study = without_tasks(with_rate(study))
    config, store, located, names = study.config, study.store, study.model, constraints.names
    room = capacity(config.cluster)
    heldout = {t: validation_half(rows) for t, rows in heldout_rows(study).items()}
    fixed, unique = common_inputs(study, heldout), unique_sequences(config, tokens, config.search.proxy_tokens)
    share, replay, of_replay = scaling(config, room.use_gpu), replay_text(study), replay_share(study)
    settings = {**loop_settings(study, heldout), "targets": heldout, "config": config}

    def trial(point: dict[str, float]) -> None:
        weights = from_unit_cube(np.array([point[n] for n in names]), constraints)
        named = dict(zip(names, weights.tolist(), strict=True))
        rows = training_rows(config, store)
        job = mixture_job(config, rows, unique, named, config.search.proxy_tokens, 0, replay)
        key = job_key(fixed, job, of_replay)
        if done := store.find_json(f"proxies/{key}.json"):
            for rung, losses in enumerate(done, start=1):
                tune.report(metrics(config, named, rung, losses))
            return
        TorchTrainer(
            proxy_loop,
            train_loop_config={**settings, "job": {"key": key, **vars(job)}, "weights": named},
            scaling_config=share,
            run_config=train.RunConfig(
                name=f"trial-{tune.get_context().get_trial_id()}",
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=2),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    inputs = [
        located.digest,
        {t: r.digest() for t, r in heldout.items()},
        constraints.lower.tolist(),
        constraints.upper.tolist(),
    ]
    what = config.model_dump(mode="json", include={"search", "finetune", "seed"})
    points = [dict(zip(names, to_unit_cube(nearest(w, constraints)).tolist(), strict=True)) for w in starts]
    tuner = experiment(
        storage,
        f"loss-{digest([LAYOUT, inputs, what, tokens, config.cost.max_cost])}",
        trial,
        {n: tune.uniform(0.0, 1.0) for n in names},
        tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=config.search.trials,
            search_alg=OptunaSearch(sampler=sampler(config), points_to_evaluate=points),
            scheduler=ASHAScheduler(time_attr="rung", max_t=len(RUNGS), grace_period=1, reduction_factor=2),
            max_concurrent_trials=runs_at_once(config, room),
            time_budget_s=seconds_left(),
        ),
        driver_resources(),
        resume=config.cost.max_cost is None,  # see jobs._train
        callbacks=[job_counter()],
    )
    with steps("parts of proxy trainings done", config.search.trials * len(RUNGS)):
        results = tuner.fit()
    check_cap(config)
    for error in results.errors:
        raise RuntimeError(f"a proxy training failed: {error}")
    whole = [r.metrics for r in results if r.metrics and r.metrics.get("rung") == len(RUNGS)]
    return [
        {
            "weights": {n: m[f"weight/{n}"] for n in names},
            "loss": m["loss"],
            "losses": {t: m[f"loss/{t}"] for t in heldout},
        }
        for m in sorted(whole, key=lambda m: m["loss"])
    ]


def metrics(config: Config, weights: dict[str, float], rung: int, losses: dict[str, float]) -> dict[str, float]:
    """What a trial reports at a rung: the `combined` loss, the targets' losses (nats per token) and the weights."""
    named = {f"loss/{t}": v for t, v in losses.items()} | {f"weight/{n}": w for n, w in weights.items()}
    return {"rung": rung, "loss": combined(config, losses), **named}


def proxy_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker of a trial runs: train on the mixture, report the loss at every rung."""
    import torch
    from ray import train

    device, heldout = on_worker(), settings["targets"]
    torch.manual_seed(settings["job"]["seed"])
    model = worker_model(settings, device)

    reported: list[dict[str, float]] = []

    def report(steps: int) -> None:
        losses = {t: sequence_losses(heldout_losses(model, rows, device)) for t, rows in heldout.items()}
        reported.append({t: float(values.mean()) for t, values in losses.items()})
        rung = len(reported)
        if rung == len(RUNGS) and train.get_context().get_world_rank() == 0:
            settings["store"].write_json(f"proxies/{settings['job']['key']}.json", reported)
        train.report(metrics(settings["config"], settings["weights"], rung, reported[-1]))

    train_model(model, settings["job"], settings, device, RUNGS, report)


def swarm_mixtures(constraints: Constraints, count: int, seed: int) -> np.ndarray:
    """A designed swarm, float64 [count, K]: Sobol points of the gamma parametrisation, spread evenly over the feasible
    mixtures, with uniform and the prior first."""
    points = qmc.Sobol(len(constraints.names), seed=seed).random(1 << max(1, (count - 1).bit_length()))
    rows = [nearest(np.ones(len(constraints.names)), constraints), nearest(constraints.prior, constraints)]
    return np.stack([*rows, *(from_unit_cube(u, constraints) for u in points)])[:count]


def run_swarm(
    study: Study, tokens: dict[str, int], constraints: Constraints
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Train a proxy on each mixture of the swarm (finished ones stay in the store); returns weights [n, K] and, by
    target, losses [n] on the validation half."""
    study = with_rate(study)
    config = study.config
    weights = swarm_mixtures(constraints, config.search.trials, config.seed)
    named = [dict(zip(constraints.names, w.tolist(), strict=True)) for w in weights]
    heldout = heldout_rows(study)
    jobs = mixture_jobs(study, tokens, named, config.search.proxy_tokens, range(1))
    done = train_jobs(study, heldout, jobs, scored=False)
    losses = {t: np.array([validation_half(run.losses[t].after).mean() for run in done]) for t in heldout}
    return weights, losses

"""The dearest objective, real loss: proxies are trained on mixtures.

`tune`: Optuna proposes, every trial is a Ray Train run, ASHA stops the bad ones early. `swarm`: all mixtures are designed
beforehand, and a surrogate of the loss is optimised under the same constraints.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.csv import write_csv
from scipy.stats import qmc

from align_ray.config import Config, digest
from align_ray.fisher.probe import Located
from align_ray.mixture.constraints import Constraints, from_unit_cube, nearest, to_unit_cube
from align_ray.mixture.goals import target_weights
from align_ray.mixture.objectives import Objective
from align_ray.mixture.solver import Goal, penalties, solve
from align_ray.mixture.surrogates import SURROGATES, LogLinear, Predict, cross_validated, default_surrogate
from align_ray.mixture.tune import sampler
from align_ray.progress import steps
from align_ray.runtime import capacity
from align_ray.spending import check_cap, seconds_left
from align_ray.store import Store
from align_ray.training.experiment import restorable
from align_ray.training.loop import (
    driver_resources,
    job_counter,
    job_keys,
    runs_at_once,
    scaling,
    train_jobs,
    train_model,
    trainable_model,
)
from align_ray.training.rows import heldout_sequences, mixture_jobs, validation_half

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the proxy's tokens after which its loss is reported."""
CANDIDATE_MIXTURES = 5_000
"""Feasible mixtures of a round when a surrogate without gradients is optimised; the mean of the best hundred is proposed, as
RegMix does."""


def combined(config: Config, losses: dict[str, float]) -> float:
    """What is minimised: the targets' losses by their weights, or the largest."""
    share, values = target_weights(config), np.array([losses[t.name] for t in config.targets])
    return float(values.max() if share is None else share @ values)


def tune_loss(
    config: Config,
    store: Store,
    located: Located,
    tokens: dict[str, int],
    limits: Constraints,
    starts: list[np.ndarray],
    storage: str,
) -> list[dict[str, Any]]:
    """Ray Train inside Ray Tune; resumes, and a proxy trained to its end is kept in the store. Returns the trials that reached the
    last rung, best first: `weights`, `loss` (`combined`, nats per token on the validation half of the held-out sequences), `losses`
    by target. Raises RuntimeError where Ray gives one up, CapReached where `cost.max_cost` is used up."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    room = capacity(config.cluster)
    names = limits.names
    heldout = {t: validation_half(rows) for t, rows in heldout_sequences(config, store).items()}
    share = scaling(config, room.use_gpu)
    settings = {**config.finetune.model_dump(), "located": located, "targets": heldout, "store": store, "config": config}

    def trial(point: dict[str, float]) -> None:
        weights = from_unit_cube(np.array([point[n] for n in names]), limits)
        named = dict(zip(names, weights.tolist(), strict=True))
        job = mixture_jobs(config, store, tokens, [named], config.search.proxy_tokens, range(1))[0]
        (key,) = job_keys(config, located, heldout, [job])
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

    fixed = [located.digest, {t: r.tolist() for t, r in heldout.items()}, limits.lower.tolist(), limits.upper.tolist()]
    what = config.model_dump(mode="json", include={"search", "finetune", "seed"})
    name = f"loss-{digest([fixed, what, tokens, config.cost.max_cost])}"
    if config.cost.max_cost is None and restorable(f"{storage}/{name}"):  # see training._train
        tuner = tune.Tuner.restore(f"{storage}/{name}", trainable=trial, resume_errored=True)
    else:
        points = [dict(zip(names, to_unit_cube(nearest(w, limits)).tolist(), strict=True)) for w in starts]
        tuner = tune.Tuner(
            tune.with_resources(trial, driver_resources()),
            param_space={n: tune.uniform(0.0, 1.0) for n in names},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=config.search.trials,
                search_alg=OptunaSearch(sampler=sampler(config), points_to_evaluate=points),
                scheduler=ASHAScheduler(time_attr="rung", max_t=len(RUNGS), grace_period=1, reduction_factor=2),
                max_concurrent_trials=runs_at_once(config, room),
                time_budget_s=seconds_left(),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[job_counter()],
            ),
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
    from ray.train.torch import get_device

    from align_ray.training.loop import sequence_losses

    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(settings["job"]["seed"])
    heldout = {t: torch.as_tensor(rows, dtype=torch.long, device=device) for t, rows in settings["targets"].items()}
    model = trainable_model(settings, device)

    reported: list[dict[str, float]] = []

    def report(rung: int) -> None:
        model.eval()
        reported.append({t: float(sequence_losses(model, rows).mean()) for t, rows in heldout.items()})
        if rung == len(RUNGS) and train.get_context().get_world_rank() == 0:
            settings["store"].write_json(f"proxies/{settings['job']['key']}.json", reported)
        train.report(metrics(settings["config"], settings["weights"], rung, reported[-1]))
        model.train()

    train_model(model, settings["job"], settings, device, RUNGS, report)


def swarm_mixtures(limits: Constraints, count: int, seed: int) -> np.ndarray:
    """A designed swarm, float64 [count, K]: Sobol points of the gamma parametrisation, spread evenly over the feasible
    mixtures, with uniform and the prior first."""
    points = qmc.Sobol(len(limits.names), seed=seed).random(1 << max(1, (count - 1).bit_length()))
    rows = [nearest(np.ones(len(limits.names)), limits), nearest(limits.prior, limits)]
    return np.stack([*rows, *(from_unit_cube(u, limits) for u in points)])[:count]


def run_swarm(
    config: Config, store: Store, located: Located, tokens: dict[str, int], limits: Constraints
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Train a proxy on each mixture of the swarm (finished ones stay in the store); returns weights [n, K] and, by target,
    losses [n] on the validation half. Writes both as ratios.csv and metrics.csv, the format `align-ray fit` reads."""
    weights = swarm_mixtures(limits, config.search.trials, config.seed)
    named = [dict(zip(limits.names, w.tolist(), strict=True)) for w in weights]
    heldout = heldout_sequences(config, store)
    jobs = mixture_jobs(config, store, tokens, named, config.search.proxy_tokens, range(1))
    done = train_jobs(config, store, located, heldout, jobs)
    losses = {t: np.array([validation_half(run.losses[t].after).mean() for run in done]) for t in heldout}
    for file, columns in (("ratios", dict(zip(limits.names, weights.T, strict=True))), ("metrics", losses)):
        sink = pa.BufferOutputStream()
        write_csv(pa.table({"run": range(len(weights)), **columns}), sink)
        store.write_bytes(f"{file}.csv", sink.getvalue().to_pybytes())
    return weights, losses


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Weights [K], the surrogate used, its prediction of every metric, and the cross-validated rank correlation of every
    surrogate by metric."""

    weights: np.ndarray
    surrogate: str
    predicted: dict[str, float]
    quality: dict[str, dict[str, float]]


def propose(
    weights: np.ndarray,
    metrics: dict[str, np.ndarray],
    share: np.ndarray | None,
    limits: Constraints,
    surrogate: str | None = None,
    seed: int = 0,
    coordinates: tuple[np.ndarray, np.ndarray] | None = None,
) -> Proposal:
    """Fit a surrogate of every metric (lower is better) and minimise their sum by `share` (None: the largest) under the constraints.

    `weights`: runs' float64 [n, J], metrics [n] each. The prior's strength is taken times the spread of the runs' metric. The
    log-linear law is convex and solved exactly; the others are optimised over many feasible mixtures. `coordinates`: content of the
    runs' domains [J, q] and of the candidates [K, q], on which surrogates are fitted instead of the weights, so that the runs'
    domains need not be the candidates.
    """
    observed = np.stack(list(metrics.values()))
    spread = float(np.ptp(observed.max(0) if share is None else share @ observed))
    limits = dataclasses.replace(limits, strength=limits.strength * spread)
    old, new = coordinates or (np.eye(weights.shape[1]), np.eye(len(limits.names)))
    features = weights @ old
    chosen = surrogate or default_surrogate(len(weights))
    quality = {kind: {m: cross_validated(features, v, kind, seed) for m, v in metrics.items()} for kind in SURROGATES}
    fitted = {m: SURROGATES[chosen](features, v) for m, v in metrics.items()}
    laws = [law for law in fitted.values() if isinstance(law, LogLinear)]
    if len(laws) == len(fitted):
        goal = Goal([_on_weights(law.objective(), new) for law in laws], share)
        best = solve(goal, limits).weights
    else:
        best = _best_of_many(lambda w: _total(w @ new, fitted, share) + penalties(limits, w), limits, seed)
    predicted = {m: float(law((best @ new)[None])[0]) for m, law in fitted.items()}
    return Proposal(best, chosen, predicted, quality)


def _total(features: np.ndarray, fitted: dict[str, Predict], share: np.ndarray | None) -> np.ndarray:
    values = np.stack([predict(features) for predict in fitted.values()])
    return values.max(0) if share is None else share @ values


def _best_of_many(cost: Predict, limits: Constraints, seed: int) -> np.ndarray:
    """Mean of the hundred feasible mixtures of least cost, out of sparse and dense ones and, in a second round, of ones around the
    best of those."""
    rng, k = np.random.default_rng(seed), len(limits.names)
    concentrations = rng.choice([0.1, 0.3, 1.0], CANDIDATE_MIXTURES)
    tried = np.stack([nearest(rng.dirichlet(np.full(k, c)), limits) for c in concentrations])
    for _ in range(2):
        best = tried[np.argsort(cost(tried))[:100]]
        around = [nearest(rng.dirichlet(100 * best[i % 100] + 1e-3), limits) for i in range(CANDIDATE_MIXTURES)]
        tried = np.concatenate([best, np.stack(around)])
    return nearest(tried[np.argsort(cost(tried))[:100]].mean(0), limits)


def _on_weights(objective: Objective, new: np.ndarray) -> Objective:
    """An objective of features w @ new as one of w."""

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, by_feature = objective.gradient(w @ new)
        return value, new @ by_feature

    return Objective(lambda w: objective.values(np.atleast_2d(w) @ new), gradient)


def content_coordinates(pooled: np.ndarray, components: int = 8) -> np.ndarray:
    """Coordinates of corpora by what they hold, from pooled embeddings float [K, D]: principal components of the rows' ratios to
    their mean, [K, q]. They are linear in the embedding, so that a mixture's are the mixture of its corpora's."""
    ratios = pooled / np.maximum(pooled.mean(0), 1e-30)
    ratios = ratios / np.sqrt(ratios.shape[1])
    centred = ratios - ratios.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(components, int((s > 1e-9 * s[0]).sum()))
    return u[:, :kept] * s[:kept] / s[0]

"""The search for mixture weights: Ray Tune with Optuna's TPE over stored embeddings, beside the closed-form optimum.

A trial receives weights, never data: it pools the candidates' mean embeddings and compares with the targets'. Trials are
Trainables whose actors are reused, since an actor start costs a thousand times the objective.
"""

import time
from typing import Any

import numpy as np

from align_ray.alignment import batch_matrix, measures
from align_ray.config import Config, digest
from align_ray.intervals import interval
from align_ray.mixture import (
    cap_weights,
    closed_form,
    from_simplex,
    mixture_alignment,
    to_simplex,
    weight_caps,
)
from align_ray.store import Store, Unit


def search_mixture(config: Config, store: Store, embeddings: dict[str, list[Unit]], tokens: dict[str, int]) -> dict[str, Any]:
    """Find weights that maximise the pooled alignment under the caps; returns a JSON value.

    `tokens`: available tokens by candidate. `mixtures`: for `search` (best trial), `closed_form`, `uniform` and
    `proportional` the weights, A(w) with its interval over batches; `chosen`: the better of the first two.
    """
    candidates = [c.name for c in config.candidates]
    blocks = next(iter(measures(embeddings[candidates[0]]).values()))
    batches = [batch_matrix(embeddings[c], blocks).astype(np.float64) for c in candidates]
    target_batches = [batch_matrix(embeddings[t.name], blocks).astype(np.float64) for t in config.targets]
    pooled = np.stack([b.mean(0) for b in batches])
    targets = np.stack([t.mean(0) for t in target_batches])
    available = np.array([tokens[c] for c in candidates], dtype=np.float64)
    caps = weight_caps({c: tokens[c] for c in candidates}, config.search.token_budget, config.search.max_epochs)
    optimum = closed_form(pooled, targets, caps)
    proportional = cap_weights(available / available.sum(), caps)
    uniform = cap_weights(np.ones(len(candidates)), caps)
    trials = _tune(config, store, candidates, pooled, targets, caps, [uniform, proportional])
    best = max(trials, key=lambda t: t["alignment"])
    weights = {
        "search": np.array([best["weights"][c] for c in candidates]),
        "closed_form": optimum.weights,
        "uniform": uniform,
        "proportional": proportional,
    }
    mixtures = {}
    for name, w in weights.items():
        mixtures[name] = {
            "weights": dict(zip(candidates, w.tolist(), strict=True)),
            "alignment": _mixture_estimate(w, batches, target_batches),
            "epochs": dict(zip(candidates, (w * config.search.token_budget / available).tolist(), strict=True)),
        }
    chosen = max(("closed_form", "search"), key=lambda n: mixtures[n]["alignment"]["value"])
    return {
        "chosen": chosen,
        "mixtures": mixtures,
        "caps": dict(zip(candidates, caps.tolist(), strict=True)),
        "kkt_residual": optimum.kkt,
        "gap_of_search": optimum.value - best["alignment"],
        "single": _singles(candidates, pooled, targets),
        "trials": trials,
    }


def _singles(candidates: list[str], pooled: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """A(w) of each candidate alone, caps aside."""
    return {c: mixture_alignment(np.eye(len(pooled))[i], pooled, targets)[0] for i, c in enumerate(candidates)}


def _mixture_estimate(w: np.ndarray, batches: list[np.ndarray], targets: list[np.ndarray]) -> dict[str, float]:
    """A(w) with the jackknife interval over the batches of every corpus and target, w held fixed."""
    pooled, goals = np.stack([b.mean(0) for b in batches]), np.stack([t.mean(0) for t in targets])
    value, _ = mixture_alignment(w, pooled, goals)
    variance, smallest = 0.0, 10**9
    for side, groups in ((pooled, batches), (goals, targets)):
        for k, group in enumerate(groups):
            if side is pooled and w[k] < 1e-6:
                continue
            n = len(group)
            mean = side[k].copy()
            without = np.empty(n)
            for i in range(n):
                side[k] = (n * mean - group[i]) / (n - 1)
                without[i] = mixture_alignment(w, pooled, goals)[0]
            side[k] = mean
            variance += (n - 1) / n * ((without - without.mean()) ** 2).sum()
            smallest = min(smallest, n)
    return vars(interval(value, variance, smallest - 1))


def _tune(config: Config, store: Store, candidates: list[str], pooled: Any, targets: Any, caps: Any, seeds: list) -> list[dict]:
    """Run, or resume, the Tune experiment; its name is the digest of what it depends on."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class MixtureTrial(tune.Trainable):
        def setup(self, point: dict[str, float], pooled: Any = None, targets: Any = None, caps: Any = None) -> None:
            self.problem = (pooled, targets, caps)
            self.point = point

        def reset_config(self, point: dict[str, float]) -> bool:
            self.point = point
            return True

        def step(self) -> dict[str, Any]:
            pooled, targets, caps = self.problem
            w = to_simplex(np.array([self.point[c] for c in candidates]), caps)
            value = mixture_alignment(w, pooled, targets)[0]
            return {"alignment": value, "weights": w.tolist(), "finished": time.time(), "done": True}

        def save_checkpoint(self, folder: str) -> None: ...

        def load_checkpoint(self, folder: str) -> None: ...

    inputs = [candidates, np.round(pooled.sum(1), 12).tolist(), targets.sum(1).tolist(), caps.tolist(), config.seed, config.search.trials]
    name = f"search-{digest(inputs)}"
    local = store.local_path("tune")
    storage = str(local) if local else f"{store.uri}/tune"
    trainable = tune.with_parameters(MixtureTrial, pooled=pooled, targets=targets, caps=caps)
    path = f"{storage}/{name}"
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_errored=True)
    else:
        points = [dict(zip(candidates, from_simplex(w).tolist(), strict=True)) for w in seeds]
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={c: tune.uniform(0.0, 1.0) for c in candidates},
            tune_config=tune.TuneConfig(
                metric="alignment",
                mode="max",
                num_samples=config.search.trials,
                search_alg=OptunaSearch(seed=config.seed, points_to_evaluate=points),
                # one at a time: TPE then sees every earlier trial in the same order, so that a seed fixes the search
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0),
        )
    results = tuner.fit()
    for error in results.errors:
        raise RuntimeError(f"a search trial failed: {error}")
    trials = []
    for result in sorted(results, key=lambda r: r.metrics["finished"]):  # a restored search lists them in another order
        w = dict(zip(candidates, result.metrics["weights"], strict=True))
        trials.append({"alignment": result.metrics["alignment"], "weights": w})
    return trials



"""Ray Tune with Optuna over mixture weights, where the objective is cheap: a trial receives a point, never data, and
evaluates many mixtures around it at once, since an actor costs a thousand times one evaluation."""

import time
from typing import Any

import numpy as np

from align_ray.config import Config, digest
from align_ray.mixture.constraints import Constraints, from_unit_cube, nearest, to_unit_cube
from align_ray.mixture.solver import Goal, Optimum
from align_ray.training.experiment import LAYOUT, experiment

AROUND = 256
"""Mixtures of a trial: the suggested one, and draws of a Dirichlet distribution around it."""
SETTLED = 8
"""Trials without a change among the best ones after which the search stops."""


def mixtures_around(point: dict[str, float], constraints: Constraints, seed: int) -> np.ndarray:
    """The mixtures of a trial, feasible, float64 [AROUND, K]; `point`: a number of the unit cube by corpus, and
    `concentration`."""
    u = np.array([point[n] for n in constraints.names])
    centre = from_unit_cube(u, constraints)
    rng = np.random.default_rng([seed, *(u * 2**32).astype(np.int64)])
    drawn = rng.dirichlet(np.maximum(point["concentration"] * centre, 1e-3), AROUND - 1)
    return np.stack([centre, *(nearest(w, constraints) for w in drawn)])


def sampler(config: Config) -> Any:
    """Optuna's TPE, seeded."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.samplers.TPESampler(seed=config.seed)


def tune_search(
    config: Config, goal: Goal, constraints: Constraints, optimum: Optimum, storage: str
) -> list[dict[str, Any]]:
    """Run, or resume, the Tune experiment; its name is the digest of what it depends on.

    Warm-started from the closed form, the prior and uniform; stops when the best trials stay the same. Returns the
    trials in the order they finished: best `weights` of each, its `value` and `penalised` objective.
    """
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch
    from ray.tune.stopper import ExperimentPlateauStopper

    names, seed = constraints.names, config.seed

    class MixtureTrial(tune.Trainable):
        def setup(self, point: dict[str, float], problem: Any = None) -> None:
            self.goal, self.constraints = problem
            self.point = point

        def reset_config(self, point: dict[str, float]) -> bool:
            self.point = point
            return True

        def step(self) -> dict[str, Any]:
            tried = mixtures_around(self.point, self.constraints, seed)
            penalised = self.goal.penalised(self.constraints, tried)
            best = int(np.argmax(penalised))
            return {
                "penalised": float(penalised[best]),
                "value": float(self.goal.values(tried[best : best + 1])[0]),
                "weights": tried[best].tolist(),
                "finished": time.time(),
                "done": True,
            }

        def save_checkpoint(self, folder: str) -> None: ...

        def load_checkpoint(self, folder: str) -> None: ...

    starts = [optimum.weights, constraints.prior, np.full(len(names), 1 / len(names))]
    points = [
        {**dict(zip(names, to_unit_cube(nearest(w, constraints)).tolist(), strict=True)), "concentration": 100.0}
        for w in starts
    ]
    inputs = [
        goal.values(np.stack([nearest(w, constraints) for w in (*starts, *np.eye(len(names)))])).round(9).tolist(),
        names,
    ]
    settings = config.search.model_dump(mode="json", exclude={"resamples", "proxy_tokens"})
    tuner = experiment(
        storage,
        f"search-{digest([LAYOUT, inputs, settings, constraints.lower.tolist(), constraints.upper.tolist(), seed])}",
        tune.with_parameters(MixtureTrial, problem=(goal, constraints)),
        {**{n: tune.uniform(0.0, 1.0) for n in names}, "concentration": tune.loguniform(10.0, 1e5)},
        tune.TuneConfig(
            metric="penalised",
            mode="max",
            num_samples=config.search.trials,
            search_alg=OptunaSearch(sampler=sampler(config), points_to_evaluate=points),
            # one at a time: Optuna then sees every earlier trial in the same order, so that a seed fixes the search
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        {"cpu": 1},
        stop=ExperimentPlateauStopper("penalised", std=1e-5, top=3, mode="max", patience=SETTLED),
    )
    results = tuner.fit()
    for error in results.errors:
        raise RuntimeError(f"a search trial failed: {error}")
    trials = []
    for result in sorted((r for r in results if "weights" in r.metrics), key=lambda r: r.metrics["finished"]):
        w = dict(zip(names, result.metrics["weights"], strict=True))
        trials.append({"value": result.metrics["value"], "penalised": result.metrics["penalised"], "weights": w})
    return trials

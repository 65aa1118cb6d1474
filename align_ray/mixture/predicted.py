"""Mixtures whose loss is predicted from trainings on each candidate alone and a few on mixtures.

Of any mixture: the loss of the *ensemble* of the candidates' models (MixMin's; MDE, arXiv 2502.15950), of the
*merged* model (`merged.py`), and the *linear* average of the candidates' losses. None is the loss after training on the
mixture, but all go with it; so a Bayesian ridge on what they differ by is fitted to at most RUNS real trainings, and
gives every mixture a loss with an interval. The runs are chosen in two rounds: first the likely best and what is unlike
it, then those that may be better than all by expected improvement.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from align_ray.context import Study, target_weights
from align_ray.corpora.rows import Rows, validation_half
from align_ray.errors import ConfigError
from align_ray.mixture.by_loss import combined, swarm_mixtures
from align_ray.mixture.constraints import Constraints, nearest
from align_ray.mixture.merged import merged_losses
from align_ray.mixture.objectives import log_mixture_objective
from align_ray.training.jobs import Trained, heldout_probabilities, job_keys, train_jobs
from align_ray.training.rows import candidate_jobs, heldout_rows, mixture_jobs, scored_alone, with_rate

RUNS = 8
"""Real trainings on mixtures at most."""
POOL = 2048
"""Feasible mixtures whose ensemble loss is computed."""
KEPT = 48
"""Of them those that are merged: the best ones by the ensemble, and some of all kinds."""
EQUAL = 0.02
"""Mixtures that differ by less in total variation are one."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of n mixtures without training on them, by target float64 [n], nats per token."""

    ensemble: dict[str, np.ndarray]
    merged: dict[str, np.ndarray]
    linear: dict[str, np.ndarray]

    def of(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        """A first guess [n], and what may correct it [n, 2]."""
        e, m, flat = self.ensemble[target], self.merged[target], self.linear[target]
        return (e + m) / 2, np.stack([e - m, flat - e], axis=1)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Losses of n mixtures, by target float64 [n], nats per token, with standard deviations; `freedom` degrees."""

    mean: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    freedom: int

    def interval(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Ends of 95% intervals."""
        reach = stats.t.ppf(0.975, self.freedom) * self.error[target]
        return self.mean[target] - reach, self.mean[target] + reach


def predict(features: Features, runs: list[int], losses: Mapping[str, np.ndarray]) -> Predicted:
    """Losses of all mixtures from those of the trained ones: `runs` are their places among the mixtures, `losses` by
    target float64 [len(runs)]; at least two."""
    from sklearn.linear_model import BayesianRidge

    mean, error = {}, {}
    freedom = max(1, len(runs) - 3)  # an offset and two corrections are fitted
    for target, seen in losses.items():
        guess, correction = features.of(target)
        unit = max(float(np.abs(correction).max()), 1e-9)
        model = BayesianRidge().fit(correction[runs] / unit, seen - guess[runs])
        more, spread = model.predict(correction / unit, return_std=True)
        # the ridge's noise is what fits best, as if nothing had been fitted
        mean[target], error[target] = guess + more, spread * np.sqrt(len(runs) / freedom)
    return Predicted(mean, error, freedom)


def search_by_prediction(
    study: Study, tokens: dict[str, int], constraints: Constraints, known: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The feasible mixture of least predicted loss, [K], and as JSON values `trials` (the real runs, best first) and
    `prediction`: `experts` and `runs` trained, and by name of the `known` mixtures ([K] each, also infeasible ones) and
    of `recommended` the predicted loss by target with its interval.

    Trains every candidate and up to `search.trials`, at most RUNS, mixtures on `finetune.tokens` (one seed; what is in
    the store is not trained again).
    """
    study = with_rate(study.changed(finetune={"keep_weights": True}))
    config, heldout, names = study.config, heldout_rows(study), constraints.names
    experts, scored = candidate_jobs(study, config.finetune.tokens), scored_alone(config)
    _refuse_diverged(train_jobs(study, heldout, experts, scored), list(names))
    keys = job_keys(study, heldout, experts, scored)
    probabilities = {t: validation_rows(p) for t, p in heldout_probabilities(study, heldout, experts, scored).items()}
    feasible = {n: w for n, w in known.items() if within(w, constraints)}
    pool = np.concatenate(
        [
            np.array(list(known.values())),
            around(feasible, constraints, config.seed),
            swarm_mixtures(constraints, POOL // 2, config.seed),
        ]
    )
    everything = ensemble_losses(probabilities, pool)
    kept = _kept(pool, _together(study, everything), len(known))
    mixtures = pool[kept]
    ensemble = {t: losses[kept] for t, losses in everything.items()}
    # models that began from random weights have no base to merge on
    merged = merged_losses(study, heldout, keys, mixtures) if config.finetune.scratch is None else ensemble
    features = Features(ensemble, merged, linear_losses(probabilities, mixtures))
    trained = study.changed(finetune={"keep_weights": False})
    total, may = min(RUNS, config.search.trials), np.array([within(w, constraints) for w in mixtures])
    runs = first_runs(mixtures, _together(study, {t: features.of(t)[0] for t in heldout}), may, (total + 1) // 2)
    losses = _measured(trained, tokens, heldout, mixtures[runs], names)
    if len(runs) < total:
        found = predict(features, runs, losses)
        runs += next_runs(
            mixtures, *_of_all(study, found), _together(study, losses).min(), may, runs, total - len(runs)
        )
        losses = _measured(trained, tokens, heldout, mixtures[runs], names)
    found = predict(features, runs, losses)
    mean, _ = _of_all(study, found)
    best = int(np.argmin(np.where(may, mean, np.inf)))
    trials: list[dict[str, Any]] = []
    for i, at in enumerate(runs):
        of_run = {t: float(values[i]) for t, values in losses.items()}
        named = dict(zip(names, mixtures[at].tolist(), strict=True))
        trials.append({"weights": named, "losses": of_run, "loss": combined(config, of_run)})
    places = {name: i for i, name in enumerate(known)} | {"recommended": best}
    described = {name: _described(found, at) for name, at in places.items()}
    prediction = {"experts": len(names), "runs": len(runs), "mixtures": described}
    return mixtures[best], {"trials": sorted(trials, key=lambda t: t["loss"]), "prediction": prediction}


def ensemble_losses(probabilities: Mapping[str, np.ndarray], mixtures: np.ndarray) -> dict[str, np.ndarray]:
    """-mean log sum_k w_k p_k by target, [n], of mixtures [n, K]; `probabilities` [K, tokens] of what counts."""
    return {t: -log_mixture_objective(p, np.ones(p.shape[1])).values(mixtures) for t, p in probabilities.items()}


def linear_losses(probabilities: Mapping[str, np.ndarray], mixtures: np.ndarray) -> dict[str, np.ndarray]:
    """The mixtures' mean of the candidates' losses, by target [n]."""
    return {t: mixtures @ -np.log(np.maximum(p, 1e-12)).mean(1) for t, p in probabilities.items()}


def validation_rows(probabilities: np.ndarray) -> np.ndarray:
    """Of token probabilities [K, m, T - 1], NaN where a token does not count, those of the half that chooses, flat:
    [K, tokens]."""
    half = np.stack([validation_half(p) for p in probabilities]).reshape(len(probabilities), -1)
    return half[:, np.isfinite(half[0])]


def within(w: np.ndarray, constraints: Constraints) -> bool:
    """Whether a mixture keeps to the bounds and to the number of corpora."""
    few = constraints.most is None or int((w > 1e-6).sum()) <= constraints.most
    return bool(few and (w <= constraints.upper + 1e-6).all() and (w >= constraints.lower - 1e-6).all())


def around(feasible: Mapping[str, np.ndarray], constraints: Constraints, seed: int) -> np.ndarray:
    """Feasible mixtures near those given, from close by to far, float64 [POOL / 2, K]."""
    rng, starts = np.random.default_rng(seed), list(feasible.values()) or [constraints.prior]
    some = (starts[i % len(starts)] for i in range(POOL // 2))
    sharp = rng.choice([10.0, 30.0, 100.0], POOL // 2)
    return np.stack([nearest(rng.dirichlet(s * w + 1e-2), constraints) for s, w in zip(sharp, some, strict=True)])


def first_runs(mixtures: np.ndarray, guess: np.ndarray, may: np.ndarray, count: int) -> list[int]:
    """Places of the feasible mixture that is guessed best, and of those that are farthest from all chosen so far among
    the better half."""
    allowed = np.flatnonzero(may & (guess <= np.median(guess[may])))
    chosen = [int(allowed[np.argmin(guess[allowed])])]
    while len(chosen) < min(count, len(allowed)):
        apart = np.abs(mixtures[allowed][:, None] - mixtures[chosen][None]).sum(-1).min(1)
        chosen.append(int(allowed[np.argmax(apart)]))
    return list(dict.fromkeys(chosen))


def next_runs(
    mixtures: np.ndarray, mean: np.ndarray, error: np.ndarray, best: float, may: np.ndarray, done: list[int], count: int
) -> list[int]:
    """Places of the feasible mixtures of most expected improvement on the `best` loss measured, no two alike."""
    z = (best - mean) / np.maximum(error, 1e-12)
    improvement = (best - mean) * stats.norm.cdf(z) + error * stats.norm.pdf(z)
    chosen: list[int] = []
    for at in np.argsort(-np.where(may, improvement, -np.inf), kind="stable"):
        if len(chosen) == count or not may[at]:
            break
        if min(np.abs(mixtures[at] - mixtures[d]).sum() / 2 for d in [*done, *chosen]) > EQUAL:
            chosen.append(int(at))
    return chosen


def _kept(pool: np.ndarray, ensemble: np.ndarray, known: int) -> np.ndarray:
    """Places of the known mixtures, of the best half of KEPT by the ensemble, no two alike, and of others of any kind,
    increasing by loss."""
    order, kept = np.argsort(ensemble, kind="stable"), list(range(known))
    wanted = known + KEPT // 2
    for candidates in (order, order[:: max(1, len(order) // KEPT)]):
        for at in candidates:
            if len(kept) >= wanted:
                break
            if min(np.abs(pool[at] - pool[d]).sum() / 2 for d in kept) > EQUAL:
                kept.append(int(at))
        wanted = known + KEPT
    return np.array(kept)


def _together(study: Study, losses: Mapping[str, np.ndarray]) -> np.ndarray:
    """What is minimised, of n mixtures."""
    n = len(next(iter(losses.values())))
    return np.array([combined(study.config, {t: float(v[i]) for t, v in losses.items()}) for i in range(n)])


def _of_all(study: Study, found: Predicted) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of what is minimised, targets taken as independent."""
    share, means, errors = target_weights(study.config), *(np.stack([*v.values()]) for v in (found.mean, found.error))
    if share is not None:
        return share @ means, np.sqrt(share**2 @ errors**2)
    drawn = means + errors * np.random.default_rng(study.config.seed).standard_normal((1000, *means.shape))
    worst = drawn.max(1)
    return worst.mean(0), worst.std(0)


def _measured(
    study: Study, tokens: dict[str, int], heldout: dict[str, Rows], mixtures: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Losses after training on the mixtures, on the half that chooses, by target [n]."""
    weights = [dict(zip(names, w.tolist(), strict=True)) for w in mixtures]
    jobs = mixture_jobs(study, tokens, weights, study.config.finetune.tokens, range(1))
    done = train_jobs(study, heldout, jobs, scored=False)
    _refuse_diverged(done, ["a mixture"] * len(done))
    return {t: np.array([validation_half(run.losses[t].after).mean() for run in done]) for t in heldout}


def _refuse_diverged(done: list[Trained], names: list[str]) -> None:
    """Raises ConfigError where a loss is no number."""
    for name, trained in zip(names, done, strict=True):
        if not all(np.isfinite(losses.after).all() for losses in trained.losses.values()):
            raise ConfigError(
                f"the training on {name} diverged: its loss is no number; lower finetune.learning_rate or leave it out."
            )


def _described(found: Predicted, at: int) -> dict[str, dict[str, float]]:
    ends = {t: found.interval(t) for t in found.mean}
    return {
        t: {
            "value": float(found.mean[t][at]),
            "error": float(found.error[t][at]),
            "low": float(ends[t][0][at]),
            "high": float(ends[t][1][at]),
        }
        for t in found.mean
    }

"""Mixtures from trainings on other mixtures: a surrogate of their losses is optimised under the constraints.

The runs are the swarm of a search on real loss, or ones that a user has made elsewhere; then content coordinates can
stand for the weights of their domains.
"""

import dataclasses

import numpy as np

from align_ray.config import Bounds, Search
from align_ray.context import Study
from align_ray.corpora.sample import token_counts
from align_ray.embedding.evidence import Evidence
from align_ray.errors import ConfigError
from align_ray.mixture.constraints import Constraints, constraints_of, divergence, nearest
from align_ray.mixture.objectives import Objective
from align_ray.mixture.runs import Runs
from align_ray.mixture.solver import Goal, solve
from align_ray.mixture.surrogates import SURROGATES, LogLinear, Predict, cross_validated, default_surrogate

CANDIDATE_MIXTURES = 5_000
"""Feasible mixtures of a round when a surrogate without gradients is optimised; the mean of the best hundred is
proposed, as RegMix does."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Weights [K], the surrogate used, its prediction of every metric, and the cross-validated rank correlation of
    every surrogate by metric."""

    weights: np.ndarray
    surrogate: str
    predicted: dict[str, float]
    quality: dict[str, dict[str, float]]


def propose(
    weights: np.ndarray,
    metrics: dict[str, np.ndarray],
    share: np.ndarray | None,
    constraints: Constraints,
    prior_strength: float,
    surrogate: str | None = None,
    seed: int = 0,
    coordinates: tuple[np.ndarray, np.ndarray] | None = None,
) -> Proposal:
    """Fit a surrogate of every metric (lower is better) and minimise their sum by `share` (None: the largest) under the
    constraints.

    `weights`: runs' float64 [n, J], metrics [n] each. `prior_strength`: the configuration's, here in units of the
    spread of the runs' metric. The log-linear law is convex and solved exactly; the others are optimised over many
    feasible mixtures. `coordinates`: content of the runs' domains [J, q] and of the candidates [K, q], on which
    surrogates are fitted instead of the weights, so that the runs' domains need not be the candidates.
    """
    observed = np.stack(list(metrics.values()))
    strength = prior_strength * float(np.ptp(observed.max(0) if share is None else share @ observed))
    old, new = coordinates or (np.eye(weights.shape[1]), np.eye(len(constraints.names)))
    features = weights @ old
    chosen = surrogate or default_surrogate(len(weights))
    quality = {kind: {m: cross_validated(features, v, kind, seed) for m, v in metrics.items()} for kind in SURROGATES}
    fitted = {m: SURROGATES[chosen](features, v) for m, v in metrics.items()}
    laws = [law for law in fitted.values() if isinstance(law, LogLinear)]
    if len(laws) == len(fitted):
        goal = Goal([_on_weights(law.objective(), new) for law in laws], share, strength)
        best = solve(goal, constraints).weights
    else:
        best = _best_of_many(
            lambda w: _total(w @ new, fitted, share) + strength * divergence(constraints, w), constraints, seed
        )
    predicted = {m: float(law((best @ new)[None])[0]) for m, law in fitted.items()}
    return Proposal(best, chosen, predicted, quality)


def _total(features: np.ndarray, fitted: dict[str, Predict], share: np.ndarray | None) -> np.ndarray:
    values = np.stack([predict(features) for predict in fitted.values()])
    return values.max(0) if share is None else share @ values


def _best_of_many(cost: Predict, constraints: Constraints, seed: int) -> np.ndarray:
    """Mean of the hundred feasible mixtures of least cost, out of sparse and dense ones and, in a second round, of
    ones around the best of those."""
    rng, k = np.random.default_rng(seed), len(constraints.names)
    concentrations = rng.choice([0.1, 0.3, 1.0], CANDIDATE_MIXTURES)
    tried = np.stack([nearest(rng.dirichlet(np.full(k, c)), constraints) for c in concentrations])
    for _ in range(2):
        best = tried[np.argsort(cost(tried))[:100]]
        around = [nearest(rng.dirichlet(100 * best[i % 100] + 1e-3), constraints) for i in range(CANDIDATE_MIXTURES)]
        tried = np.concatenate([best, np.stack(around)])
    return nearest(tried[np.argsort(cost(tried))[:100]].mean(0), constraints)


def _on_weights(objective: Objective, new: np.ndarray) -> Objective:
    """An objective of features w @ new as one of w."""

    def gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, by_feature = objective.gradient(w @ new)
        return value, new @ by_feature

    return Objective(lambda w: objective.values(np.atleast_2d(w) @ new), gradient)


def content_coordinates(pooled: np.ndarray, components: int = 8) -> np.ndarray:
    """Coordinates of corpora by what they hold, from pooled embeddings float [K, D]: principal components of the
    rows' ratios to their mean, [K, q]. They are linear in the embedding, so that a mixture's are the mixture of its
    corpora's."""
    ratios = pooled / np.maximum(pooled.mean(0), 1e-30)
    ratios = ratios / np.sqrt(ratios.shape[1])
    centred = ratios - ratios.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(components, int((s > 1e-9 * s[0]).sum()))
    return u[:, :kept] * s[:kept] / s[0]


def propose_from_runs(
    runs: Runs,
    surrogate: str | None,
    prior_strength: float,
    study: Study | None = None,
    evidence: Evidence | None = None,
) -> tuple[Constraints, Proposal]:
    """A mixture of the domains that the runs used, without constraints; with a study one of its candidates under its
    constraints, where the runs' domains must be corpora of the study (candidates or targets), whose embeddings then
    stand for
    them."""
    if surrogate is not None and surrogate not in SURROGATES:
        raise ConfigError(f"--surrogate {surrogate}: choose one of {', '.join(SURROGATES)}.")
    share = np.full(len(runs.metrics), 1 / len(runs.metrics))
    if study is None or evidence is None:
        none: dict = {name: Bounds(max=0.0) for name in runs.unused}
        constraints = constraints_of(Search(token_budget=1, weights=none), dict.fromkeys(runs.domains, 1))
        return constraints, propose(runs.weights, runs.metrics, share, constraints, prior_strength, surrogate)
    rows = evidence.rows
    missing = [d for d in runs.domains if d not in rows]
    if missing:
        raise ConfigError(
            f"--study: the runs' domain '{missing[0]}' is no corpus of the study; add it, so that its content can be "
            "compared."
        )
    constraints = constraints_of(study.config.search, token_counts(study))
    names = list(dict.fromkeys([*runs.domains, *constraints.names]))
    found = dict(zip(names, content_coordinates(np.stack([rows[n].mean(0) for n in names])), strict=True))
    coordinates = np.stack([found[d] for d in runs.domains]), np.stack([found[n] for n in constraints.names])
    strength = study.config.search.prior_strength
    return constraints, propose(
        runs.weights, runs.metrics, share, constraints, strength, surrogate, study.config.seed, coordinates
    )

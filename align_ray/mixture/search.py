"""The search stage: gather what the objective needs, search, and check the answer by embedding it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from align_ray.config import Config
from align_ray.context import Study, target_weights
from align_ray.corpora.sample import token_counts
from align_ray.embedding.evidence import Evidence
from align_ray.mixture.by_loss import combined, run_swarm, tune_loss
from align_ray.mixture.check import CHECKED, check_mixtures
from align_ray.mixture.constraints import Constraints, constraints_of, nearest, unconstrained
from align_ray.mixture.describe import (
    comparison_mixtures,
    describe,
    mixture_warnings,
    pareto,
    repeated_together,
    weight_table,
    what_if,
)
from align_ray.mixture.dsir import dsir_mixture
from align_ray.mixture.goals import Builder, goal_builder
from align_ray.mixture.mixmin import candidate_probabilities
from align_ray.mixture.predicted import RUNS, search_by_prediction
from align_ray.mixture.propose import propose
from align_ray.mixture.solver import Goal, Optimum, effective_corpora, near_optimal_average, solve, with_prior
from align_ray.mixture.tune import tune_search


def find_mixture(study: Study, evidence: Evidence) -> dict[str, Any]:
    """Search by the configured objective and method; returns what `search_mixture` does, and

    `check[name][target]`: predicted and measured alignment of mixtures that were materialised and embedded; for trained
    objectives `trials` (losses), for the swarm `surrogate`, for predicted losses `prediction`.
    """
    config, tokens = study.config, token_counts(study)
    constraints, vocabulary = constraints_of(config.search, tokens), len(study.tokenizer)

    def probabilities() -> dict[str, np.ndarray]:
        study.say(f"training on each of {len(tokens)} candidates, for MixMin")
        keeping = {"keep_weights": config.search.objective == "predicted" or config.finetune.keep_weights}
        return candidate_probabilities(study.changed(finetune=keeping))

    build = goal_builder(config, evidence.rows, evidence.batches, vocabulary, probabilities)
    others = {"dsir": dsir_mixture(study)} | by_other_objectives(study, constraints, evidence)
    storage, trained = study.store.place("tune"), config.search.objective in ("loss", "predicted")
    cheap = study.changed(search={"method": "closed_form"}).config if trained else config
    at_most = "" if trained or config.search.method == "closed_form" else f": at most {config.search.trials} trials"
    study.say(f"searching mixtures{at_most}")
    result = search_mixture(cheap, evidence.rows, tokens, build, storage, others)
    if trained:
        goal = build(None)
        weights, found = _search_by_training(study, tokens, constraints, result, storage)
        result["cheap"] = result["mixtures"].pop("recommended")
        described = describe(config, goal, constraints, tokens, evidence.rows, {"recommended": weights})
        result["mixtures"] = {**described, **result["mixtures"]}
        # what is known of the optimum (limits, prices, intervals) is the objective's from which the search started
        result |= {
            "objective": config.search.objective,
            "optimum": config.search.method if config.search.objective == "loss" else "predicted",
            "effective_corpora": effective_corpora(weights),
            **found,
        }
    shared = {name: corpus.get("shared_with", {}) for name, corpus in study.store.read_json("corpora.json").items()}
    result["warnings"] += repeated_together(config, tokens, shared, result["mixtures"]["recommended"]["weights"])
    study.say(f"embedding {len(CHECKED)} mixtures to check the prediction")
    result["check"] = check_mixtures(study, evidence, constraints, result["mixtures"])
    return result


def _search_by_training(
    study: Study, tokens: dict[str, int], constraints: Constraints, cheap: dict[str, Any], storage: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights [K], and `trials`; for the swarm also `surrogate`, for predicted losses `prediction`."""
    config = study.config
    if config.search.objective == "predicted":
        known = {name: np.array(list(m["weights"].values())) for name, m in cheap["mixtures"].items()}
        known["by mixmin"] = known.pop("recommended")
        study.say(f"training on at most {min(RUNS, config.search.trials)} mixtures, to predict the loss of all")
        return search_by_prediction(study, tokens, constraints, known)
    at_most = "at most " if config.search.method == "tune" else ""
    study.say(f"training {at_most}{config.search.trials} proxies on {config.search.proxy_tokens} tokens")
    if config.search.method == "tune":
        starts = [
            np.array(list(cheap["mixtures"][n]["weights"].values())) for n in ("recommended", "unimax", "proportional")
        ]
        trials = tune_loss(study, tokens, constraints, starts, storage)
        # the mean of the best few, for the same reason as the near-optimal set's: the least loss is in part luck
        best = np.mean([list(t["weights"].values()) for t in trials[: max(1, len(trials) // 8)]], axis=0)
        return nearest(best, constraints), {"trials": trials}
    weights, losses = run_swarm(study, tokens, constraints)
    proposal = propose(
        weights, losses, target_weights(config), constraints, config.search.prior_strength, seed=config.seed
    )
    named = [dict(zip(constraints.names, w.tolist(), strict=True)) for w in weights]
    trials = [{"weights": w, "losses": {t: float(v[i]) for t, v in losses.items()}} for i, w in enumerate(named)]
    for trial in trials:
        trial["loss"] = combined(config, trial["losses"])
    surrogate = {k: v for k, v in dataclasses.asdict(proposal).items() if k != "weights"}
    return proposal.weights, {"trials": trials, "surrogate": surrogate}


def by_other_objectives(study: Study, constraints: Constraints, evidence: Evidence) -> dict[str, np.ndarray]:
    """The optimum of every other objective that needs no training, under the same constraints and prior, [K] by
    name."""
    result = {}
    for objective in ("cross-entropy", "scaled-cosine", "hellinger", "kl", "linear"):
        if objective != study.config.search.objective:
            other = study.changed(search={"objective": objective}).config
            goal = goal_builder(other, evidence.rows, evidence.batches, len(study.tokenizer), dict)(None)
            result[f"by {objective}"] = solve(
                with_prior(goal, constraints, other.search.prior_strength), constraints
            ).weights
    return result


def search_mixture(
    config: Config,
    rows: Mapping[str, np.ndarray],
    tokens: dict[str, int],
    build: Builder,
    storage: str,
    others: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Find weights that maximise the goal under the constraints; returns a JSON value.

    `rows`: batch embeddings [N, D] by corpus; `tokens`: available tokens by candidate; `storage`: where Ray Tune keeps
    its state; `others`: further mixtures to show. `mixtures[name]`: `weights`, `value` of the objective (nats for
    cross-entropy and mixmin: minus the cross-entropy), the pooled `alignment` (the paper's, without its bias, with its
    interval) and `epochs` of every corpus at the token budget. Names: `recommended` (the mean of the near-optimal set),
    `closed_form` or `search` (the optimum), `unconstrained`, `uniform`, `proportional`, `unimax` (uniform within the
    caps), `best_single`, `bad`, and the `others`. `weights[corpus]`: interval of the optimum's weight, what limits it
    and prices. `budgets`: the optimum at other token budgets (`what_if`).
    """
    constraints, plain = constraints_of(config.search, tokens), build(None)
    goal = with_prior(plain, constraints, config.search.prior_strength)
    optimum = solve(goal, constraints)
    trials: list[dict[str, Any]] = []
    found, gap = "closed_form", None
    if config.search.method == "tune":
        trials = tune_search(config, goal, constraints, optimum, storage)
        best = max(trials, key=lambda t: t["penalised"])
        gap = optimum.penalised - best["penalised"]
        if gap < -1e-9:
            better = solve(goal, constraints, np.array([best["weights"][n] for n in constraints.names]))
            optimum, found = dataclasses.replace(better, choice=optimum.choice), "search"
    free = solve(plain, unconstrained(constraints))
    noise = _halves(config, build, goal, constraints, optimum)
    recommended = near_optimal_average(goal, constraints, optimum, noise["slack"], config.seed)
    mixtures = {"recommended": recommended, "closed_form": optimum.weights, "unconstrained": free.weights}
    if trials:
        mixtures["search"] = np.array([best["weights"][n] for n in constraints.names])
    mixtures |= comparison_mixtures(goal, constraints, tokens) | others
    return {
        "objective": config.search.objective,
        "optimum": found,
        "mixtures": describe(config, goal, constraints, tokens, rows, mixtures),
        "weights": weight_table(constraints, tokens, optimum, noise),
        "caps": dict(zip(constraints.names, constraints.caps.tolist(), strict=True)),
        "effective_corpora": effective_corpora(recommended),
        "kkt_residual": optimum.gap,
        "kkt_residual_within": optimum.gap_within,
        "choice": optimum.choice,
        "gap_of_search": gap,
        "standard_error": noise["error"],
        "slack": noise["slack"],
        "single": dict(zip(constraints.names, goal.singles(len(constraints.names)).tolist(), strict=True)),
        "lead_over_single": noise["lead"],
        "pareto": pareto(config, goal, constraints),
        "budgets": what_if(config, goal, tokens, optimum.weights),
        "warnings": mixture_warnings(config, constraints, tokens, noise),
        "trials": trials,
    }


def _halves(config: Config, build: Builder, goal: Goal, constraints: Constraints, optimum: Optimum) -> dict[str, Any]:
    """Solve again from halves of the evidence: intervals of the optimum's weights, the error of its value, and how far
    it falls behind each half's own optimum (`slack`: root mean square, the standard error of its lead over other
    mixtures). Intervals: see `around`."""
    weights, values, behind, lead = [], [], [], []
    singles, alone = np.eye(len(constraints.names)), goal.singles(len(constraints.names))
    within = (singles <= constraints.upper + 1e-9).all(1) & (singles >= constraints.lower - 1e-9).all(1)
    single = singles[int(np.argmax(np.where(within, alone, -np.inf)))] if within.any() else None
    for r in range(config.search.resamples):
        half = dataclasses.replace(build(np.random.default_rng([config.seed, r])), strength=goal.strength)
        again = solve(half, constraints, optimum.weights)
        here = float(half.penalised(constraints, optimum.weights[None])[0])
        weights.append(again.weights)
        values.append(half.values(optimum.weights[None])[0])
        behind.append(max(0.0, again.penalised - here))
        if single is not None:
            lead.append(values[-1] - half.values(single[None])[0])
    low, high = around(optimum.weights, np.array(weights))
    result = {
        "low": np.clip(low, constraints.lower, constraints.upper),
        "high": np.clip(high, constraints.lower, constraints.upper),
        "error": float(np.std(values, ddof=1)),
        "slack": float(np.sqrt(np.mean(np.square(behind)))),
        "lead": None,
    }
    if single is not None:
        ahead = float(goal.values(optimum.weights[None])[0] - goal.values(single[None])[0])
        low, high = around(np.array([ahead]), np.array(lead)[:, None])
        corpus = constraints.names[int(np.argmax(single))]
        result["lead"] = {"corpus": corpus, "value": ahead, "low": float(low[0]), "high": float(high[0])}
    return result


def around(value: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of 95% intervals of values [K] from those of halves of the evidence [resamples, K].

    Noise of the evidence pulls weights together: with n batches by c / n^a, a between 1/2 and 1 in simulations (unigram
    models of few batches: about 0.5). What halving adds shows it but for the exponent, so the interval reaches from no
    bias to one of three times what halving adds (a = 0.4); its further width is 1.5 times that of the halves' scatter,
    the ratio by which the corrected value scatters more. docs/coverage.md has the coverage: at least the nominal one.
    """
    corrected = value + 3 * (value - halves.mean(0))
    reach = 1.5 * stats.norm.ppf(0.975) * halves.std(0, ddof=1)
    return np.minimum(corrected, value) - reach, np.maximum(corrected, value) + reach

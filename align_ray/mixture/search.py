"""The search stage: gather what the objective needs, search, and check the answer by embedding it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from align_ray.alignment.baselines import dsir_weights
from align_ray.alignment.coefficients import batch_matrix, measures, pooled_alignment
from align_ray.config import Config
from align_ray.embedding.pool import embed_batches, read_embeddings, read_sample, unit_id
from align_ray.fisher.probe import Located, load_tokenizer
from align_ray.mixture.by_loss import combined, propose, run_swarm, tune_loss
from align_ray.mixture.constraints import Constraints, constraints, nearest
from align_ray.mixture.describe import describe, goal_builder, mixture_alignment, search_mixture
from align_ray.mixture.goals import main_rows, mixmin_goal, target_weights
from align_ray.mixture.solver import Goal, effective_corpora, scaled_prior, solve
from align_ray.store import Store
from align_ray.training.loop import heldout_probabilities
from align_ray.training.rows import heldout_sequences, mixture_jobs, mixture_rows, validation_half

CHECKED = ("recommended", "uniform", "bad")
DSIR_TEXTS = 256
"""Texts that DSIR selects, out of the candidates' training samples."""


def token_counts(config: Config, store: Store) -> dict[str, int]:
    """Tokens available by candidate: its bytes times the tokens per byte of its sample."""
    corpora = store.read_json("corpora.json")
    return {c.name: corpora[c.name]["estimated_tokens"] for c in config.candidates}


def find_mixture(config: Config, store: Store, probe: Located, model: Located, say: Callable[[str], None]) -> dict[str, Any]:
    """Search by the configured objective and method; returns what `search_mixture` does, and

    `check[name][target]`: predicted and measured alignment of mixtures that were materialised and embedded; for trained
    objectives `trials` (losses), and for the swarm `surrogate`.
    """
    tokens = token_counts(config, store)
    limits = constraints(config.search, tokens)
    embedded = store.read_json("embedding.json")
    embeddings = read_embeddings(config, store, embedded)
    batches = {c.name: read_sample(store, c.name).batches[: len(embeddings[c.name])] for c in config.corpora}
    tokenizer = load_tokenizer(probe)

    def probabilities() -> dict[str, np.ndarray]:
        say(f"training on each of {len(tokens)} candidates, for MixMin")
        return candidate_probabilities(config, store, model, tokens)

    build = goal_builder(config, main_rows(embeddings), batches, len(tokenizer), probabilities)
    others = {"dsir": _dsir(config, store, tokenizer)} | by_other_objectives(
        config, limits, main_rows(embeddings), batches, len(tokenizer)
    )
    local = store.local_path("tune")
    storage = str(local) if local else f"{store.uri}/tune"
    trained = config.search.objective == "loss"
    cheap = (
        config.model_copy(update={"search": config.search.model_copy(update={"method": "closed_form"})}) if trained else config
    )
    say(
        "searching mixtures"
        + ("" if trained or config.search.method == "closed_form" else f": at most {config.search.trials} trials")
    )
    result = search_mixture(cheap, embeddings, tokens, build, storage, others)
    if trained:
        goal = build(None)
        at_most = "at most " if config.search.method == "tune" else ""
        say(f"training {at_most}{config.search.trials} proxies on {config.search.proxy_tokens} tokens")
        weights, found = _search_by_loss(config, store, model, tokens, limits, result, storage)
        result["cheap"] = result["mixtures"].pop("recommended")
        result["mixtures"] = {
            **describe(config, goal, limits, tokens, main_rows(embeddings), {"recommended": weights}),
            **result["mixtures"],
        }
        # what is known of the optimum (limits, prices, intervals) is the cross-entropy's, from which the search started
        result |= {"objective": "loss", "optimum": config.search.method, "effective_corpora": effective_corpora(weights), **found}
    say(f"embedding {len(CHECKED)} mixtures to check the prediction")
    result["check"] = check_mixtures(config, store, probe, embedded, embeddings, limits, result["mixtures"])
    return result


def _search_by_loss(
    config: Config,
    store: Store,
    model: Located,
    tokens: dict[str, int],
    limits: Constraints,
    cheap: dict[str, Any],
    storage: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights [K], and `trials`, for the swarm also `surrogate`."""
    if config.search.method == "tune":
        starts = [np.array(list(cheap["mixtures"][n]["weights"].values())) for n in ("recommended", "unimax", "proportional")]
        trials = tune_loss(config, store, model, tokens, limits, starts, storage)
        # the mean of the best few, for the same reason as the near-optimal set's: the least loss is in part luck
        best = np.mean([list(t["weights"].values()) for t in trials[: max(1, len(trials) // 8)]], axis=0)
        return nearest(best, limits), {"trials": trials}
    weights, losses = run_swarm(config, store, model, tokens, limits)
    proposal = propose(weights, losses, target_weights(config), limits, seed=config.seed)
    named = [dict(zip(limits.names, w.tolist(), strict=True)) for w in weights]
    trials = [{"weights": w, "losses": {t: float(v[i]) for t, v in losses.items()}} for i, w in enumerate(named)]
    for trial in trials:
        trial["loss"] = combined(config, trial["losses"])
    surrogate = {k: v for k, v in dataclasses.asdict(proposal).items() if k != "weights"}
    return proposal.weights, {"trials": trials, "surrogate": surrogate}


def by_other_objectives(
    config: Config, limits: Constraints, rows: dict[str, np.ndarray], batches: dict[str, np.ndarray], vocabulary: int
) -> dict[str, np.ndarray]:
    """The optimum of every other objective that needs no training, under the same constraints and prior, [K] by name."""
    result = {}
    for objective in ("cross-entropy", "scaled-cosine", "hellinger", "kl", "linear"):
        if objective != config.search.objective:
            other = config.model_copy(update={"search": config.search.model_copy(update={"objective": objective})})
            goal = goal_builder(other, rows, batches, vocabulary, dict)(None)
            result[f"by {objective}"] = solve(goal, scaled_prior(limits, goal)).weights
    return result


def candidate_probabilities(config: Config, store: Store, model: Located, tokens: dict[str, int]) -> dict[str, np.ndarray]:
    """Probability of every token of the held-out validation half after training on each candidate alone, by target
    float32 [K, m, T - 1]."""
    alone = [{n: float(n == name) for n in tokens} for name in tokens]
    jobs = mixture_jobs(config, store, tokens, alone, config.finetune.tokens, range(1))
    found = heldout_probabilities(config, store, model, heldout_sequences(config, store), jobs)
    return {t: np.stack([validation_half(p) for p in by_job]) for t, by_job in found.items()}


def mixmin_weights(config: Config, store: Store, model: Located, tokens: dict[str, int]) -> dict[str, float]:
    """MixMin's mixture under the same caps, without a prior."""
    limits = constraints(config.search.model_copy(update={"prior_strength": 0.0}), tokens)
    goal: Goal = mixmin_goal(config, candidate_probabilities(config, store, model, tokens))(None)
    return dict(zip(limits.names, solve(goal, limits).weights.tolist(), strict=True))


def _dsir(config: Config, store: Store, tokenizer: Any) -> np.ndarray:
    def texts(rows: np.ndarray) -> list[str]:
        return tokenizer.batch_decode([row[row >= 0].tolist() for row in rows], skip_special_tokens=True)

    candidates = {c.name: texts(read_sample(store, c.name).training) for c in config.candidates}
    flat = lambda name: (b := read_sample(store, name).batches).reshape(-1, b.shape[-1])  # noqa: E731
    targets = [text for t in config.targets for text in texts(flat(t.name))]
    return dsir_weights(candidates, targets, DSIR_TEXTS, config.seed)


def check_mixtures(
    config: Config,
    store: Store,
    probe: Located,
    embedded: dict[str, Any],
    embeddings: dict[str, Any],
    limits: Constraints,
    mixtures: dict[str, Any],
) -> dict[str, Any]:
    """Draw sequences in each mixture's proportions, batch them together, embed them, and compare with the prediction.

    Independent text of the same kind: the prediction is from the first half of every corpus' batches, the mixture is drawn from the
    sequences of the second half. By mixture and target: predicted and measured pooled alignment with intervals.
    """
    size, batches = config.sampling.batch_size, {n: read_sample(store, n).batches[: len(embeddings[n])] for n in limits.names}
    halves = {n: len(b) // 2 for n, b in batches.items()}
    drawn_from = {n: b[halves[n] :].reshape(-1, b.shape[-1]) for n, b in batches.items()}
    drawn = {}
    for name in CHECKED:
        # as many batches as the text fills without repetition: copies are not independent
        shares = mixtures[name]["weights"]
        fills = min(len(drawn_from[n]) / shares[n] for n in limits.names if shares[n] > 0.01)
        count = min(max(2, int(fills) // size), max(2, config.sampling.batches // 2))
        everything = {n: len(rows) for n, rows in drawn_from.items()}
        rows = mixture_rows(drawn_from, everything, shares, size * count, config.seed)
        order = np.random.default_rng(config.seed).permutation(len(rows))
        drawn[name] = list(rows[order].reshape(count, size, -1))
    embed_batches(config, store, probe, [b for parts in drawn.values() for b in parts], embedded["dtype"])
    blocks = next(iter(measures(next(iter(embeddings.values()))).values()))
    rows_of = main_rows(embeddings)
    corpora = [rows_of[n][: max(1, halves[n])] for n in limits.names]
    result: dict[str, Any] = {}
    for name, parts in drawn.items():
        w = np.array([mixtures[name]["weights"][n] for n in limits.names])
        measured = batch_matrix([store.read_unit(embedded["key"], unit_id(b)) for b in parts], blocks)
        result[name] = {
            t.name: {
                "predicted": mixture_alignment(w, corpora, [rows_of[t.name]], np.ones(1)),
                "measured": vars(pooled_alignment(measured, rows_of[t.name])),
            }
            for t in config.targets
        }
    return result

"""From what a study has stored to the goal of its mixture search, and the same goal under resampled evidence.

A builder is called with None for the goal itself and with a random generator for that of half the evidence: a random
half of the batches of every corpus (or of the held-out sequences, for MixMin), without repetition. What half of the
evidence gives scatters around what all of it gives as that does around the truth (half-sampling). A bootstrap, which
draws some batches twice, makes unigram models of fewer different batches, and its intervals of weights do not cover.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from scipy import sparse

from align_ray.alignment.baselines import discounted_distribution, ney_discount
from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.words import subsets, token_counts
from align_ray.config import Config
from align_ray.context import target_weights
from align_ray.mixture.objectives import (
    Objective,
    hellinger_objectives,
    kl_objectives,
    linear_objective,
    log_mixture_objective,
    log_mixture_objectives,
    scaled_cosine_objectives,
)
from align_ray.mixture.solver import Goal

Builder = Callable[[np.random.Generator | None], Goal]

FISHER = {"scaled-cosine": scaled_cosine_objectives, "hellinger": hellinger_objectives, "kl": kl_objectives}


def fisher_goal(config: Config, rows: Mapping[str, np.ndarray]) -> Builder:
    """Similarity of the mixture's pooled embedding with the targets'."""
    scaled_cosine = partial(scaled_cosine_objectives, absolute=config.embedding.epsilon)
    objectives = (FISHER | {"scaled-cosine": scaled_cosine})[config.search.objective]

    def build(rng: np.random.Generator | None) -> Goal:
        pooled = {name: r[chosen(len(r), rng)].mean(0, dtype=np.float64) for name, r in rows.items()}
        mixed = np.stack([pooled[c.name] for c in config.candidates])
        return Goal(objectives(mixed, np.stack([pooled[t.name] for t in config.targets])), target_weights(config))

    return build


def linear_goal(config: Config, rows: Mapping[str, np.ndarray]) -> Builder:
    """Mean over the mixture of the candidates' own alignments: labelled baseline, its optimum is one corpus."""
    aligned = {
        (c.name, t.name): 1 - distance_matrix(rows[c.name], rows[t.name], config.embedding.epsilon)
        for c in config.candidates
        for t in config.targets
    }

    def build(rng: np.random.Generator | None) -> Goal:
        goals = []
        for t in config.targets:
            of_target = chosen(len(rows[t.name]), rng)
            scores = [
                aligned[c.name, t.name][chosen(len(rows[c.name]), rng)][:, of_target].mean() for c in config.candidates
            ]
            goals.append(linear_objective(np.array(scores)))
        return Goal(goals, target_weights(config))

    return build


MODELS = 8
"""Unigram models of a corpus that holds more batches than the smallest, each counted on as many as that one's."""
MOST_ENTRIES = 2**26
"""Of all corpora's models together, 512 MB: of a thousand corpora and a large vocabulary there are fewer of each."""


def cross_entropy_goal(config: Config, batches: Mapping[str, np.ndarray], vocabulary: int) -> Builder:
    """Minus the targets' cross-entropy under the mixture of the candidates' unigram models; batches: token ids [n,
    B, T]. All models are counted on as many batches as the smallest candidate holds, else a mixture would prefer
    the larger of two parts of one corpus; the value is the mean over MODELS such choices."""
    counts = {name: token_counts(rows, vocabulary) for name, rows in batches.items()}
    ends = dict(zip(counts, np.cumsum([c.shape[0] for c in counts.values()]).tolist(), strict=True))
    first = {name: ends[name] - c.shape[0] for name, c in counts.items()}
    every = sparse.vstack(list(counts.values()), format="csr")  # [all corpora's batches, V]
    tokens = np.asarray(every.sum(1)).ravel()
    del counts

    def build(rng: np.random.Generator | None) -> Goal:
        held = {name: first[name] + chosen(ends[name] - first[name], rng) for name in first}
        wanted = summed(every, [held[t.name] for t in config.targets])
        candidates, seen = [held[c.name] for c in config.candidates], wanted.sum(0) > 0
        choices, width = equal_choices([tokens[rows] for rows in candidates], vocabulary), int(seen.sum())
        models = np.empty((len(candidates), len(choices) * width), order="F")  # a product goes through its columns
        for i, choice in enumerate(choices):  # one after the other: of a large vocabulary each is as large as the rest
            taken = [rows[part] for rows, part in zip(candidates, choice, strict=True)]
            models[:, i * width : (i + 1) * width] = _distributions(summed(every, taken), seen)
        wanted = np.tile(wanted[:, seen], len(choices)).astype(np.float64)
        return Goal(log_mixture_objectives(models, wanted), target_weights(config))

    return build


def equal_choices(tokens: list[np.ndarray], vocabulary: int) -> list[list[np.ndarray]]:
    """Of K corpora batches that hold as many tokens as the smallest corpus does, to half a batch: of each bool [n_k].
    Once where all take all their batches, and else MODELS such choices, or fewer (MOST_ENTRIES). `tokens`: of every
    batch, int [n_k] by corpus."""
    held = [float(t.sum()) for t in tokens]
    of_batch = [max(1e-9, total / len(t)) for total, t in zip(held, tokens, strict=True)]
    least = min(held)
    taken = [min(len(t), max(1, round(least / each))) for t, each in zip(tokens, of_batch, strict=True)]
    if all(len(t) == n for t, n in zip(tokens, taken, strict=True)):
        return [[np.ones(n, bool) for n in taken]]
    models = max(1, min(MODELS, MOST_ENTRIES // (len(tokens) * vocabulary)))
    picks = [subsets(len(t), n) for t, n in zip(tokens, taken, strict=True)]
    spread = [pick[np.linspace(0, len(pick) - 1, models).round().astype(int)] > 0 for pick in picks]
    return [[of_corpus[i] for of_corpus in spread] for i in range(models)]


def summed(counts: sparse.csr_matrix, rows: list[np.ndarray]) -> np.ndarray:
    """Token counts [N, V] summed over each of K choices of rows, int32 [K, V]; in one product: a thousand corpora's
    own take seconds."""
    places = np.r_[0, np.cumsum([len(some) for some in rows])]
    every = np.concatenate(rows)
    chosen = sparse.csr_matrix((np.ones(len(every), np.int32), every, places), (len(rows), counts.shape[0]))
    return (chosen @ counts).toarray()


def _distributions(counts: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Smoothed unigram distributions of the counts [K, V], unseen tokens from what all corpora hold together; of the
    tokens that are `seen`, bool [V], alone."""
    background = np.zeros(counts.shape[1])
    for c in counts:
        background += (c + 0.5) / (c + 0.5).sum()
    background /= len(counts)
    return np.stack([discounted_distribution(c, background, ney_discount(c))[seen] for c in counts])


def mixmin_goal(config: Config, probabilities: dict[str, np.ndarray]) -> Builder:
    """MixMin (Thudi et al. 2025): minus the cross-entropy of held-out tokens under the mixture of the candidates'
    fine-tuned models; `probabilities` by target: float32 [K, m, T - 1], of every token of m held-out
    rows, NaN where one does not count."""

    def build(rng: np.random.Generator | None) -> Goal:
        objectives: list[Objective] = []
        for t in config.targets:
            p = probabilities[t.name]
            p = p[:, chosen(p.shape[1], rng)].reshape(len(p), -1)
            p = p[:, np.isfinite(p[0])]
            objectives.append(log_mixture_objective(p, np.ones(p.shape[1])))
        return Goal(objectives, target_weights(config))

    return build


def chosen(n: int, rng: np.random.Generator | None) -> np.ndarray:
    """Indices of n units: all, or a random half (of an odd number, rounded up or down at random; at least one)."""
    if rng is None:
        return np.arange(n)
    return rng.permutation(n)[: max(1, (n + int(rng.integers(2))) // 2)]


def goal_builder(
    config: Config,
    rows: Mapping[str, np.ndarray],
    batches: Mapping[str, np.ndarray],
    vocabulary: int,
    probabilities: Callable[[], dict[str, np.ndarray]],
) -> Builder:
    """The builder of the configured objective (of `cross-entropy` for `loss`, of `mixmin` for `predicted`, which start
    from there)."""
    match config.search.objective:
        case "mixmin" | "predicted":
            return mixmin_goal(config, probabilities())
        case "linear":
            return linear_goal(config, rows)
        case "cross-entropy" | "loss":
            return cross_entropy_goal(config, batches, vocabulary)
    return fisher_goal(config, rows)

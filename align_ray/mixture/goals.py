"""From what a study has stored to the goal of its mixture search, and the same goal under resampled evidence.

A builder is called with None for the goal itself and with a random generator for a bootstrap resample: batches of every
corpus (or held-out sequences, for MixMin) are drawn again with replacement.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from align_ray.alignment.baselines import background_distribution, discounted_distribution, ney_discount
from align_ray.alignment.distance import distance_matrix
from align_ray.config import Config
from align_ray.context import target_weights
from align_ray.mixture.objectives import (
    Objective,
    hellinger_objective,
    kl_objective,
    linear_objective,
    log_mixture_objective,
    scaled_cosine_objective,
)
from align_ray.mixture.solver import Goal

Builder = Callable[[np.random.Generator | None], Goal]

FISHER = {"scaled-cosine": scaled_cosine_objective, "hellinger": hellinger_objective, "kl": kl_objective}


def fisher_goal(config: Config, rows: Mapping[str, np.ndarray]) -> Builder:
    """Similarity of the mixture's pooled embedding with the targets'."""
    scaled_cosine = partial(scaled_cosine_objective, absolute=config.embedding.epsilon)
    objective = (FISHER | {"scaled-cosine": scaled_cosine})[config.search.objective]

    def build(rng: np.random.Generator | None) -> Goal:
        pooled = {name: resampled_mean(r, rng) for name, r in rows.items()}
        mixed = np.stack([pooled[c.name] for c in config.candidates])
        return Goal([objective(mixed, pooled[t.name]) for t in config.targets], target_weights(config))

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
            of_target = resample_weights(len(rows[t.name]), rng)
            scores = [
                resample_weights(len(rows[c.name]), rng) @ aligned[c.name, t.name] @ of_target
                for c in config.candidates
            ]
            goals.append(linear_objective(np.array(scores)))
        return Goal(goals, target_weights(config))

    return build


def cross_entropy_goal(config: Config, batches: Mapping[str, np.ndarray], vocabulary: int) -> Builder:
    """Minus the targets' cross-entropy under the mixture of the candidates' unigram models; batches: token ids [n,
    B, T]."""
    background = background_distribution([batches[c.name] for c in config.candidates], vocabulary)
    counts = {
        name: np.stack([np.bincount(b[b >= 0], minlength=vocabulary) for b in rows]).astype(np.float32)
        for name, rows in batches.items()
    }
    discounts = {name: ney_discount(c.sum(0)) for name, c in counts.items()}

    def build(rng: np.random.Generator | None) -> Goal:
        totals = {name: len(c) * resampled_mean(c, rng) for name, c in counts.items()}
        models = [discounted_distribution(totals[c.name], background, discounts[c.name]) for c in config.candidates]
        return Goal(
            [log_mixture_objective(np.stack(models), totals[t.name]) for t in config.targets], target_weights(config)
        )

    return build


def mixmin_goal(config: Config, probabilities: dict[str, np.ndarray]) -> Builder:
    """MixMin (Thudi et al. 2025): minus the cross-entropy of held-out tokens under the mixture of the candidates'
    fine-tuned models; `probabilities` by target: float32 [K, m, T - 1], of every token of m held-out sequences."""

    def build(rng: np.random.Generator | None) -> Goal:
        objectives: list[Objective] = []
        for t in config.targets:
            p = probabilities[t.name]
            share = np.repeat(resample_weights(p.shape[1], rng), p.shape[2])
            objectives.append(log_mixture_objective(p.reshape(len(p), -1), share))
        return Goal(objectives, target_weights(config))

    return build


def resample_weights(n: int, rng: np.random.Generator | None) -> np.ndarray:
    """Weights [n] of n units that sum to 1: equal, or how often each is drawn with replacement."""
    return np.full(n, 1 / n) if rng is None else rng.multinomial(n, np.full(n, 1 / n)) / n


def resampled_mean(rows: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Mean of the rows [n, D], or of as many drawn with replacement, float64 [D]."""
    return (
        rows.mean(0, dtype=np.float64)
        if rng is None
        else (resample_weights(len(rows), rng).astype(np.float32) @ rows).astype(np.float64)
    )


def goal_builder(
    config: Config,
    rows: Mapping[str, np.ndarray],
    batches: Mapping[str, np.ndarray],
    vocabulary: int,
    probabilities: Callable[[], dict[str, np.ndarray]],
) -> Builder:
    """The builder of the configured objective (of `cross-entropy` for `loss`, which starts from there)."""
    match config.search.objective:
        case "mixmin":
            return mixmin_goal(config, probabilities())
        case "linear":
            return linear_goal(config, rows)
        case "cross-entropy" | "loss":
            return cross_entropy_goal(config, batches, vocabulary)
    return fisher_goal(config, rows)

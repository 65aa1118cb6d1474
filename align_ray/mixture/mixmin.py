"""MixMin (Thudi et al. 2025): the mixture of the models that are trained on one candidate each."""

import numpy as np

from align_ray.config import Config
from align_ray.fisher.probe import Located
from align_ray.mixture.constraints import constraints
from align_ray.mixture.goals import mixmin_goal
from align_ray.mixture.solver import Goal, solve
from align_ray.store import Store
from align_ray.training.jobs import heldout_probabilities
from align_ray.training.rows import heldout_sequences, mixture_jobs, validation_half


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

"""MixMin (Thudi et al. 2025): the mixture of the models that are trained on one candidate each."""

import numpy as np

from align_ray.context import Study
from align_ray.corpora.rows import validation_half
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.goals import mixmin_goal
from align_ray.mixture.solver import solve
from align_ray.training.jobs import heldout_probabilities
from align_ray.training.rows import candidate_jobs, heldout_rows, scored_alone, with_rate


def candidate_probabilities(study: Study) -> dict[str, np.ndarray]:
    """Probability of every token of the held-out validation half after training on each candidate alone, by target
    float32 [K, m, T - 1]."""
    study = with_rate(study)
    jobs = candidate_jobs(study, study.config.finetune.tokens)
    found = heldout_probabilities(study, heldout_rows(study), jobs, scored_alone(study.config))
    return {t: np.stack([validation_half(p) for p in by_job]) for t, by_job in found.items()}


def mixmin_weights(study: Study, tokens: dict[str, int]) -> dict[str, float]:
    """MixMin's mixture under the same caps, without a prior."""
    constraints = constraints_of(study.config.search, tokens)
    goal = mixmin_goal(study.config, candidate_probabilities(study))(None)
    return dict(zip(constraints.names, solve(goal, constraints).weights.tolist(), strict=True))

"""Mixtures from runs that a user has made elsewhere: their tables, this project's constraints and content coordinates."""

from typing import TYPE_CHECKING

import numpy as np

from align_ray.config import Search
from align_ray.embedding.pool import read_embeddings
from align_ray.errors import ConfigError
from align_ray.mixture.by_loss import Proposal, content_coordinates, propose
from align_ray.mixture.constraints import Constraints, constraints
from align_ray.mixture.goals import main_rows
from align_ray.mixture.search import token_counts
from align_ray.mixture.surrogates import SURROGATES, Runs

if TYPE_CHECKING:
    from align_ray.pipeline import Study


def propose_from_runs(
    runs: Runs, surrogate: str | None, study: "Study | None", prior_strength: float
) -> tuple[Constraints, Proposal]:
    """A mixture of the runs' domains without constraints; with a study one of its candidates under its constraints, where the runs'
    domains must be corpora of the study (candidates or targets), whose embeddings then stand for them."""
    if surrogate is not None and surrogate not in SURROGATES:
        raise ConfigError(f"--surrogate {surrogate}: choose one of {', '.join(SURROGATES)}.")
    share = np.full(len(runs.metrics), 1 / len(runs.metrics))
    if study is None:
        search = Search(token_budget=1, prior_strength=prior_strength)
        limits = constraints(search, dict.fromkeys(runs.domains, 1))
        return limits, propose(runs.weights, runs.metrics, share, limits, surrogate)
    rows = main_rows(read_embeddings(study.config, study.store))
    missing = [d for d in runs.domains if d not in rows]
    if missing:
        raise ConfigError(
            f"--study: the runs' domain '{missing[0]}' is no corpus of the study; add it, so that its content can be compared."
        )
    limits = constraints(study.config.search, token_counts(study.config, study.store))
    names = list(dict.fromkeys([*runs.domains, *limits.names]))
    found = dict(zip(names, content_coordinates(np.stack([rows[n].mean(0) for n in names])), strict=True))
    coordinates = np.stack([found[d] for d in runs.domains]), np.stack([found[n] for n in limits.names])
    return limits, propose(runs.weights, runs.metrics, share, limits, surrogate, study.config.seed, coordinates)

"""A shortlist: mixtures that a user has in mind, by every objective that a study's evidence gives without training."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from align_ray.context import Study
from align_ray.corpora.sample import token_counts
from align_ray.embedding.evidence import Evidence
from align_ray.errors import ConfigError
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.describe import comparison_mixtures, describe
from align_ray.mixture.goals import goal_builder
from align_ray.mixture.search import around

OBJECTIVES = ("cross-entropy", "scaled-cosine", "hellinger", "kl", "linear")
"""Those that need no training."""


def read_mixtures(path: Path, candidates: list[str]) -> dict[str, np.ndarray]:
    """Weights [K] by name, in the order of the candidates, that sum to 1: of a CSV file whose first column names the
    mixtures and whose others are candidates; one that is left out has no weight. Raises ConfigError naming file, row
    and column."""
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable table ({error}); give a CSV file with a header.") from None
    name, *columns = map(str, cells.columns)
    for column in columns:
        if column not in candidates:
            raise ConfigError(f"{path}: column '{column}' is no candidate of the study: {', '.join(candidates)}.")
    if not columns or cells[name].duplicated().any():
        raise ConfigError(
            f"{path}: give every mixture a name of its own in the first column, then a column a candidate."
        )
    found = {}
    for row in cells.itertuples(index=False):
        values = pd.to_numeric(pd.Series(row[1:], index=columns).replace("", "0"), errors="coerce")
        if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise ConfigError(f"{path}: the weights of '{row[0]}' must be numbers, none below 0 and not all 0.")
        found[str(row[0])] = values.reindex(candidates, fill_value=0.0).to_numpy() / values.sum()
    if not found:
        raise ConfigError(f"{path}: there is no mixture in it.")
    return found


def score_mixtures(study: Study, evidence: Evidence, mixtures: dict[str, np.ndarray]) -> dict[str, Any]:
    """By mixture, with `uniform` and `proportional` beside those given: `weights`, `alignment` (pooled, with its
    interval), `epochs`, `feasible` (within the study's constraints), and `objectives[name]`: `value` (higher is
    better; nats for cross-entropy) with `low` and `high`, and `lead` over uniform with its interval, both from random
    halves of the batches (see `search`). Best first by the study's objective, or cross-entropy where that trains."""
    config, tokens = study.config, token_counts(study)
    constraints = constraints_of(config.search, tokens)
    names = constraints.names
    first = config.search.objective if config.search.objective in OBJECTIVES else "cross-entropy"
    goals = {
        objective: goal_builder(
            study.changed(search={"objective": objective}).config,
            evidence.rows,
            evidence.batches,
            len(study.tokenizer),
            dict,
        )
        for objective in OBJECTIVES
    }
    plain = goals[first](None)
    beside = comparison_mixtures(plain, constraints, tokens)
    every = mixtures | {name: beside[name] for name in ("uniform", "proportional") if name not in mixtures}
    weights = np.stack(list(every.values()))
    uniform = np.full((1, len(names)), 1 / len(names))
    found = describe(config, plain, constraints, tokens, evidence.rows, every)
    for name, w in every.items():
        inside = (w <= constraints.upper + 1e-6).all() and (w >= constraints.lower - 1e-6).all()
        few = constraints.most is None or (w > 1e-9).sum() <= constraints.most
        found[name] |= {"feasible": bool(inside and few), "objectives": {}}
    for objective, build in goals.items():
        halves = [build(np.random.default_rng([config.seed, r])) for r in range(config.search.resamples)]
        whole = build(None)
        for of, reference in (("", None), ("lead", uniform)):
            less = lambda goal, reference=reference: (
                goal.values(weights) - (0 if reference is None else goal.values(reference)[0])
            )
            value = less(whole)
            low, high = around(value, np.stack([less(goal) for goal in halves]))
            for i, name in enumerate(every):
                ends = {"value": float(value[i]), "low": float(low[i]), "high": float(high[i])}
                row = found[name]["objectives"]
                row[objective] = {**row[objective], of: ends} if of else ends
    order = sorted(every, key=lambda name: -found[name]["objectives"][first]["value"])
    return {"objective": first, "mixtures": {name: found[name] for name in order}}

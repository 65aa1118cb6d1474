"""Proof by training: the proposed mixture against what one would do without it, same model, same tokens, several seeds."""

from typing import Any

import numpy as np
from scipy import stats

from align_ray.config import Config
from align_ray.goals import target_weights
from align_ray.intervals import p_mean_negative, two_sample_mean
from align_ray.probe import Located
from align_ray.proxies import heldout_sequences, mixture_jobs, test_half
from align_ray.store import Store
from align_ray.training import train_jobs

VALIDATED = ("recommended", "by scaled-cosine", "uniform", "proportional", "unimax", "best_single", "dsir", "bad")
"""Mixtures of the search that are trained on unless others are named; MixMin's joins them."""
SAME = 5e-4
"""Mixtures that differ by less in every weight are trained once."""


def validate_mixtures(
    config: Config, store: Store, located: Located, tokens: dict[str, int], mixtures: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Train on every mixture with `finetune.seeds` seeds; returns a JSON value.

    `mixtures[name]`: `weights`, `same_as` (an earlier mixture with the same weights, not trained twice) and by target `loss`: the mean
    over seeds and held-out sequences, nats per token, with an interval over both; `before`. `versus[a][b][target]`: paired
    difference of a's loss from b's with its interval and `p_lower`, the probability that a's is lower. The target `all` is
    their weighted mean.
    """
    distinct: dict[str, dict[str, float]] = {}
    same: dict[str, str] = {}
    for name, weights in mixtures.items():
        twin = next((n for n, w in distinct.items() if all(abs(w[c] - weights[c]) < SAME for c in w)), None)
        same[name] = twin or name
        if twin is None:
            distinct[name] = weights
    seeds = range(config.finetune.seeds)
    heldout = heldout_sequences(config, store)
    jobs = mixture_jobs(config, store, tokens, list(distinct.values()), config.finetune.tokens, seeds)
    done = train_jobs(config, store, located, heldout, jobs)
    of = {name: done[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(distinct)}
    share = target_weights(config)
    share = np.full(len(config.targets), 1 / len(config.targets)) if share is None else share
    after = {name: {t: np.stack([test_half(r.losses[t].after) for r in runs]) for t in heldout} for name, runs in of.items()}
    before = {t: float(np.mean([test_half(r.losses[t].before).mean() for r in next(iter(of.values()))])) for t in heldout}
    report = {
        name: {
            "weights": weights,
            "same_as": same[name] if same[name] != name else None,
            "loss": _losses(after[same[name]], share),
        }
        for name, weights in mixtures.items()
    }
    return {
        "tokens": len(jobs[0].rows) * config.sampling.sequence_length,
        "seeds": len(seeds),
        "before": before | {"all": float(share @ list(before.values()))},
        "mixtures": report,
        "versus": {
            a: {b: _versus(after[same[a]], after[same[b]], share) for b in mixtures if same[a] != same[b]} for a in mixtures
        },
    }


def _losses(after: dict[str, np.ndarray], share: np.ndarray) -> dict[str, Any]:
    by_target = {t: vars(two_sample_mean(v)) for t, v in after.items()}
    value = float(share @ [e["value"] for e in by_target.values()])
    error = float(np.sqrt(np.square(share) @ np.square([e["error"] for e in by_target.values()])))
    return {**by_target, "all": {"value": value, "error": error, "low": value - 1.96 * error, "high": value + 1.96 * error}}


def _versus(a: dict[str, np.ndarray], b: dict[str, np.ndarray], share: np.ndarray) -> dict[str, Any]:
    """Paired by seed and sequence."""
    result = {}
    for t, losses in a.items():
        difference = losses - b[t]
        result[t] = {**vars(two_sample_mean(difference)), "p_lower": p_mean_negative(difference)}
    value = float(share @ [r["value"] for r in result.values()])
    error = float(np.sqrt(np.square(share) @ np.square([r["error"] for r in result.values()])))
    p = float(stats.norm.cdf(-value / error)) if error else float(value < 0)
    return {
        **result,
        "all": {"value": value, "error": error, "low": value - 1.96 * error, "high": value + 1.96 * error, "p_lower": p},
    }

"""Proof by training: the proposed mixture against what one would do without it, same model, same tokens, several
seeds."""

from pathlib import Path
from typing import Any

import numpy as np

from align_ray.alignment.intervals import combined_mean, p_mean_negative, two_sample_mean
from align_ray.context import Study, reported_weights
from align_ray.corpora.items import read_items
from align_ray.corpora.rows import report_half
from align_ray.training.jobs import train_jobs
from align_ray.training.rows import heldout_rows, learning_rate, mixture_jobs, seen, with_rate
from align_ray.training.tasks import task_scores
from align_ray.training.verdict import judged, keeps_to, made_from

VALIDATED = ("recommended", "by scaled-cosine", "uniform", "proportional", "unimax", "best_single", "dsir", "bad")
"""Mixtures of the search that are trained on unless others are named; MixMin's joins them."""
SAME = 5e-4
"""Mixtures that differ by less in every weight are trained once."""


def validate_mixtures(
    study: Study, tokens: dict[str, int], mixtures: dict[str, dict[str, float]], caps: dict[str, float]
) -> dict[str, Any]:
    """Train on every mixture with `finetune.seeds` seeds; returns a JSON value.

    `verdict`: see `verdict.py`; mixtures that keep to `caps` and to the configured weights are what could be
    recommended in its place.

    `mixtures[name]`: `weights`, `same_as` (an earlier mixture with the same weights, not trained twice),
    `distinct_tokens` of the first seed's training and how often each is seen (`epochs`), and by target
    `loss`: the mean over seeds and held-out sequences, nats per token, with an interval over both; `before`; `task`: by
    target that has one (see `values.TaskScore`).
    `versus[a][b][target]`: paired difference of a's loss from b's with its interval and `p_lower`, the probability that
    a's is lower. The target `all` is their weighted mean.
    """
    distinct: dict[str, dict[str, float]] = {}
    same: dict[str, str] = {}
    for name, weights in mixtures.items():
        twin = next((n for n, w in distinct.items() if all(abs(w[c] - weights[c]) < SAME for c in w)), None)
        same[name] = twin or name
        if twin is None:
            distinct[name] = weights
    study = with_rate(study)
    config, heldout = study.config, heldout_rows(study)
    seeds = range(config.finetune.seeds)
    jobs = mixture_jobs(study, tokens, list(distinct.values()), config.finetune.tokens, seeds)
    done = train_jobs(study, heldout, jobs)
    of = {name: done[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(distinct)}
    share = reported_weights(config)
    after = {
        name: {t: np.stack([report_half(r.losses[t].after) for r in runs]) for t in heldout}
        for name, runs in of.items()
    }
    before = {
        t: float(np.mean([report_half(r.losses[t].before).mean() for r in next(iter(of.values()))])) for t in heldout
    }
    trained = {name: seen(jobs[i * len(seeds)], config.finetune.epochs) for i, name in enumerate(distinct)}
    scores = {name: task_scores(runs, read_items(study)) for name, runs in of.items()}
    report = {
        name: {
            **trained[same[name]],
            "task": scores[same[name]],
            "weights": weights,
            "same_as": same[name] if same[name] != name else None,
            "loss": _losses(after[same[name]], share),
        }
        for name, weights in mixtures.items()
    }
    rivals = {n for n, weights in mixtures.items() if keeps_to(config.search, caps, weights)} | {"uniform"}
    of_their_own = {
        same[n]: n for n in mixtures if n in rivals and same[n] not in (same["recommended"], same["uniform"])
    }
    others = {n: of[same[n]] for n in {*of_their_own.values(), "uniform"}}
    by_target = dict(zip(heldout, share, strict=True))
    known = made_from(Path(study.model.path), config)
    found = judged(of[same["recommended"]], others, of, by_target, config.finetune.delta, known)
    return {
        "verdict": found.model_dump(),
        "tokens": len(jobs[0].rows) * config.sampling.sequence_length,
        "seeds": len(seeds),
        "learning_rate": learning_rate(config),
        "before": before | {"all": float(share @ list(before.values()))},
        "mixtures": report,
        "versus": {
            a: {b: _versus(after[same[a]], after[same[b]], share) for b in mixtures if same[a] != same[b]}
            for a in mixtures
        },
    }


def _losses(after: dict[str, np.ndarray], share: np.ndarray) -> dict[str, Any]:
    estimate, _ = combined_mean(list(after.values()), share)
    return {**{t: vars(two_sample_mean(v)) for t, v in after.items()}, "all": vars(estimate)}


def _versus(a: dict[str, np.ndarray], b: dict[str, np.ndarray], share: np.ndarray) -> dict[str, Any]:
    """Paired by seed and sequence."""
    differences = {t: losses - b[t] for t, losses in a.items()}
    estimate, p = combined_mean(list(differences.values()), share)
    by_target = {t: {**vars(two_sample_mean(d)), "p_lower": p_mean_negative(d)} for t, d in differences.items()}
    return {**by_target, "all": {**vars(estimate), "p_lower": p}}

"""Proof by training: Ray Train fine-tunes the model on every candidate, the found mixture and the uniform one.

Every run has the same number of tokens and the same optimiser; what differs is the text: of a candidate alone different
sequences, of a mixture with the repetition of the real run (`training/rows.py`). The loss of each target's
held-out sequences is measured before and after (`training/loop.py`).
"""

import dataclasses
from typing import Any

import numpy as np

from align_ray.alignment.intervals import interval
from align_ray.config import Config
from align_ray.context import Study
from align_ray.reporting.results import Mixture
from align_ray.training.jobs import Losses, train_jobs
from align_ray.training.rows import candidate_jobs, heldout_sequences, mixture_jobs, report_half, seen

OVERLAP_TOKENS = 13
MIXED = {"uniform": "uniform", "mixture": "recommended"}
"""Runs on several corpora, and the mixture of the search that each trains on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: its name and the weights (in tokens) of the candidates it trains on."""

    name: str
    weights: dict[str, float]


def planned_runs(config: Config, found: Mixture) -> list[Run]:
    """Every candidate alone, then `uniform` and `mixture` (the recommended one)."""
    alone = [Run(c.name, {c.name: 1.0}) for c in config.candidates]
    return [*alone, *(Run(name, found.mixtures[key].weights) for name, key in MIXED.items())]


def overlap(training: np.ndarray, heldout: np.ndarray) -> float:
    """Share of the held-out 13-token windows that occur in the training sequences."""

    def windows(rows: np.ndarray) -> list[bytes]:
        views = np.lib.stride_tricks.sliding_window_view(rows.astype(np.int32), OVERLAP_TOKENS, axis=1)
        return [window.tobytes() for window in views.reshape(-1, OVERLAP_TOKENS)]

    seen = set(windows(training))
    found = [window in seen for window in windows(heldout)]
    return float(np.mean(found)) if found else 0.0


def finetune_runs(study: Study, tokens: dict[str, int], runs: list[Run]) -> dict[str, Any]:
    """Fine-tune on every run whose result is not in the store; returns a JSON value.

    `runs[name]`: weights, number of training sequences, `distinct_tokens`, how often each is seen (`epochs`),
    `training` (steps with the loss of their batch), and by target `before` and `after` (nats per token on the second
    half of the held-out text), `change` with its standard error over held-out sequences, and `overlap`.
    `uniform_less_mixture[target]`: the paired difference of these two runs' losses, with its interval.
    """
    config, heldout = study.config, heldout_sequences(study)
    mixed = [run.weights for run in runs if run.name in MIXED]
    jobs = candidate_jobs(study, config.finetune.tokens)
    jobs += mixture_jobs(study, tokens, mixed, config.finetune.tokens, range(1))
    report, after = {}, {}
    for run, job, trained in zip(runs, jobs, train_jobs(study, heldout, jobs), strict=True):
        targets = {}
        for t, losses in trained.losses.items():
            reported = Losses(report_half(losses.before), report_half(losses.after))
            targets[t] = {**change(reported), "overlap": overlap(job.rows, heldout[t])}
            after[run.name, t] = reported.after
        report[run.name] = {
            "weights": run.weights,
            "sequences": len(job.rows),
            **seen(job, config.finetune.epochs),
            "training": trained.training,
            "targets": targets,
        }
    paired = {t: after["uniform", t] - after["mixture", t] for t in heldout}
    return {
        "tokens": len(jobs[-1].rows) * config.sampling.sequence_length,
        "runs": report,
        "uniform_less_mixture": {
            t: vars(interval(d.mean(), d.var(ddof=1) / len(d), len(d) - 1)) for t, d in paired.items() if len(d) > 1
        },
    }


def change(losses: Losses) -> dict[str, float | None]:
    """Mean losses, and their change with its standard error over the (paired) held-out sequences."""
    difference = losses.after - losses.before
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else None
    values = {"before": losses.before.mean(), "after": losses.after.mean(), "change": difference.mean()}
    return {**{name: float(value) for name, value in values.items()}, "change_error": error}

"""Proof by training: Ray Train fine-tunes the model on every candidate, the found mixture and the uniform one.

Every run has the same number of tokens and the same optimiser; what differs is the text: of a candidate alone different
rows, of a mixture with the repetition of the real run (`training/rows.py`). The loss of each target's
held-out sequences is measured before and after (`training/loop.py`).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_ray.alignment.intervals import two_sample_mean
from align_ray.config import Config
from align_ray.context import Study, reported_weights
from align_ray.corpora.items import read_items
from align_ray.corpora.rows import Rows, report_half
from align_ray.fisher.tokens import texts_of
from align_ray.reporting.results import Mixture
from align_ray.training.extrapolation import extrapolations
from align_ray.training.jobs import Trained, train_jobs
from align_ray.training.rows import candidate_jobs, heldout_rows, learning_rate, mixture_jobs, seen, with_rate
from align_ray.training.tasks import task_scores
from align_ray.training.verdict import judged, keeps_to, made_from

OVERLAP_TOKENS = 13
MIXED = {"uniform": "uniform", "mixture": "recommended"}
"""Runs on several corpora, and the mixture of the search that each trains on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: its name and the weights (in tokens) of the candidates it trains on."""

    name: str
    weights: dict[str, float]


def planned_runs(config: Config, found: Mixture, alone: Sequence[str] | None = None) -> list[Run]:
    """Every candidate alone, or those of `alone`; then `uniform` and `mixture` (the recommended one)."""
    names = [c.name for c in config.candidates]
    single = [Run(name, {name: 1.0}) for name in names if alone is None or name in alone]
    return [*single, *(Run(name, found.mixtures[key].weights) for name, key in MIXED.items())]


def feasible_alone(config: Config, tokens: dict[str, int], caps: dict[str, float]) -> list[str]:
    """Candidates that could be recommended alone: within the constraints, and with enough text for the token budget
    without repetition."""
    budget = config.search.token_budget
    return [n for n in tokens if tokens[n] >= budget and keeps_to(config.search, caps, {n: 1.0})]


def overlap(training: np.ndarray, heldout: np.ndarray) -> float:
    """Share of the held-out 13-token windows that occur in the training sequences."""

    def windows(rows: np.ndarray) -> list[bytes]:
        views = np.lib.stride_tricks.sliding_window_view(rows.astype(np.int32), OVERLAP_TOKENS, axis=1)
        return [window.tobytes() for window in views.reshape(-1, OVERLAP_TOKENS)]

    seen = set(windows(training))
    found = [window in seen for window in windows(heldout)]
    return float(np.mean(found)) if found else 0.0


def finetune_runs(study: Study, tokens: dict[str, int], runs: list[Run], caps: dict[str, float]) -> dict[str, Any]:
    """Fine-tune on every run whose result is not in the store; returns a JSON value.

    Every run is trained `finetune.seeds` times; seeds differ in the rows drawn and their order. `runs[name]`: weights,
    and of the first seed's training the number of rows, `distinct_tokens`, how often each is seen (`epochs`),
    `training` (steps with the loss of their batch) and `rungs` (losses by target after so many steps, on the first
    half of the held-out text); by target `before` and `after` (nats per token on the second half of the held-out text,
    mean over seeds), `change` with its standard error and interval over seeds and held-out rows, and `overlap`;
    `general`: the same of the general text's held-out rows, where there is replay; `task`: see `values.TaskScore`.
    `bytes_per_token[target]`: of the held-out tokens that count, to give losses in bits per byte.
    `uniform_less_mixture[target]`: the difference of these two runs' losses, paired by seed and row, with its interval.
    `extrapolation[target]`: how the losses would go on to the token budget (`extrapolation.py`); `runs[name]` has
    `epochs_at_budget`, how often the budget would see the corpus that it repeats most.
    `verdict`: see `verdict.py`; beside the uniform mixture, a candidate alone could be recommended where `caps` allow
    it and it holds the token budget without repetition.
    """
    study = with_rate(study)
    config, heldout, seeds = study.config, heldout_rows(study), range(study.config.finetune.seeds)
    mixed = [run.weights for run in runs if run.name in MIXED]
    jobs = candidate_jobs(study, config.finetune.tokens, seeds, [run.name for run in runs if run.name not in MIXED])
    jobs += mixture_jobs(study, tokens, mixed, config.finetune.tokens, seeds)
    done = train_jobs(study, heldout, jobs)
    report, after, trainings = {}, {}, {}
    items = read_items(study)
    for i, run in enumerate(runs):
        job, trained = jobs[i * len(seeds)], done[i * len(seeds) : (i + 1) * len(seeds)]
        trainings[run.name] = trained
        targets, scores = {}, task_scores(trained, items)
        for t in heldout:
            before = np.stack([report_half(x.losses[t].before) for x in trained])
            after[run.name, t] = np.stack([report_half(x.losses[t].after) for x in trained])
            targets[t] = {
                **change(before, after[run.name, t]),
                "overlap": overlap(job.rows.ids, heldout[t].ids),
                "task": scores.get(t),
            }
        report[run.name] = {
            "weights": run.weights,
            "epochs_at_budget": max(w * config.search.token_budget / tokens[n] for n, w in run.weights.items() if w),
            "sequences": len(job.rows),
            **seen(job, config.finetune.epochs),
            "training": trained[0].training,
            "rungs": [
                {"steps": rung.steps, "losses": {t: float(rung.losses[t].mean()) for t in heldout}}
                for rung in trained[0].rungs
            ],
            "targets": targets,
            "general": forgotten(trained),
        }
    alone = [run.name for run in runs if run.name not in MIXED]
    feasible = [name for name in feasible_alone(config, tokens, caps) if name in alone]
    found = judged(
        trainings["mixture"],
        {name: trainings[name] for name in ("uniform", *feasible)},
        trainings,
        dict(zip(heldout, reported_weights(config), strict=True)),
        config.finetune.delta,
        made_from(Path(study.model.path), config),
    )
    paired = {t: after["uniform", t] - after["mixture", t] for t in heldout}
    return {
        "verdict": found.model_dump(),
        "tokens": len(jobs[-1].rows) * config.sampling.sequence_length,
        "seeds": len(seeds),
        "learning_rate": learning_rate(config),
        "bytes_per_token": {t: bytes_per_token(report_half(rows), study.tokenizer) for t, rows in heldout.items()},
        "runs": report,
        "extrapolation": extrapolations(config, len(jobs[-1].rows), trainings),
        "uniform_less_mixture": {t: vars(two_sample_mean(d)) for t, d in paired.items() if d.shape[1] > 1},
    }


def forgotten(trained: Sequence[Trained]) -> dict[str, float | None] | None:
    """`change` on general text, of a run's trainings; None where there is none."""
    known = [t.general for t in trained if t.general is not None]
    if not known:
        return None
    return change(*(np.stack([report_half(getattr(g, when)) for g in known]) for when in ("before", "after")))


def bytes_per_token(rows: Rows, tokenizer: Any) -> float:
    """UTF-8 bytes of the tokens that count, per token."""
    texts = texts_of(rows.encoded, tokenizer, counted=True)
    return sum(len(text.encode()) for text in texts) / max(1, int(rows.scored.sum()))


def change(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """Mean losses, and their change with its standard error and 95% interval over seeds and held-out rows; both
    float64 [seeds, rows]. None in the place of an interval where there is but one row."""
    difference = after - before
    found = {"before": float(before.mean()), "after": float(after.mean()), "change": float(difference.mean())}
    if difference.shape[1] < 2:
        return {**found, "change_error": None, "change_low": None, "change_high": None}
    estimate = two_sample_mean(difference)
    return {**found, "change_error": estimate.error, "change_low": estimate.low, "change_high": estimate.high}

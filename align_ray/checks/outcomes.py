"""What a predictive study predicts: every target's loss after training on every candidate alone.

One training gives the losses of all targets, at its end and at its rungs. Losses at the end are those of the second
half of a target's held-out rows; the learning rate is chosen, and rungs are measured, on the first half.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.context import Study
from align_ray.corpora.rows import report_half
from align_ray.training.jobs import Job, Trained, job_keys, train_jobs
from align_ray.training.loop import own_rows
from align_ray.training.rows import candidate_jobs, heldout_rows, learning_rate, seen, with_rate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Losses of the trainings, nats per token. K candidates, M targets, S seeds."""

    tokens: int
    """Of a training, without replay."""
    learning_rate: float
    after: np.ndarray
    """float64 [K, M, S], on the report halves."""
    before: np.ndarray
    """float64 [M]: of the model as it is (for random weights: the mean over seeds)."""
    rungs: dict[int, np.ndarray]
    """By tokens: float64 [K, M, S], on the validation halves; the last is the end of the training."""
    epochs: list[float]
    """[K]: how often a training sees each of its rows, mean over seeds."""
    seconds: float
    """Median seconds of one training, without measuring the losses."""
    table: pa.Table
    """Every loss of every training (see `losses_table`)."""


def measure_outcomes(study: Study) -> Outcome:
    """Train on every candidate, with every seed, what is not in the store (Ray Train)."""
    study = with_rate(study, study.config.predict.tokens)
    config, heldout = study.config, heldout_rows(study)
    names, seeds = [c.name for c in config.candidates], range(config.predict.seeds)
    runs = [(name, seed) for name in names for seed in seeds]
    jobs = candidate_jobs(study, config.predict.tokens, seeds)
    study.say(f"training on every candidate: {len(jobs)} trainings, without those done")
    done = train_jobs(study, heldout, jobs, scored=False)

    def by_seed(values: list[Any]) -> np.ndarray:
        """[K, ..., S] of a value a run."""
        return np.moveaxis(np.array(values).reshape(len(names), len(seeds), *np.shape(values[0])), 1, -1)

    after = by_seed([[report_half(losses.after).mean() for losses in t.losses.values()] for t in done])
    before = by_seed([[report_half(losses.before).mean() for losses in t.losses.values()] for t in done])
    per_step = tokens_of_a_step(study)
    rungs = {
        min(rung.steps * per_step, jobs[0].rows.tokens * config.finetune.epochs): by_seed(
            [[t.rungs[i].losses[name].mean() for name in heldout] for t in done]
        )
        for i, rung in enumerate(done[0].rungs)
    }
    epochs = by_seed([seen(job, config.finetune.epochs)["epochs"] for job in jobs]).mean(-1)
    return Outcome(
        jobs[0].rows.tokens * config.finetune.epochs,
        learning_rate(config),
        after,
        before[0].mean(-1),
        rungs,
        epochs.tolist(),
        float(np.median([t.seconds for t in done])),
        losses_table(study, runs, jobs, done, job_keys(study, heldout, jobs, scored=False)),
    )


def tokens_of_a_step(study: Study) -> int:
    """Of a whole batch, without replay."""
    return own_rows(study.config) * study.config.sampling.sequence_length


def losses_table(
    study: Study, runs: list[tuple[str, int]], jobs: list[Job], done: list[Trained], keys: list[str]
) -> pa.Table:
    """A row for every training, target and rung, and for the model before it (0 steps): so that others can test
    measures of their own.

    Columns: `key` of the training, `candidate`, `seed`, `learning_rate`, `target`, `steps`, `tokens` trained on so far
    (without replay), `distinct_tokens` of all the training's rows, `half` (`validation` or `report`: which held-out
    rows of the target), `losses` (nats per token of each of these rows).
    """
    config, rows = study.config, []
    per_step = tokens_of_a_step(study)
    for (candidate, seed), job, trained, key in zip(runs, jobs, done, keys, strict=True):
        most = job.rows.tokens * config.finetune.epochs
        what = {"key": key, "candidate": candidate, "seed": seed, "learning_rate": job.learning_rate}
        what["distinct_tokens"] = int(seen(job, 1)["distinct_tokens"])
        last = trained.rungs[-1].steps
        for target, losses in trained.losses.items():
            measured = [(0, "report", report_half(losses.before)), (last, "report", report_half(losses.after))]
            measured += [(rung.steps, "validation", rung.losses[target]) for rung in trained.rungs]
            rows += [
                {**what, "target": target, "steps": steps, "tokens": min(steps * per_step, most), "half": half,
                 "losses": values.tolist()}
                for steps, half, values in measured
            ]  # fmt: skip
    return pa.Table.from_pylist(rows)

"""What trainings made of the targets' tasks, beside the loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import stats

from align_ray.alignment.intervals import Estimate, interval, two_sample_mean
from align_ray.corpora.items import Items
from align_ray.corpora.questions import Questions
from align_ray.training.jobs import Answers


class HasTasks(Protocol):
    """A training with what its model makes of the targets' tasks."""

    @property
    def tasks(self) -> Mapping[str, Answers]: ...


def task_scores(trained: Sequence[HasTasks], items: Mapping[str, Items | Questions]) -> dict[str, dict[str, Any]]:
    """By target with a task, what a run's trainings (one a seed) came to, as a JSON value (see `values.TaskScore`):
    means with 95% intervals over seeds and items, of a single training over items alone."""
    return {target: _score(trained, target, of) for target, of in items.items()}


def _score(trained: Sequence[HasTasks], target: str, asked: Items | Questions) -> dict[str, Any]:
    before, after = (of_items(trained, target, when) for when in ("before", "after"))
    answered = [of_items(trained, target, when) for when in ("right_before", "right_after")]
    return {
        "measure": asked.measure,
        "items": after.shape[1],
        "chance": asked.chance,
        "accuracy_before": float(answered[0].mean()),
        "accuracy": _share(_mean(answered[1]), after.shape[1]),
        "accuracy_change": _change(_mean(answered[1] - answered[0]), after.shape[1]),
        "score_before": float(before.mean()),
        "score": vars(_mean(after)),
        "score_change": vars(_mean(after - before)),
    }


def of_items(trained: Sequence[HasTasks], target: str, what: str) -> np.ndarray:
    """A field of `jobs.Answers` of a run's trainings, float64 [seeds, items]."""
    return np.stack([getattr(x.tasks[target], what).astype(np.float64) for x in trained])


def _mean(values: np.ndarray) -> Estimate:
    seeds, items = values.shape
    return two_sample_mean(values) if seeds > 1 else interval(values.mean(), values.var(ddof=1) / items, items - 1)


def _share(estimate: Estimate, items: int) -> dict[str, float]:
    """A share of items, whose interval ends at 0 and 1: over two seeds alone it is wider. Of none or all of them, which
    have no variance, it is Clopper and Pearson's."""
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    if estimate.error == 0:
        low, high = stats.binomtest(round(estimate.value * items), items).proportion_ci()
    return {**vars(estimate), "low": float(low), "high": float(high)}


def _change(estimate: Estimate, items: int) -> dict[str, float]:
    """The change of a share; where every item changed alike, as far as the share of others may reach either way."""
    if estimate.error > 0:
        return vars(estimate)
    reach = stats.binomtest(0, items).proportion_ci().high
    return {**vars(estimate), "low": estimate.value - reach, "high": estimate.value + reach}

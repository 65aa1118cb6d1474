"""What trainings made of the targets' tasks, beside the loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import stats

from align_ray.alignment.intervals import Estimate, interval, two_sample_mean
from align_ray.corpora.harness import HarnessTask
from align_ray.corpora.items import Asked
from align_ray.training.jobs import Answers, Whole


class HasTasks(Protocol):
    """A training with what its model makes of the targets' tasks."""

    @property
    def tasks(self) -> Mapping[str, Answers]: ...

    @property
    def wholes(self) -> Mapping[str, Whole]: ...


def task_scores(trained: Sequence[HasTasks], items: Mapping[str, Asked]) -> dict[str, dict[str, Any]]:
    """By target with a task, what a run's trainings (one a seed) came to, as a JSON value (see `values.TaskScore`):
    means with 95% intervals over seeds and items, of a single training over items alone."""
    return {
        target: _described(of)
        | (_score(trained, target) if target in trained[0].tasks else _of_all(trained, target, of))
        for target, of in items.items()
    }


def _described(asked: Asked) -> dict[str, Any]:
    return {"measure": asked.measure, "unit": asked.unit, "metric": asked.metric, "chance": asked.chance}


def _score(trained: Sequence[HasTasks], target: str) -> dict[str, Any]:
    before, after = (of_items(trained, target, when) for when in ("before", "after"))
    answered = [of_items(trained, target, when) for when in ("right_before", "right_after")]
    accuracy, accuracy_change = _level(*answered)
    score, score_change = _level(before, after)
    return {
        "items": after.shape[1],
        "accuracy_before": float(answered[0].mean()),
        "accuracy": accuracy,
        "accuracy_change": accuracy_change,
        "score_before": float(before.mean()),
        "score": score,
        "score_change": score_change,
    }


def _level(before: np.ndarray, after: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """A mean with its interval, and that of its change; of items of 0 and 1 as shares. [seeds, items] each."""
    level, change, items = _mean(after), _mean(after - before), after.shape[1]
    if not np.isin([before, after], (0.0, 1.0)).all():
        return vars(level), vars(change)
    return _share(level, items), _change(change, items)


def _of_all(trained: Sequence[HasTasks], target: str, asked: Asked) -> dict[str, Any]:
    """Of a metric of all items together: the error over items is the metric's own, which seeds have in common; nothing
    is paired, so that the interval of its change is too wide."""
    found = [x.wholes[target] for x in trained]
    assert isinstance(asked, HarnessTask)
    before, after = (np.array([getattr(w, when) for w in found]) for when in ("before", "after"))
    errors = [float(np.mean([getattr(w, f"error_{when}") ** 2 for w in found])) for when in ("before", "after")]
    level = vars(_apart(after, errors[1], asked.items))
    change = vars(_apart(after - before, sum(errors), asked.items))
    first = float(before.mean())
    names = ("accuracy_before", "score_before"), ("accuracy", "score"), ("accuracy_change", "score_change")
    values = ({name: value for name in of} for of, value in zip(names, (first, level, change), strict=True))
    return {"items": asked.items, **{name: value for part in values for name, value in part.items()}}


def _apart(values: np.ndarray, variance: float, items: int) -> Estimate:
    """The mean over seeds, [S], with the variance that they have in common and their own; Welch and Satterthwaite's
    degrees of freedom."""
    own = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    parts = variance**2 / (items - 1) + (own**2 / (len(values) - 1) if len(values) > 1 else 0.0)
    return interval(values.mean(), variance + own, (variance + own) ** 2 / parts if parts > 0 else items - 1)


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

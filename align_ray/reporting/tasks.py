"""How the scores of targets' tasks are said and shown, by every stage that trains."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from align_ray.reporting.result import texts_of
from align_ray.reporting.values import Estimate, TaskScore


def said(target: str, scores: dict[str, TaskScore], runs: tuple[str, ...]) -> list[str]:
    """A sentence for each of these runs."""
    return [
        f"{target}, task after '{name}': {_of(scores[name])}; {scores[name].items} items"
        for name in runs
        if name in scores
    ]


def _of(score: TaskScore) -> str:
    chance = "" if score.chance is None else f", {score.chance:.3f} by chance"
    if not score.unit:
        return f"{score.measure} {_between(score.score, '.3f')}, {score.score_before:.3f} before{chance}"
    return (
        f"{score.metric} {_between(score.accuracy, '.3f')}, {score.accuracy_before:.3f} before{chance}; "
        f"{score.measure} {_between(score.score, '+.4f')} {score.unit}, {score.score_before:+.4f} before"
    )


def remarks(target: str, scores: dict[str, TaskScore], losses: dict[str, float]) -> Iterator[str]:
    """Where no accuracy is told from guessing, and a warning where the best by the loss is another than by the
    task."""
    if all(score.at_floor for score in scores.values()):
        first = next(iter(scores.values()))
        floor = f"no training's {first.metric} is for certain above its floor, {first.chance:.3f}"
        yield f"{target}: {floor}" + (f": the {first.measure} says more" if first.unit else "")
    by_loss, by_task = min(scores, key=lambda n: losses[n]), max(scores, key=lambda n: scores[n].score.value)
    if by_loss != by_task:
        low, high = scores[by_loss].score, scores[by_task].score
        apart = "" if low.high < high.low else "; their intervals overlap"
        yield (
            f"WARNING: {target}: '{by_loss}' is best by the loss, '{by_task}' by the task (scores {low.value:+.4f} and "
            f"{high.value:+.4f}{apart})"
        )


def _between(of: Estimate, form: str) -> str:
    return f"{of.value:{form}} [{of.low:{form}}, {of.high:{form}}]"


def columns(score: TaskScore) -> dict[str, Any]:
    """A task's scores as columns; `measure` and `metric` say what score and accuracy are."""
    found: dict[str, Any] = {"measure": ", ".join(filter(None, (score.measure, score.unit))), "metric": score.metric}
    for name in reversed(score.labels()):
        of: Estimate = getattr(score, name)
        found |= {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
        found[f"{name}_before"] = getattr(score, f"{name}_before")
    return found


def task_tables(parts: Iterable[tuple[str, pd.DataFrame]], label: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and main columns, as text, of every target with a task, highest score first. `parts`: by target a table
    with what `columns` gives; `label`: the column of what was trained on."""
    for target, part in parts:
        if "score" in part and part["score"].notna().any():
            shown = {label: "", "score": "+.4f", "score_low": "+.4f", "accuracy": ".3f", "accuracy_low": ".3f"}
            some = part[part["score"].notna()].sort_values("score", ascending=False, kind="stable")
            first = some.iloc[0]
            names = {"score": first["measure"].partition(",")[0], "accuracy": first["metric"]}
            both = "accuracy" in some and some["accuracy"].notna().any()
            title = f"Task of {target}: {first['measure']}" + (f"; {names['accuracy']}" if both else "")
            yield title, texts_of(some, shown).rename(columns=names)

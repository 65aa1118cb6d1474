"""Every training of a study as two tables and one to read: `ratios.csv` and `metrics.csv` in Olmix's columns, which
`align-ray fit` and `propose` take, and `results.md`, a Markdown table as lm-evaluation-harness prints it.

A run is a training on one mixture, its losses means over seeds. Ratios are shares of tokens, metrics nats per token on
held-out text, lower is better.
"""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from align_ray.config import digest

KEYS = ("run", "name", "index")
"""Olmix's columns that tell runs apart, before those of domains or metrics."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A mixture that was trained on; `errors`: standard errors of the losses, where they are known."""

    name: str
    weights: dict[str, float]
    losses: dict[str, float]
    errors: dict[str, float]
    tokens: int


def trained_runs(results: Mapping[str, Any]) -> list[Run]:
    """All trainings of a study's results by the name of their file: of `finetune`, `validation` and a search on real
    losses, whose proxies are shorter."""
    return [*_of_finetune(results), *_of_validation(results), *_of_search(results)]


def _of_finetune(results: Mapping[str, Any]) -> Iterator[Run]:
    if found := results.get("finetune"):
        for name, run in found.runs.items():
            losses = {target: loss.after for target, loss in run.targets.items()}
            yield Run(f"finetune/{name}", run.weights, losses, {}, found.tokens)


def _of_validation(results: Mapping[str, Any]) -> Iterator[Run]:
    if found := results.get("validation"):
        for name, mixture in found.mixtures.items():
            if mixture.same_as is None:
                losses = {t: loss for t, loss in mixture.loss.items() if t != "all"}
                values = {t: loss.value for t, loss in losses.items()}
                yield Run(
                    f"validate/{name}", mixture.weights, values, {t: x.error for t, x in losses.items()}, found.tokens
                )


def _of_search(results: Mapping[str, Any]) -> Iterator[Run]:
    if found := results.get("search"):
        for i, trial in enumerate(found.trials):
            if trial.losses:
                yield Run(f"search/{i:04d}", trial.weights, trial.losses, {}, 0)


def run_files(results: Mapping[str, Any], proxy_tokens: int) -> dict[str, bytes]:
    """The three files by name; {} where nothing was trained. `proxy_tokens`: of a proxy of the search."""
    runs = [dataclasses.replace(r, tokens=r.tokens or proxy_tokens) for r in trained_runs(results)]
    if not runs:
        return {}
    domains = list(dict.fromkeys(name for run in runs for name in run.weights))
    targets = list(dict.fromkeys(name for run in runs for name in run.losses))
    ids = [(digest([run.name, run.weights], 8), run.name, i) for i, run in enumerate(runs)]
    ratios = [[*key, *(run.weights.get(name, 0.0) for name in domains)] for key, run in zip(ids, runs, strict=True)]
    metrics = [[*key, *(run.losses.get(name, "") for name in targets)] for key, run in zip(ids, runs, strict=True)]
    return {
        "ratios.csv": _table([*KEYS, *domains], ratios),
        "metrics.csv": _table([*KEYS, *(f"loss/{target}" for target in targets)], metrics),
        "results.md": markdown(runs).encode(),
    }


def _table(head: list[str], rows: list[list[Any]]) -> bytes:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def markdown(runs: list[Run]) -> str:
    """A table a target, the columns lm-evaluation-harness prints: task, metric, direction, value and its error."""
    lines = []
    for target in dict.fromkeys(name for run in runs for name in run.losses):
        lines += [
            f"|Tasks: {target}|Tokens|Metric| |Value| |Stderr|",
            "|---|---:|---|---|---:|---|---:|",
        ]
        measured = sorted((run for run in runs if target in run.losses), key=lambda run: run.losses[target])
        for run in measured:
            error = f"{run.errors[target]:.4f}" if target in run.errors else "N/A"
            lines.append(f"|{run.name}|{run.tokens}|loss|\u2193|{run.losses[target]:.4f}|\u00b1|{error}|")
        lines.append("")
    return "\n".join(lines)

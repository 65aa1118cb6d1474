"""Every training of a study as tables in Olmix's columns, which `align-ray fit` and `propose` take, and as one to read:
`results.md`, a Markdown table as lm-evaluation-harness prints it.

`fit` takes the rows of a table for one experiment. So there is a pair of tables for each kind of training (KINDS), of
one number of tokens and measured on the same text. A run is a training on one mixture, its losses means over seeds.
Ratios are shares of tokens, metrics nats per token on held-out text, lower is better.
"""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from align_ray.config import Config, digest

KEYS = ("run", "name", "index")
"""Olmix's columns that tell runs apart, before those of domains or metrics."""
KINDS = {"finetune": "", "validate": "-validate", "search": "-search"}
"""By kind of training, what the names of its tables end with: `ratios.csv` and `metrics.csv` are of `finetune`."""
FILES = (*(f"{table}{end}.csv" for end in KINDS.values() for table in ("ratios", "metrics")), "results.md")
"""All files that `run_files` may give."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A mixture that was trained on; `errors`: standard errors of the losses, where they are known."""

    name: str
    weights: dict[str, float]
    losses: dict[str, float]
    errors: dict[str, float]
    tokens: int


def trained_runs(results: Mapping[str, Any], config: Config) -> dict[str, list[Run]]:
    """All trainings of a study's results (by the name of their file) by their kind: of `finetune`, of `validate`, and
    of a search that trains."""
    return {
        "finetune": list(_of_finetune(results)),
        "validate": list(_of_validation(results)),
        "search": list(_of_search(results, config)),
    }


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


def _of_search(results: Mapping[str, Any], config: Config) -> Iterator[Run]:
    whole = config.search.objective == "predicted"  # which trains as `finetune` does, `loss` trains proxies
    tokens = config.finetune.tokens if whole else config.search.proxy_tokens
    if found := results.get("search"):
        for i, trial in enumerate(found.trials):
            if trial.losses:
                yield Run(f"search/{i:04d}", trial.weights, trial.losses, {}, tokens)


def run_files(results: Mapping[str, Any], config: Config) -> dict[str, bytes]:
    """The files by name, of FILES those that have a row; {} where nothing was trained."""
    files: dict[str, bytes] = {}
    kinds = {kind: runs for kind, runs in trained_runs(results, config).items() if runs}
    for kind, runs in kinds.items():
        domains = list(dict.fromkeys(name for run in runs for name in run.weights))
        targets = list(dict.fromkeys(name for run in runs for name in run.losses))
        keys = [(digest([run.name, run.weights], 8), run.name, i) for i, run in enumerate(runs)]
        ratios = [[*key, *(run.weights.get(n, 0.0) for n in domains)] for key, run in zip(keys, runs, strict=True)]
        metrics = [[*key, *(run.losses.get(n, "") for n in targets)] for key, run in zip(keys, runs, strict=True)]
        files[f"ratios{KINDS[kind]}.csv"] = _table([*KEYS, *domains], ratios)
        files[f"metrics{KINDS[kind]}.csv"] = _table([*KEYS, *(f"loss/{target}" for target in targets)], metrics)
    if kinds:
        files["results.md"] = markdown([run for runs in kinds.values() for run in runs]).encode()
    return files


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

"""Every training of a study as tables in Olmix's columns, which `align-ray fit` and `propose` take, and as one to read:
`results.md`, a Markdown table as lm-evaluation-harness prints it.

`fit` takes the rows of a table for one experiment. So there is a pair of tables for each kind of training (KINDS), of
one number of tokens and measured on the same text. A run is a training on one mixture, its losses means over seeds.
Ratios are shares of tokens, metrics nats per token on held-out text, lower is better; of targets with a task also its
continuous score and accuracy with their 95% intervals, higher is better, which `fit` takes where they are named alone.
"""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from align_ray.config import Config, digest
from align_ray.reporting.values import Estimate, TaskScore

KEYS = ("run", "name", "index")
"""Olmix's columns that tell runs apart, before those of domains or metrics."""
KINDS = {"finetune": "", "validate": "-validate", "search": "-search"}
"""By kind of training, what the names of its tables end with: `ratios.csv` and `metrics.csv` are of `finetune`."""
FILES = (*(f"{table}{end}.csv" for end in KINDS.values() for table in ("ratios", "metrics")), "results.md")
"""All files that `run_files` may give."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A mixture that was trained on; `estimates`: the losses with their intervals, where they are known; `tasks`: by
    target that has one."""

    name: str
    weights: dict[str, float]
    losses: dict[str, float]
    tokens: int
    estimates: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, TaskScore] = dataclasses.field(default_factory=dict)


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
            tasks = {target: loss.task for target, loss in run.targets.items() if loss.task is not None}
            yield Run(f"finetune/{name}", run.weights, losses, found.tokens, tasks=tasks)


def _of_validation(results: Mapping[str, Any]) -> Iterator[Run]:
    if found := results.get("validation"):
        for name, mixture in found.mixtures.items():
            if mixture.same_as is None:
                losses = {t: loss for t, loss in mixture.loss.items() if t != "all"}
                values = {t: loss.value for t, loss in losses.items()}
                yield Run(f"validate/{name}", mixture.weights, values, found.tokens, losses, mixture.task)


def _of_search(results: Mapping[str, Any], config: Config) -> Iterator[Run]:
    whole = config.search.objective == "predicted"  # which trains as `finetune` does, `loss` trains proxies
    tokens = config.finetune.tokens if whole else config.search.proxy_tokens
    if found := results.get("search"):
        for i, trial in enumerate(found.trials):
            if trial.losses:
                yield Run(f"search/{i:04d}", trial.weights, trial.losses, tokens)


def run_files(results: Mapping[str, Any], config: Config) -> dict[str, bytes]:
    """The files by name, of FILES those that have a row; {} where nothing was trained."""
    files: dict[str, bytes] = {}
    kinds = {kind: runs for kind, runs in trained_runs(results, config).items() if runs}
    for kind, runs in kinds.items():
        domains = list(dict.fromkeys(name for run in runs for name in run.weights))
        targets = list(dict.fromkeys(name for run in runs for name in run.losses))
        keys = [(digest([run.name, run.weights], 8), run.name, i) for i, run in enumerate(runs)]
        ratios = [[*key, *(run.weights.get(n, 0.0) for n in domains)] for key, run in zip(keys, runs, strict=True)]
        cells = [{f"loss/{n}": loss for n, loss in run.losses.items()} | _scores(run) for run in runs]
        columns = [f"loss/{target}" for target in targets]
        columns += [name for name in dict.fromkeys(name for row in cells for name in row) if name not in columns]
        metrics = [[*key, *(row.get(name, "") for name in columns)] for key, row in zip(keys, cells, strict=True)]
        files[f"ratios{KINDS[kind]}.csv"] = _table([*KEYS, *domains], ratios)
        files[f"metrics{KINDS[kind]}.csv"] = _table([*KEYS, *columns], metrics)
    if kinds:
        files["results.md"] = markdown([run for runs in kinds.values() for run in runs]).encode()
    return files


def _scores(run: Run) -> dict[str, float]:
    """Columns of the tasks' scores: NAME/TARGET with the ends of its interval, NAME_low/TARGET and NAME_high/TARGET."""
    return {
        f"{name}{end}/{target}": getattr(getattr(task, name), part)
        for target, task in run.tasks.items()
        for name in task.labels()
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def _table(head: list[str], rows: list[list[Any]]) -> bytes:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def markdown(runs: list[Run]) -> str:
    """A table a target, the columns lm-evaluation-harness prints: task, metric, direction, value and its error; and the
    95% interval. Of every metric the best first."""
    lines = []
    for target in dict.fromkeys(name for run in runs for name in run.losses):
        rows: list[tuple[str, str, Run, float, Estimate | None]] = [
            ("loss", "\u2193", run, run.losses[target], run.estimates.get(target))
            for run in runs
            if target in run.losses
        ]
        for run in runs:
            for name, label in run.tasks[target].labels().items() if target in run.tasks else ():
                found = run.tasks[target][name]
                rows.append((label, "\u2191", run, found.value, found))
        lines += [
            f"|Tasks: {target}|Tokens|Metric| |Value| |Stderr|95%|",
            "|---|---:|---|---|---:|---|---:|---|",
        ]
        order = list(dict.fromkeys(metric for metric, *_ in rows))
        rows.sort(key=lambda row: (order.index(row[0]), row[3] if row[1] == "\u2193" else -row[3]))
        for metric, better, run, value, known in rows:
            error, ends = (f"{known.error:.4f}", f"{known.low:.4f} to {known.high:.4f}") if known else ("N/A", "N/A")
            lines.append(f"|{run.name}|{run.tokens}|{metric}|{better}|{value:.4f}|\u00b1|{error}|{ends}|")
        lines.append("")
    return "\n".join(lines)

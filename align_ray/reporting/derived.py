"""What the report shows beside stored values, computed from them and nowhere else."""

import math
from typing import Any

import numpy as np
from scipy import stats

from align_ray.config import Config
from align_ray.reporting.excerpt import ROWS, Excerpt
from align_ray.reporting.headline import headline
from align_ray.reporting.names import called, explained
from align_ray.reporting.trained import verdict_of
from align_ray.reporting.trust import trust
from align_ray.reporting.values import TaskScore


def correlation(x: list[float], y: list[float]) -> dict[str, float] | None:
    """Pearson r with its 95% interval (Fisher z); None below four points or without spread."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = stats.pearsonr(x, y)
    interval = result.confidence_interval()
    return {"r": float(result.statistic), "low": float(interval.low), "high": float(interval.high), "points": len(x)}


def loss_against_measures(results: dict[str, Any], target: str) -> dict[str, Any]:
    """The points of all runs: loss on held-out text, cross-entropy by words (None for mixtures) and pooled alignment (a
    mixture's is its mean over the targets). `r`: of loss and alignment over the candidates whose training saw no
    sequence twice."""
    search, alignment = results["search"], results["alignment"]
    pooled = {row.candidate: row.pooled.value for row in alignment.ranking[target] if row.pooled}
    pooled |= {ours: search.mixtures[name].alignment.value for ours, name in MIXED.items()}
    words = {row.candidate: row.value for row in alignment.predicted.ranking[target]}
    runs, of_token = results["finetune"].runs.items(), results["finetune"].bytes_per_token.get(target)
    points = [
        {"run": name, "alignment": pooled[name], "words": words.get(name), **run.targets[target].model_dump()}
        for name, run in runs
    ]
    for point in points:
        point["bits_per_byte"] = point["after"] / of_token / math.log(2) if of_token else None
    once = {name for name, run in runs if (run.epochs or 1.0) <= 1.0}
    alone = [p for p in points if p["run"] in search.single and p["run"] in once]
    return {"points": points, "r": correlation([p["alignment"] for p in alone], [p["after"] for p in alone])}


MIXED = {"mixture": "recommended", "uniform": "uniform"}
"""Trainings of `finetune` on mixtures, and their names in the search."""


def bars(results: dict[str, Any], target: str) -> dict[str, Any]:
    """What the first figure shows of a target, best first, with 95% intervals. `kind`: "task", the change of its task's
    score by training on every candidate and mixture, where the verdict is by that; "measured", that of the held-out
    loss; "expected" where candidates were chosen by training: below
    what was measured, what the choice believes of every candidate; "words", cross-entropy where nothing was trained.
    Each row has a `kind` of its own and a `label`, which says it where not all are of one."""
    rows: list[dict[str, Any]] = []
    if scored := _scored(results, target):
        for name, task in scored.items():
            rows.append({"name": name, "kind": "task", "label": name, **task.score_change.model_dump()})
        rows.sort(key=lambda row: -row["value"])
        label = next(iter(scored.values())).labels()["score"]
        return {
            "kind": "task",
            "title": "What was measured, by the task",
            "axis": f"change of the {label}",
            "rows": rows,
        }
    if "finetune" in results:
        found = {name: run.targets[target] for name, run in results["finetune"].runs.items()}
        rows = [
            {"name": n, "kind": "measured", "value": loss.change, "low": loss.change_low, "high": loss.change_high}
            for n, loss in found.items()
        ]
    known = {row["name"] for row in rows}
    if "choice" in results and not known.issuperset(results["choice"].targets[target].candidates):
        standing = results["choice"].targets[target]
        rows += [
            {"name": n, "kind": "expected"}
            | {end: getattr(believed, end) - standing.before for end in ("value", "low", "high")}
            for n, believed in standing.candidates.items()
        ]
    if not rows:
        rows = [
            {"name": r.candidate, "kind": "words", "value": r.value, "low": r.low, "high": r.high}
            for r in results["alignment"].predicted.ranking[target]
        ]
    kinds = {row["kind"] for row in rows}
    for row in rows:
        row["label"] = row["name"] if len(kinds) == 1 else f"{row['name']}, {row['kind']}"
    kind = next(kind for kind in BARS if kind in kinds)
    title, axis = BARS[kind]
    if len(kinds) > 1:
        title = "Measured, and expected by training"
    ordered = sorted(rows, key=lambda row: (row["kind"] == "expected", row["value"]))
    return {"kind": kind, "title": title, "axis": axis, "rows": ordered}


def _scored(results: dict[str, Any], target: str) -> dict[str, TaskScore]:
    """By run the scores of a target's task, where the verdict is by tasks and this target has one."""
    if "finetune" not in results or verdict_of(results).by != "task":
        return {}
    found = {name: run.targets[target].task for name, run in results["finetune"].runs.items()}
    return {name: task for name, task in found.items() if task is not None}


def loss_against_task(results: dict[str, Any], target: str) -> dict[str, Any] | None:
    """Every training of `finetune` and every further mixture of `validate`, by loss and by the target's task, highest
    score first: `run`, `loss`, the `task`, where that and the loss stand (`path`, `loss_path`), and whether it is the
    recommended or the uniform mixture (`mixed`). `pairs` of them,
    and in how many the lower loss has the higher score (`alike`). None where there is no task."""
    points: list[dict[str, Any]] = []
    finetune, validation = results.get("finetune"), results.get("validation")
    for name, run in finetune.runs.items() if finetune else ():
        if (task := run.targets[target].task) is not None:
            path: tuple[str, ...] = ("finetune", "runs", name, "targets", target)
            points.append({"run": name, "loss": run.targets[target].after, "task": task})
            points[-1] |= {"path": (*path, "task"), "loss_path": (*path, "after"), "mixed": name in MIXED}
    known = {MIXED[point["run"]] for point in points if point["run"] in MIXED}
    for name, mixture in validation.mixtures.items() if validation else ():
        if target in mixture.task and mixture.same_as is None and name not in known:
            path = ("validation", "mixtures", name)
            points.append({"run": called(name), "loss": mixture.loss[target].value, "task": mixture.task[target]})
            points[-1] |= {
                "path": (*path, "task", target),
                "loss_path": (*path, "loss", target, "value"),
                "mixed": False,
            }
    if not points:
        return None
    points.sort(key=lambda point: -point["task"].score.value)
    both = [(b["loss"] - a["loss"]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return {"points": points, "pairs": len(both), "alike": sum(difference > 0 for difference in both)}


BARS = {
    "expected": ("Candidates by training", "change of the held-out loss (nats per token)"),
    "measured": ("What was measured", "change of the held-out loss (nats per token)"),
    "words": ("Candidates by words", "cross-entropy by words (nats per token)"),
}
"""By kind of the first figure its title and the name of its axis; one expected bar makes a figure of that kind."""


def compared(config: Config, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every mixture: what it is called, its measured `loss` by target and where that stands (`path`), its objective
    above the uniform one's (`gain`), whether it keeps to the limits. Lowest measured loss first, then those without by
    `gain`."""
    search, validation, finetune = results["search"], results.get("validation"), results.get("finetune")
    share = reported(config)
    rows = []
    for name, mixture in search.mixtures.items():
        path: tuple[str, ...] | None = None
        alone = next((n for n, w in mixture.weights.items() if w > 1 - 1e-9), None)
        ours: str | None = {v: k for k, v in MIXED.items()}.get(name, alone)
        if validation is not None and name in validation.mixtures:
            path = ("validation", "mixtures", name, "loss")
            losses = {t: validation.mixtures[name].loss[t].value for t in share}
        elif validation is None and finetune is not None and ours is not None and ours in finetune.runs:
            path = ("finetune", "runs", ours, "targets")
            losses = {t: finetune.runs[ours].targets[t].after for t in share}
        loss = sum(s * losses[t] for t, s in share.items()) if path else None
        rows.append(
            {
                "key": name,
                "name": called(name),
                "explained": explained(name),
                "gain": mixture.value - search.mixtures["uniform"].value,
                "loss": loss,
                "path": path,
                "feasible": mixture.feasible,
                "most_epochs": max(mixture.epochs.values()),
                "most_repeated": max(mixture.epochs, key=lambda n: mixture.epochs[n]),
            }
        )
    if validation is not None and (own := validation.mixtures.get("mixmin")) and "mixmin" not in search.mixtures:
        loss = sum(s * own.loss[t].value for t, s in share.items())
        rows.append(
            {
                "key": "mixmin", "name": called("mixmin"), "explained": explained("mixmin"), "gain": None,
                "loss": loss, "path": ("validation", "mixtures", "mixmin", "loss"), "feasible": None,
                "most_epochs": None, "most_repeated": None,
            }
        )  # fmt: skip

    def order(row: dict[str, Any]) -> tuple[bool, float]:
        return row["loss"] is None, row["loss"] if row["loss"] is not None else -row["gain"]

    return sorted(rows, key=order)


def reported(config: Config) -> dict[str, float]:
    """Weights of the targets for what is shown as their mean, sum 1: equal ones where the worst is the goal."""
    given, names = config.search.targets, [t.name for t in config.targets]
    weights = {n: given.get(n, 0.0) if isinstance(given, dict) else 1.0 for n in names}
    return {n: w / sum(weights.values()) for n, w in weights.items()}


def tried(config: Config, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Weights and losses (nats per token, weighted mean over targets) of mixtures that were trained on alike: the
    search's proxies, or else what `validate` trained."""
    proxies = [{"weights": t.weights, "loss": t.loss} for t in results["search"].trials if t.loss is not None]
    if proxies or "validation" not in results:
        return proxies
    share = reported(config)
    return [
        {"weights": m.weights, "loss": sum(s * m.loss[t].value for t, s in share.items())}
        for m in results["validation"].mixtures.values()
        if not m.same_as
    ]


def facts(config: Config, results: dict[str, Any], costs: dict[str, Any]) -> dict[str, Any]:
    """What the head of the page says of the run: `date`, `version`, `machine` as the stages recorded them (the newest
    date; None where an earlier version ran), and the `base` that was trained."""
    stages = [stage for stage in costs.get("cost", {}).values() if isinstance(stage, dict)]
    ended = [stage["ended"] for stage in stages if "ended" in stage]
    base = config.finetune.model or config.probe.model
    return {
        "date": max(ended, default=None),
        "version": ", ".join(dict.fromkeys(stage["version"] for stage in stages if "version" in stage)) or None,
        "machine": "; ".join(dict.fromkeys(stage["machine"] for stage in stages if stage.get("machine"))) or None,
        "base": f"{base}, from random weights" if config.finetune.scratch else base,
    }


def derived(
    config: Config, results: dict[str, Any], costs: dict[str, Any], stopped: str = "", shown: Excerpt | None = None
) -> dict[str, Any]:
    """What the page shows beside stored values, computed from them; of very many corpora, of those `shown`.

    `prior`: whether the search has one; `facts`, `bars`, `trust`, `compared`, `tried`: see there; `gain`: the chosen
    mixture's objective less uniform's; `price`: the unconstrained optimum's less the optimum's;
    `finetuned[target]`: loss with the uniform mixture less loss with the recommended one, mean over seeds, with
    its interval over seeds and held-out rows (None for a single row); `verdict`: see `verdict_of`; `headline`: see
    there; `tasks` by target: see `loss_against_task`; `of_tasks`: see `task_remarks`, by stage;
    `repeated`: sentences on trainings that saw their text more than once, by stage; `better_alone`: on
    candidates that did better alone than the mixture; `beyond`: on what would be at the token budget;
    `losses` by target, see `loss_against_measures`; `front` by target: see `Finetuned.front`; `skipped`: sequences
    left out, by corpus; `trials`: their number; `ran`: stages that have run;
    `actual` and `estimated`: totals over those of what every one of them has; `embedding_rate`: tokens per second of an
    actor.
    """
    targets = shown.targets if shown else results["alignment"].targets
    found: dict[str, Any] = {"losses": {}, "finetuned": {}, "front": {}, "compared": [], "tried": []}
    found["facts"] = facts(config, results, costs)
    found["prior"] = config.search.prior_strength > 0
    of = {target: bars(results, target) for target in targets}
    found["bars"] = dict(sorted(of.items(), key=lambda item: item[1]["kind"] != "task"))  # what decides comes first
    found["trust"] = {target: trust(results, target) for target in targets}
    if shown:
        for part in (*found["bars"].values(), *found["trust"].values()):
            of_runs = [row for row in part["rows"][ROWS:] if row.get("name") in ("mixture", "uniform")]
            part["rows"] = part["rows"][:ROWS] + of_runs
        for part in found["trust"].values():
            part["disagree"] = part["disagree"][:ROWS]
    found["verdict"] = verdict_of(results, stopped).model_dump() if "search" in results else None
    found["headline"] = headline(results, stopped)
    found["repeated"] = {
        stage: results[stage].repeated() if stage in results else [] for stage in ("finetune", "validation")
    }
    found["beyond"] = results["finetune"].beyond() if "finetune" in results else []
    found["better_alone"] = results["finetune"].better_alone() if "finetune" in results else []
    against = {target: loss_against_task(results, target) for target in targets}
    found["tasks"] = {target: task for target, task in against.items() if task is not None}
    found["of_tasks"] = {
        stage: results[stage].task_remarks() for stage in ("finetune", "validation", "choice") if stage in results
    }
    found["skipped"] = {name: len(places) for name, places in results["alignment"].skipped.items()}
    if "search" in results:
        mixtures = results["search"].mixtures
        found["gain"] = mixtures["recommended"].value - mixtures["uniform"].value
        found["trials"] = len(results["search"].trials)
        found["price"] = mixtures["unconstrained"].value - mixtures["closed_form"].value
        found["compared"], found["tried"] = compared(config, results), tried(config, results)
    if "search" in results and "finetune" in results:
        runs = results["finetune"].runs
        for target in targets:
            found["losses"][target] = losses = loss_against_measures(results, target)
            if shown:
                losses["points"] = [point for point in losses["points"] if point["run"] in shown.runs]
            paired = results["finetune"].uniform_less_mixture.get(target)
            difference = runs["uniform"].targets[target].after - runs["mixture"].targets[target].after
            ends = {"low": None, "high": None} if paired is None else {"low": paired.low, "high": paired.high}
            found["finetuned"][target] = {"value": difference, **ends}
            found["front"][target] = results["finetune"].front(target)
    embedding = costs.get("cost", {}).get("embed", {})
    if embedding.get("computed"):
        found["embedding_rate"] = embedding["tokens"] / embedding["actor_seconds"]
    ran, expected = costs.get("cost", {}), costs.get("estimate", {"stages": {}})["stages"]
    found["ran"] = list(ran)
    found["actual"] = _totals(ran, ("seconds", "worker_seconds", "cost"))
    known = {name: stage for name, stage in expected.items() if name in ran or not ran}
    if shown:
        found["excerpt"] = _said(results, shown)
    found["estimated"] = _totals(known, ("tokens", "worker_seconds", "cost"))
    return found


def _said(results: dict[str, Any], shown: Excerpt) -> list[str]:
    """What the page leaves out, and where it is, a sentence each."""
    lines = [
        f"{shown.of_candidates:,} candidates and {shown.of_targets:,} targets are too many for one page: it lists "
        f"{len(shown.candidates)} candidates (those of the recommended mixture, the heaviest first, and the first of "
        f"the rankings) and {'the one target' if shown.of_targets == 1 else f'{len(shown.targets)} targets'}, and of a "
        f"ranking the first {ROWS}",
        "all candidates for all targets by every measure: candidates.csv and alignment.json beside this page",
        "alignment of all pairs, in the order of the picture: pairs.csv",
    ]
    if "search" in results:
        lines.append(
            "weights of all corpora in every mixture, and what limits them: mixtures.csv; at other budgets, and "
            "trade-offs between targets: search.json"
        )
    others = [f"{name}.json" for name in ("finetune", "choice", "contamination", "samples") if name in results]
    return [*lines, f"all of other stages: {', '.join(others)}"] if others else lines


def _totals(stages: dict[str, dict[str, Any]], keys: tuple[str, ...]) -> dict[str, float | None]:
    """Sum of each key over the stages; None where a stage lacks it, for a sum of a part would mislead."""
    known = {key: [stage[key] for stage in stages.values() if stage.get(key) is not None] for key in keys}
    return {key: sum(values) if values and len(values) == len(stages) else None for key, values in known.items()}

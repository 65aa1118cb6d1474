"""The report: one self-contained HTML page with the answer first, then what it rests on.

Numbers and sentences of the results reach the page through `Shown` alone, each with the path of the stored value, so
that a test (or a reader's script) can compare all of them with the stored results.
"""

import base64
import hashlib
import math
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from scipy import stats

from align_ray.config import Config
from align_ray.reporting.figures import all_figures, front_pairs
from align_ray.reporting.headline import headline
from align_ray.reporting.results import verdict_of

OBJECTIVES = {
    "cross-entropy": "minus the target's cross-entropy under the mixture's unigram model, nats per token",
    "scaled-cosine": "similarity of the mixture's Fisher embedding with the target's (scaled cosine), at most 1",
    "hellinger": "similarity of the mixture's Fisher embedding with the target's (Hellinger), at most 1",
    "kl": "minus KL(target, mixture) of the Fisher embeddings as distributions over their rows, nats, at most 0",
    "linear": "the corpora's mean alignment with the target, at most 1",
    "mixmin": "minus the cross-entropy of held-out text under the mixture of the candidates' models, nats per token",
}
"""What a mixture's `value` is; higher is better. A search by `loss` describes its mixtures by cross-entropy."""


class Shown:
    """Looks values up in a tree of results and writes them with their path."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree

    def find(self, path: tuple[str | int, ...]) -> Any:
        """Raises KeyError where there is nothing."""
        value: Any = self.tree
        for part in path:
            value = value[part]
        return value

    def number(self, spec: str, *path: str | int) -> Markup:
        """A number in Python's format language; nothing for None, n/a for a value that is not finite."""
        value = self.find(path)
        if value is None:
            return Markup("")
        text = format(value, spec) if np.isfinite(value) else "n/a"
        return Markup('<data value="{}" data-path="{}">{}</data>').format(repr(value), _joined(path), text)

    def estimate(self, spec: str, *path: str | int) -> Markup:
        """A value with its 95% interval, from a mapping with `value`, `low` and `high`; nothing for None."""
        if self.find(path) is None:
            return Markup("")
        value, low, high = (self.number(spec, *path, key) for key in ("value", "low", "high"))
        return Markup('{} <span class="note">[{}, {}]</span>').format(value, low, high)

    def text(self, *path: str | int) -> Markup:
        """A stored sentence."""
        return Markup('<span data-path="{}">{}</span>').format(_joined(path), self.find(path))


def _joined(path: tuple[str | int, ...]) -> str:
    return "/".join(map(str, path))


def correlation(x: list[float], y: list[float]) -> dict[str, float] | None:
    """Pearson r with its 95% interval (Fisher z); None below four points or without spread."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = stats.pearsonr(x, y)
    interval = result.confidence_interval()
    return {"r": float(result.statistic), "low": float(interval.low), "high": float(interval.high), "points": len(x)}


def loss_against_alignment(results: dict[str, Any], target: str) -> dict[str, Any]:
    """The points (pooled alignment, loss on held-out text) of all runs, and r over the candidates whose training saw no
    sequence twice; a mixture's alignment is its mean over the targets."""
    search, ranked = results["search"], results["alignment"].ranking[target]
    x = {row.candidate: row.pooled.value for row in ranked if row.pooled}
    x["uniform"] = search.mixtures["uniform"].alignment.value
    x["mixture"] = search.mixtures["recommended"].alignment.value
    runs = results["finetune"].runs.items()
    points = [{"run": name, "alignment": x[name], **run.targets[target].model_dump()} for name, run in runs]
    of_token = results["finetune"].bytes_per_token.get(target)
    for point in points:
        point["bits_per_byte"] = point["after"] / of_token / math.log(2) if of_token else None
    once = {name for name, run in runs if (run.epochs or 1.0) <= 1.0}
    alone = [p for p in points if p["run"] in search.single and p["run"] in once]
    return {"points": points, "r": correlation([p["alignment"] for p in alone], [p["after"] for p in alone])}


def derived(results: dict[str, Any], costs: dict[str, Any], stopped: str = "") -> dict[str, Any]:
    """What the page shows beside stored values, computed from them.

    `gain`: the chosen mixture's objective less uniform's; `price`: the unconstrained optimum's less the optimum's;
    `finetuned[target]`: loss with the uniform mixture less loss with the recommended one, mean over seeds, with
    its interval over seeds and held-out rows (None for a single row); `verdict`: see `verdict_of`; `headline`: see
    there; `repeated`: sentences on trainings that saw their text more than once, by stage; `better_alone`: on
    candidates that did better alone than the mixture;
    `losses` by target, see `loss_against_alignment`; `front` by target: see `Finetuned.front`; `skipped`: sequences
    left out, by corpus; `trials`: their number;
    `actual` and `estimated`: totals over stages of what every stage has; `embedding_rate`: tokens per second of an
    actor.
    """
    found: dict[str, Any] = {"losses": {}, "finetuned": {}, "front": {}}
    found["verdict"] = verdict_of(results, stopped).model_dump() if "search" in results else None
    found["headline"] = headline(results, stopped)
    found["repeated"] = {
        stage: results[stage].repeated() if stage in results else [] for stage in ("finetune", "validation")
    }
    found["better_alone"] = results["finetune"].better_alone() if "finetune" in results else []
    found["skipped"] = {name: len(places) for name, places in results["alignment"].skipped.items()}
    if "search" in results:
        mixtures = results["search"].mixtures
        found["gain"] = mixtures["recommended"].value - mixtures["uniform"].value
        found["trials"] = len(results["search"].trials)
        found["price"] = mixtures["unconstrained"].value - mixtures["closed_form"].value
    if "search" in results and "finetune" in results:
        runs = results["finetune"].runs
        for target in results["alignment"].targets:
            found["losses"][target] = loss_against_alignment(results, target)
            paired = results["finetune"].uniform_less_mixture.get(target)
            difference = runs["uniform"].targets[target].after - runs["mixture"].targets[target].after
            ends = {"low": None, "high": None} if paired is None else {"low": paired.low, "high": paired.high}
            found["finetuned"][target] = {"value": difference, **ends}
            found["front"][target] = results["finetune"].front(target)
    embedding = costs.get("cost", {}).get("embed", {})
    if embedding.get("computed"):
        found["embedding_rate"] = embedding["tokens"] / embedding["actor_seconds"]
    found["actual"] = _totals(costs.get("cost", {}), ("seconds", "worker_seconds", "cost"))
    found["estimated"] = _totals(costs.get("estimate", {"stages": {}})["stages"], ("tokens", "worker_seconds", "cost"))
    return found


def _totals(stages: dict[str, dict[str, Any]], keys: tuple[str, ...]) -> dict[str, float | None]:
    """Sum of each key over the stages; None where a stage lacks it, for a sum of a part would mislead."""
    known = {key: [stage[key] for stage in stages.values() if stage.get(key) is not None] for key in keys}
    return {key: sum(values) if values and len(values) == len(stages) else None for key, values in known.items()}


def render_report(config: Config, results: dict[str, Any], costs: dict[str, Any], stopped: str = "") -> str:
    """The page as a string. `results`: what the stages returned by the name of their file, corpora and alignment at
    least; `costs`: estimate and cost, as stored, where there are any; `stopped`: what ended the run early."""
    more = derived(results, costs, stopped)
    tree = {name: result.dump() for name, result in results.items()} | costs
    tree["corpora"] = tree["corpora"]["corpora"]
    shown = Shown({**tree, "config": config.model_dump(mode="json"), "derived": more})
    pairs = front_pairs(results["search"]) if "search" in results else []
    figures = {name: figure.to_json() for name, figure in all_figures(results, more["losses"], pairs).items()}
    script = resources.files("align_ray.reporting").joinpath("report.js").read_text(encoding="utf-8")
    scripts = {"plotly": get_plotlyjs(), "page": script}
    environment = Environment(
        loader=PackageLoader("align_ray.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        config=config,
        yaml=config.to_yaml(),
        results=tree,
        more=more,
        num=shown.number,
        ci=shown.estimate,
        text=shown.text,
        objectives=OBJECTIVES,
        pairs=pairs,
        front=tree["search"]["pareto"] if pairs else [],
        # data, not script: a "<" in a name must not end the element
        figures="{" + ",".join(f'"{name}":{json}' for name, json in figures.items()).replace("<", "\\u003c") + "}",
        style=resources.files("align_ray.reporting").joinpath("report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        # the browser runs these scripts alone and loads nothing, whatever the data holds
        hashes=" ".join(f"'sha256-{_sha256(code)}'" for code in scripts.values()),
    )


def _sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()

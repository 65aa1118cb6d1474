"""The report: one self-contained HTML page with the answer first, then what it rests on.

Numbers and sentences of the results reach the page through `Shown` alone, each with the path of the stored value, so
that a test (or a reader's script) can compare all of them with the stored results.
"""

import base64
import hashlib
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from align_ray.config import Config
from align_ray.reporting.derived import derived
from align_ray.reporting.figures import all_figures, cluster, front_pairs
from align_ray.reporting.names import called
from align_ray.reporting.trust import GOOD_FOR

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

    def half(self, spec: str, *path: str | int) -> Markup:
        """Half the interval of a mapping with `value` and `high`."""
        value = self.find((*path, "high")) - self.find((*path, "value"))
        return Markup('<data value="{}" data-half="{}">{}</data>').format(
            repr(value), _joined(path), format(value, spec)
        )

    def text(self, *path: str | int) -> Markup:
        """A stored sentence."""
        return Markup('<span data-path="{}">{}</span>').format(_joined(path), self.find(path))


def _joined(path: tuple[str | int, ...]) -> str:
    return "/".join(map(str, path))


def render_report(config: Config, results: dict[str, Any], costs: dict[str, Any], stopped: str = "") -> str:
    """The page as a string. `results`: what the stages returned by the name of their file, corpora and alignment at
    least; `costs`: estimate and cost, as stored, where there are any; `stopped`: what ended the run early."""
    more = derived(config, results, costs, stopped)
    tree = {name: result.dump() for name, result in results.items()} | costs
    tree["corpora"] = tree["corpora"]["corpora"]
    shown = Shown({**tree, "config": config.model_dump(mode="json"), "derived": more})
    pairs = front_pairs(results["search"]) if "search" in results else []
    script = resources.files("align_ray.reporting").joinpath("report.js").read_text(encoding="utf-8")
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
        half=shown.half,
        text=shown.text,
        objectives=OBJECTIVES,
        good_for=GOOD_FOR,
        clustered=cluster(results["alignment"])[0],
        called=called,
        pairs=pairs,
        front=tree["search"]["pareto"] if pairs else [],
        figures=all_figures(results, more, pairs),
        style=resources.files("align_ray.reporting").joinpath("report.css").read_text(encoding="utf-8"),
        script=script,
        # the browser runs this script alone and loads nothing, whatever the data holds
        hash=f"'sha256-{_sha256(script)}'",
    )


def _sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()

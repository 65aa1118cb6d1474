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

from align_ray.config import Config, to_yaml
from align_ray.reporting.derived import derived
from align_ray.reporting.excerpt import ROWS, Excerpt, cut, picture
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


CORPORA = {"targets", "candidates"}
"""Fields of the configuration that a page of very many corpora leaves to config.yaml."""


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
    excerpt, alignment = Excerpt.of(results), results["alignment"]
    more = derived(config, results, costs, stopped, excerpt)
    tree = {name: result.dump() for name, result in results.items()} | costs
    tree["corpora"] = tree["corpora"]["corpora"]
    shown = Shown({**tree, "config": config.model_dump(mode="json"), "derived": more})
    names = [*(excerpt or alignment).targets, *(excerpt or alignment).candidates]
    pairs = front_pairs(results["search"]) if "search" in results and excerpt is None else []
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
        yaml=config.to_yaml() if excerpt is None else to_yaml(config.model_dump(mode="json", exclude=CORPORA)),
        results=tree if excerpt is None else cut(tree, excerpt),
        more=more,
        num=shown.number,
        ci=shown.estimate,
        half=shown.half,
        find=lambda *path: shown.find(path),
        value_of=lambda *path: shown.find(path) if path[1] == "alike" else shown.find((*path, "value")),
        text=shown.text,
        objectives=OBJECTIVES,
        good_for=GOOD_FOR,
        clustered=cluster(alignment, names)[0],
        pair=lambda a, b: ("alignment", *alignment.pair(a, b)),
        picture=picture(alignment) if excerpt else None,
        every=len(alignment.targets) + len(alignment.candidates),
        kept=excerpt,
        limit=ROWS if excerpt else None,
        called=called,
        pairs=pairs,
        front=tree["search"]["pareto"] if pairs else [],
        figures=all_figures(results, more, pairs, names),
        style=resources.files("align_ray.reporting").joinpath("report.css").read_text(encoding="utf-8"),
        script=script,
        # the browser runs this script alone and loads nothing, whatever the data holds
        hash=f"'sha256-{_sha256(script)}'",
    )


def _sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()

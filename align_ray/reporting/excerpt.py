"""What a page shows of very many corpora, so that a browser can open it: an excerpt, and the files that hold the rest.

Up to WHOLE corpora a page shows everything. Of more it lists the first TARGETS targets, and ROWS candidates: those with
a weight in the recommended mixture, the heaviest first, filled up with the first of the rankings; a target's rankings
are cut after their first ROWS. Every number on it keeps the path of the stored value.
"""

import base64
import dataclasses
import io
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from align_ray.alignment.coefficients import EVERY_PAIR as WHOLE
from align_ray.reporting.figures import cluster
from align_ray.reporting.results import Alignment, Mixture

TARGETS, ROWS = 8, 40
HEAVY = 24
"""Corpora of the mixture that are taken first."""
WEIGHT = 0.005
"""Share from which on a corpus is one of them."""
SHADES = 32
"""Of the picture of all pairs: 5 bits a pair."""
FILES = ("candidates.csv", "mixtures.csv", "pairs.csv")
"""Written beside such a page."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """The corpora that a page lists, in the study's order."""

    targets: list[str]
    candidates: list[str]
    of_targets: int
    of_candidates: int

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "Excerpt | None":
        """None where the page shows everything."""
        alignment: Alignment = results["alignment"]
        if len(alignment.targets) + len(alignment.candidates) <= WHOLE:
            return None
        targets, kept = alignment.targets[:TARGETS], dict[str, None]()
        if "search" in results:
            weights = results["search"].mixtures["recommended"].weights
            heavy = sorted((n for n in weights if weights[n] >= WEIGHT), key=lambda n: -weights[n])
            kept |= dict.fromkeys(heavy[:HEAVY])
        by_place = zip_longest(*([row.candidate for row in alignment.predicted.ranking[t][:ROWS]] for t in targets))
        for name in chain.from_iterable(by_place):
            if name is not None and len(kept) < ROWS:
                kept[name] = None
        candidates = [n for n in alignment.candidates if n in kept]
        return cls(targets, candidates, len(alignment.targets), len(alignment.candidates))

    @property
    def runs(self) -> set[str]:
        """Names under which trainings are listed."""
        return {*self.candidates, "mixture", "uniform"}


def cut(tree: dict[str, Any], shown: Excerpt) -> dict[str, Any]:
    """What a page goes through of stored results (JSON values by file): mappings by corpus with those shown alone,
    rankings up to their first ROWS. Values are looked up in the whole."""
    corpora, targets, candidates = {*shown.targets, *shown.candidates}, set(shown.targets), set(shown.candidates)
    tree = dict(tree)
    tree["corpora"] = _of(tree["corpora"], corpora)
    tree["alignment"] = _alignment(tree["alignment"], corpora, shown)
    if "search" in tree:
        search = dict(tree["search"])
        mixtures = {n: m | {"weights": _of(m["weights"], candidates)} for n, m in search["mixtures"].items()}
        search |= {"mixtures": mixtures, "weights": _of(search["weights"], candidates), "pareto": []}
        search["budgets"] = [b | {"capped": _few(b.get("capped", []))} for b in search.get("budgets", [])]
        search["check"] = {n: _of(rows, targets) for n, rows in search.get("check", {}).items()}
        if predicted := search.get("prediction"):
            by_mixture = {n: _of(rows, targets) for n, rows in predicted["mixtures"].items()}
            search["prediction"] = predicted | {"mixtures": by_mixture}
        tree["search"] = search
    if "finetune" in tree:
        beyond = {
            t: found | {"runs": _of(found["runs"], shown.runs)}
            for t, found in tree["finetune"].get("extrapolation", {}).items()
            if t in targets
        }
        tree["finetune"] = tree["finetune"] | {"runs": _of(tree["finetune"]["runs"], shown.runs)}
        tree["finetune"]["extrapolation"] = beyond
    if "choice" in tree:
        found = _of(tree["choice"]["targets"], targets)
        first = {t: one | {"candidates": dict(list(one["candidates"].items())[:ROWS])} for t, one in found.items()}
        tree["choice"] = tree["choice"] | {"targets": first}
    if "contamination" in tree:
        tree["contamination"] = tree["contamination"] | {"overlap": _of(tree["contamination"]["overlap"], candidates)}
    if "samples" in tree:
        tree["samples"] = _of(tree["samples"], corpora)
    return tree


def _alignment(value: dict[str, Any], corpora: set[str], shown: Excerpt) -> dict[str, Any]:
    first = lambda rankings: {t: rankings[t][:ROWS] for t in shown.targets if t in rankings}  # noqa: E731
    predicted = value["predicted"]
    predicted = predicted | {part: first(predicted.get(part, {})) for part in ("ranking", "unranked")}
    parts = {part: _of(value.get(part, {}), corpora) for part in ("noise", "diversity")}
    # by the coefficient whole: the rows of the other ranking are looked for in it
    lists = {"targets": shown.targets, "candidates": shown.candidates, "ranking": value["ranking"]}
    return value | lists | parts | {"predicted": predicted}


def _of(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= ROWS else [*names[:5], f"{len(names) - 5} others"]


def files(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that a page which leaves something out names, by name; {} where it shows everything. `candidates.csv`:
    a row a target and candidate, every measure; `mixtures.csv`: a row a candidate, its weight in every mixture and what
    limits it; `pairs.csv`: alignment of all pairs, in the order of the picture."""
    if Excerpt.of(results) is None:
        return {}
    alignment: Alignment = results["alignment"]
    found = {"candidates.csv": alignment.to_pandas().to_csv(index=False)}
    order = cluster(alignment)[0]
    pairs = pd.DataFrame(alignment.pairs(order), index=pd.Index(order, name="corpus"), columns=order)
    found["pairs.csv"] = pairs.to_csv(float_format="%.4f")
    if "search" in results:
        search: Mixture = results["search"]
        weights = pd.DataFrame({f"weight_{name}": m.weights for name, m in search.mixtures.items()})
        found["mixtures.csv"] = search.to_pandas().join(weights, on="corpus").to_csv(index=False)
    return {name: text.encode() for name, text in found.items()}


def picture(alignment: Alignment) -> str:
    """All pairs as a PNG in a data URI, a pixel a pair, the darker the more alike, in the order of `cluster`."""
    values = alignment.pairs(cluster(alignment)[0])
    low, high = float(values.min()), float(values.max())
    shades = np.floor((values - low) / ((high - low) or 1.0) * (SHADES - 1) + 0.5) / (SHADES - 1)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, shades, cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(_indexed(buffer.getvalue())).decode()}"


def _indexed(png: bytes) -> bytes:
    """The same with a palette: a fifth of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(SHADES).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

"""The report's figures, as SVG by matplotlib: their colours are the page's CSS variables, so that they follow light,
dark and paper without a script."""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from align_ray.reporting.results import Alignment, Mixture, Samples
from align_ray.reporting.values import Extrapolation

FOREGROUND, MUTED, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010105", "#010106", "#010107", "#010108")
VARIABLES = dict(
    zip(
        (FOREGROUND, MUTED, LINE, PAPER, *SERIES),
        ("--fg", "--muted", "--line", "--bg", "--c1", "--c2", "--c3", "--c4"),
        strict=True,
    )
)
"""Colours that nothing else has, and the variable of report.css that takes their place."""
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": FOREGROUND,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": FOREGROUND,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": FOREGROUND,
    "ytick.labelcolor": FOREGROUND,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
}
WIDE = 9.6
"""Inches: what the page's text is wide."""


def all_figures(
    results: dict[str, Any], more: dict[str, Any], pairs: list[dict[str, Any]], names: list[str]
) -> dict[str, str]:
    """Every figure that the results allow as an SVG element, by the id of its element in the page. `more`: what
    `page.derived` gives; `pairs`: as `front_pairs`; `names`: the corpora that are drawn."""
    with matplotlib.rc_context(STYLE):
        drawn = _figures(results, more, pairs, names)
        return {name: _svg(name, figure) for name, figure in drawn if figure is not None}


def _figures(
    results: dict[str, Any], more: dict[str, Any], pairs: list[dict[str, Any]], names: list[str]
) -> Iterator[tuple[str, Figure | None]]:
    alignment, search = results["alignment"], results.get("search")
    for target, bars in more["bars"].items():
        yield f"bars-{target}", bars_figure(bars)
    yield "tree", tree_figure(alignment, names)
    if search:
        yield "weights", weights_figure(search, names)
        yield "budgets", budgets_figure(search, more["prior"])
        yield "parallel", parallel_figure(more["tried"])
        for i, pair in enumerate(pairs):
            yield f"front-{i}", front_figure(search, pair)
    for target, loss in more["losses"].items():
        yield f"loss-{target}", loss_figure(loss["points"])
    for target, task in more["tasks"].items():
        yield f"task-{target}", task_figure(task["points"])
    for target, found in results["finetune"].extrapolation.items() if "finetune" in results else ():
        if target in names:
            yield f"beyond-{target}", beyond_figure(found)
    if "samples" in results:
        for target in (t for t in alignment.targets if t in names):
            yield f"samples-{target}", samples_figure(results["samples"], target, names)


def _svg(name: str, figure: Figure) -> str:
    """The element alone, with ids of its own on a page of many."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same study gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _axes(height: float, width: float = WIDE, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def bars_figure(bars: dict[str, Any]) -> Figure:
    """What was measured or, in outline, is expected of every candidate and mixture, or what was counted where nothing
    was trained, with 95% intervals."""
    rows, trained = bars["rows"], bars["kind"] != "words"
    figure, axes = _axes(0.75 + 0.27 * len(rows), 6.0)
    for i, row in enumerate(rows):
        if row["kind"] == "expected":
            axes.barh(i, row["value"], height=0.62, color="none", edgecolor=SERIES[2])
        elif trained:
            colour = {"mixture": SERIES[0], "uniform": SERIES[1]}.get(row["name"], SERIES[2])
            axes.barh(i, row["value"], height=0.62, color=colour, alpha=0.55 if colour == SERIES[2] else 0.85)
        else:
            axes.plot(row["value"], i, "o", color=SERIES[0], markersize=5)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [i, i], color=FOREGROUND, linewidth=1.3, solid_capstyle="butt")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(bars["axis"], fontsize=8.5, loc="right")
    if trained:
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.spines["left"].set_visible(False)
    return figure


def cluster(alignment: Alignment, some: list[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Average linkage of all corpora, or `some`, on 1 - alignment: names in leaf order, and scipy's linkage matrix.

    The distance of two corpora is between their batches and so never 0, not even for equal ones.
    """
    names = [*alignment.targets, *alignment.candidates] if some is None else some
    distance = 1 - alignment.pairs(names)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform((distance + distance.T) / 2).clip(0)
    # the order of leaves that puts the most alike beside each other takes K^3
    tree = hierarchy.linkage(condensed, "average", optimal_ordering=len(names) <= ORDERED)
    return [names[i] for i in hierarchy.leaves_list(tree)], tree


ORDERED = 200
"""Corpora up to which the leaves of the tree are ordered."""


def tree_figure(alignment: Alignment, names: list[str]) -> Figure:
    """The dendrogram of these corpora."""
    figure, axes = _axes(0.6 + 0.24 * len(names), 7.0)
    hierarchy.dendrogram(
        cluster(alignment, names)[1],
        orientation="left",
        labels=names,
        ax=axes,
        color_threshold=0,
        above_threshold_color=SERIES[0],
        leaf_font_size=9.5,
    )
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("1 − alignment at which they join")
    return figure


def weights_figure(search: Mixture, some: list[str]) -> Figure:
    """Weights by corpus, of `some`: recommended as bars, the optimum with its interval, without constraints, and the
    caps."""
    best, rows = search.mixtures["recommended"].weights, search.weights
    names = sorted((n for n in some if n in best), key=lambda n: -best[n])
    free = search.mixtures["unconstrained"].weights
    figure, axes = _axes(1.0 + 0.3 * len(names))
    places = np.arange(len(names))
    axes.barh(places, [best[n] for n in names], height=0.62, color=SERIES[0], alpha=0.45, label="recommended")
    for i, n in enumerate(names):
        axes.plot([rows[n].low, rows[n].high], [i, i], color=SERIES[1], linewidth=1.5)
    axes.plot([rows[n].weight for n in names], places, "o", color=SERIES[1], markersize=5, label="optimum, 95%")
    axes.plot(
        [free[n] for n in names], places, "D", color=SERIES[2], fillstyle="none", markersize=6, label="without limits"
    )
    most = max(max(best[n], rows[n].high, rows[n].weight, free[n]) for n in names)
    capped = [i for i, n in enumerate(names) if search.caps[n] < min(1, 2 * most)]  # others do not bind
    caps = [search.caps[names[i]] for i in capped]
    if capped:
        axes.plot(caps, capped, "|", color=SERIES[3], markersize=15, markeredgewidth=2, label="most, by repetition")
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("weight (share of tokens)")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def budgets_figure(search: Mixture, prior: bool) -> Figure | None:
    """The optimum's weights and its gain over UniMax, by token budget; None for fewer than two. `prior`: whether the
    optimum keeps near one, whose penalty is not in the gain, which may then be below zero."""
    points = search.budgets
    if len(points) < 2:
        return None
    best = search.mixtures["recommended"].weights
    names = sorted(best, key=lambda n: -best[n])
    shown, rest = names[:7], names[7:]
    shares = [[p.weights[n] for p in points] for n in shown]
    if rest:
        shares.append([sum(p.weights[n] for n in rest) for p in points])
    budgets = [p.token_budget for p in points]
    figure, (left, right) = _axes(3.4, columns=2)
    for i, (share, name) in enumerate(zip(shares, [*shown, "others"], strict=False)):
        left.plot(
            budgets, share, "-o" if i < 4 else "--s", color=SERIES[i % 4], markersize=3, linewidth=1.5, label=name
        )
    left.set_ylabel("weight at the optimum")
    left.yaxis.set_major_formatter("{x:.0%}")
    left.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    gains = [p.gain for p in points]
    right.plot(budgets, gains, "-o", color=SERIES[0], markersize=4)
    right.set_ylabel("objective above UniMax's" + (",\nwithout the prior" if prior else ""))
    if min(gains) < 0:
        right.axhline(0, color=MUTED, linewidth=1)
    else:
        right.set_ylim(bottom=0)
    left.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("token budget")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        only = [p.token_budget for p in points if p.only]
        if only:
            axes.axvline(only[0], color=MUTED, linestyle=":")
    return figure


def parallel_figure(tried: list[dict[str, Any]]) -> Figure | None:
    """Weights of every mixture that was trained on, a line each, the darker the lower its loss; None below five."""
    if len(tried) < 5:
        return None
    names = list(tried[0]["weights"])
    losses = np.array([t["loss"] for t in tried])
    worse = (losses - losses.min()) / (np.ptp(losses) or 1.0)
    figure = Figure(figsize=(WIDE, 3.6), layout="constrained")
    axes, by_loss = figure.subplots(1, 2, width_ratios=[max(3, len(names)), 2])
    order = np.argsort(-losses)
    for i in order:
        weights = [tried[i]["weights"].get(n, 0.0) for n in names]
        best = i == order[-1]
        style = {"color": SERIES[1] if best else SERIES[0], "alpha": 1.0 if best else 0.85 - 0.7 * worse[i]}
        axes.plot(range(len(names)), weights, linewidth=2.2 if best else 1.1, **style)
        by_loss.plot([0], [losses[i]], "_", markersize=60, markeredgewidth=2 if best else 1, **style)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylabel("weight")
    axes.grid(axis="x")
    by_loss.set_xticks([0], ["loss"])
    by_loss.set_ylabel("nats per token")
    return figure


LOSS_AXES = {"words": "cross-entropy by words, which ranks", "alignment": "pooled alignment"}


def loss_figure(points: list[dict[str, Any]]) -> Figure:
    """Held-out loss of every run against what was said of its text before: by the measure that ranks, which mixtures
    have no value of, and by pooled alignment."""
    figure, panels = _axes(3.9, columns=2)
    for panel, (key, label) in zip(panels, LOSS_AXES.items(), strict=True):
        known = [p for p in points if p[key] is not None]
        margins = [0.0 if p["change_high"] is None else p["change_high"] - p["change"] for p in known]
        panel.errorbar(
            [p[key] for p in known],
            [p["after"] for p in known],
            margins,
            fmt="o",
            color=SERIES[0],
            ecolor=MUTED,
            elinewidth=1,
            markersize=4.5,
        )
        x = [p[key] for p in known] or [0.0]
        middle = (min(x) + max(x)) / 2
        for p in known:  # towards the middle, where there is room
            right = p[key] < middle
            panel.annotate(
                p["run"],
                (p[key], p["after"]),
                (6 if right else -6, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8.5,
            )
        panel.axhline(points[0]["before"], color=MUTED, linestyle=":", linewidth=1)
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlabel(label)
    panels[0].set_ylabel("held-out loss (nats per token)")
    panels[0].invert_xaxis()  # better to the right in both
    return figure


def task_figure(points: list[dict[str, Any]]) -> Figure:
    """Every training by its loss and by its task: the continuous score and the accuracy, with 95% intervals."""
    labels = points[0]["task"].labels()
    figure, found = _axes(3.9, columns=len(labels))
    panels = np.atleast_1d(found)
    losses = [point["loss"] for point in points]
    middle = (min(losses) + max(losses)) / 2
    for panel, (what, label) in zip(panels, labels.items(), strict=True):
        found = [point["task"][what] for point in points]
        ends = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
        values = [e.value for e in found]
        panel.errorbar(losses, values, ends, fmt="o", color=SERIES[0], ecolor=MUTED, elinewidth=1, markersize=4.5)
        for point, value in zip(points, values, strict=True):
            right = point["loss"] >= middle  # towards the middle, where there is room; the axis is turned round
            panel.annotate(
                point["run"],
                (point["loss"], value),
                (6 if right else -6, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8.5,
            )
        panel.invert_xaxis()  # better to the right
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlabel("held-out loss (nats per token)")
        panel.set_ylabel(label)
    task = points[0]["task"]
    for panel, at in zip(panels, (task.score_before, task.chance), strict=False):
        if at is not None:
            panel.axhline(at, color=MUTED, linestyle=":", linewidth=1)
    return figure


def beyond_figure(found: Extrapolation) -> Figure:
    """Losses at the rungs, and dashed where nothing was measured, of the mixtures and of the best runs at the end and
    at the budget; tokens on a log axis."""
    names = [n for n in dict.fromkeys(("mixture", "uniform", found.best, found.best_at_budget)) if n in found.runs]
    figure, axes = _axes(3.8)
    for name, colour in zip(names, SERIES, strict=False):
        measured, expected = found.runs[name].measured, found.runs[name].expected
        at, losses = [p.tokens for p in measured], [p.value for p in measured]
        margins = np.array([[p.value - p.low for p in measured], [p.high - p.value for p in measured]])
        axes.errorbar(
            at, losses, margins, fmt="-o", color=colour, elinewidth=1, markersize=4, linewidth=1.5, label=name
        )
        beyond = [measured[-1], *expected]
        at = [p.tokens for p in beyond]
        axes.plot(at, [p.value for p in beyond], "--", color=colour, linewidth=1.3)
        axes.fill_between(at, [p.low for p in beyond], [p.high for p in beyond], color=colour, alpha=0.13, linewidth=0)
    axes.axvline(at[0], color=MUTED, linestyle=":", linewidth=1)
    axes.annotate(
        "extrapolated, not measured", (at[0], 1), (6, -4), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top", color=MUTED, fontsize=8.5,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def front_pairs(search: Mixture) -> list[dict[str, Any]]:
    """Each pair of targets and its points of the stored front, as indices into `pareto` from all weight on the first
    target to all on the second; [] for one target."""
    front = search.pareto
    names = list(front[0].target_weights) if front else []
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            own = [
                k for k, p in enumerate(front) if all(w == 0 for t, w in p["target_weights"].items() if t not in (a, b))
            ]
            pairs.append({"targets": [a, b], "points": sorted(own, key=lambda k: front[k].target_weights[b])})
    return pairs


def front_figure(search: Mixture, pair: dict[str, Any]) -> Figure:
    """The objective of both targets along the front of a pair; report.js marks the point of the slider."""
    (a, b), points = pair["targets"], [search.pareto[k].values for k in pair["points"]]
    figure, axes = _axes(3.2, 6.0)
    axes.plot([p[a] for p in points], [p[b] for p in points], color=SERIES[0], linewidth=1)
    for k, p in enumerate(points):
        axes.plot(p[a], p[b], "o", color=SERIES[0], markersize=6, gid=f"point-{k}")
    axes.set_xlabel(f"objective for {a}")
    axes.set_ylabel(f"objective for {b}")
    axes.locator_params(nbins=5)
    return figure


def samples_figure(samples: Samples, target: str, some: list[str] | None = None) -> Figure | None:
    """Quartiles and range of the alignment of single sequences with a target, by corpus, highest median first;
    without corpora of which no score is finite. None without any."""
    found = {
        name: s.targets[target].quantiles
        for name, s in samples.items()
        if target in s.targets and (some is None or name in some)
    }
    names = sorted((n for n in found if found[n]), key=lambda n: -found[n][2])
    if not names:
        return None
    figure, axes = _axes(0.7 + 0.3 * len(names))
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes: Sequence[dict[str, Any]] = [
        {**dict(zip(keys, found[n], strict=True)), "fliers": [], "label": n} for n in names
    ]
    line = {"color": SERIES[0]}
    axes.bxp(
        boxes,
        orientation="horizontal",
        showfliers=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": SERIES[1], "linewidth": 2},
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"alignment of a sequence with {target}")
    return figure

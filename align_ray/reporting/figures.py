"""The report's figures as plotly JSON, without colours of their own: report.js gives them the page's, light or dark."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from align_ray.reporting.results import Alignment, Mixture, Samples
from align_ray.reporting.values import Estimate

LAYOUT: dict[str, Any] = {
    "template": "simple_white",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def all_figures(results: dict[str, Any], losses: dict[str, Any], pairs: list[dict[str, Any]]) -> dict[str, go.Figure]:
    """Every figure that the results allow, by the id of its element in the page; `losses` by target as
    `page.loss_against_alignment` gives them, `pairs` as `front_pairs`."""
    alignment, search = results["alignment"], results.get("search")
    figures = {
        "matrix": matrix_figure(alignment, clustered=True),
        "matrix-given": matrix_figure(alignment, clustered=False),
    }
    if search:
        figures["weights"] = weights_figure(search)
    if search and pairs:
        figures["front"] = front_figure(search, pairs[0])
    figures |= {f"loss-{target}": loss_figure(loss["points"]) for target, loss in losses.items()}
    if "samples" in results:
        figures |= {f"samples-{target}": samples_figure(results["samples"], target) for target in alignment.targets}
    return figures


def cluster(alignment: Alignment) -> tuple[list[str], list[tuple[list[float], list[float]]]]:
    """Average linkage of all corpora on 1 - alignment: names in leaf order, and the dendrogram's lines.

    A line is four heights (1 - alignment at which two clusters join) and four places, a leaf's place being its index in
    the order. The distance of two corpora is between their batches and so never 0, not even for equal ones.
    """
    names = [*alignment.targets, *alignment.candidates]
    distance = np.array([[0.0 if a == b else 1 - alignment.matrix[a][b].value for b in names] for a in names])
    condensed = squareform((distance + distance.T) / 2).clip(0)
    tree = hierarchy.dendrogram(hierarchy.linkage(condensed, "average", optimal_ordering=True), no_plot=True)
    places = [[(x - 5) / 10 for x in line] for line in tree["icoord"]]  # scipy puts leaves at 5, 15, 25, ...
    return [names[i] for i in tree["leaves"]], list(zip(tree["dcoord"], places, strict=True))


def matrix_figure(alignment: Alignment, clustered: bool) -> go.Figure:
    """Heat map of all pairs, in the order of the clustering with its dendrogram beside, or as given."""
    names, lines = cluster(alignment) if clustered else ([*alignment.targets, *alignment.candidates], [])
    cells = [[alignment.matrix[a][b] for b in names] for a in names]
    text = [[_with_half(c) for c in row] for row in cells]
    places = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=[[c["value"] for c in row] for row in cells], x=places, y=places, text=text, texttemplate="%{text}",
            textfont={"size": 10}, showscale=False, xgap=1, ygap=1,
            customdata=[[f"{a} and {b}" for b in names] for a in names],
            hovertemplate="%{customdata}: %{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    axis: dict[str, Any] = {
        "tickvals": places,
        "ticktext": names,
        "automargin": True,
        "ticks": "",
        "showline": False,
        "ticklabelstandoff": 6,
    }
    if lines:
        x = [v for heights, _ in lines for v in (*heights, None)]
        y = [v for _, at in lines for v in (*at, None)]
        figure.add_scatter(x=x, y=y, xaxis="x2", mode="lines", line={"width": 1.5}, hoverinfo="skip", showlegend=False)
    return figure.update_layout(
        **LAYOUT,
        height=110 + 46 * len(names),
        xaxis={**axis, "domain": [0, 0.84 if lines else 1], "tickangle": -40},
        xaxis2={
            "domain": [0.86, 1],
            "rangemode": "tozero",
            "title": "1 − alignment",
            "nticks": 4,
            "visible": bool(lines),
        },
        yaxis={**axis, "range": [len(names) - 0.5, -0.5]},
    )


def weights_figure(search: Mixture) -> go.Figure:
    """The recommended weights as bars; the optimum with its interval, the unconstrained one and the caps as marks on
    them."""
    best, rows = search.mixtures["recommended"].weights, search.weights
    names = sorted(best, key=lambda n: -best[n])
    optimum = [rows[n].weight for n in names]
    error = {
        "type": "data",
        "array": [rows[n].high - w for n, w in zip(names, optimum, strict=True)],
        "arrayminus": [w - rows[n].low for n, w in zip(names, optimum, strict=True)],
        "thickness": 1.5,
    }
    free = search.mixtures["unconstrained"].weights
    caps = {n: search.caps[n] for n in names if search.caps[n] < 1}  # others do not bind
    figure = go.Figure(go.Bar(name="recommended", x=[best[n] for n in names], y=names, orientation="h", opacity=0.45))
    figure.add_scatter(name="optimum, 95%", x=optimum, y=names, error_x=error, mode="markers", marker={"size": 8})
    marker = {"size": 9, "symbol": "diamond-open", "line": {"width": 2}}
    figure.add_scatter(name="without constraints", x=[free[n] for n in names], y=names, mode="markers", marker=marker)
    marker = {"size": 20, "symbol": "line-ns-open", "line": {"width": 3}}
    figure.add_scatter(name="repetition cap", x=list(caps.values()), y=list(caps), mode="markers", marker=marker)
    return figure.update_layout(
        **LAYOUT,
        height=110 + 34 * len(names),
        xaxis={"title": "weight (share of tokens)", "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"automargin": True, "autorange": "reversed"},
        legend=LEGEND,
    )


def loss_figure(points: list[dict[str, Any]]) -> go.Figure:
    """Held-out loss of every run against the pooled alignment of what it was trained on."""
    figure = go.Figure(
        go.Scatter(
            x=[p["alignment"] for p in points], y=[p["after"] for p in points], text=[f" {p['run']} " for p in points],
            mode="markers+text", textposition=_beside(points), textfont={"size": 11}, marker={"size": 9},
            error_y={"type": "data", "array": [_margin(p) for p in points], "thickness": 1},
            hovertemplate="%{text}: alignment %{x:.4f}, loss %{y:.4f}<extra></extra>", cliponaxis=False,
        )
    )  # fmt: skip
    line = {
        "line_dash": "dot",
        "line_width": 1.5,
        "annotation_text": "before fine-tuning",
        "annotation_position": "bottom left",
    }
    figure.add_hline(y=points[0]["before"], **line)
    x, y = [p["alignment"] for p in points], [p["after"] for p in points]
    room = 0.12 * (max(x) - min(x) or 1.0)
    return figure.update_layout(
        **LAYOUT,
        height=420,
        xaxis={"title": "pooled alignment", "range": [min(x) - room, max(x) + room]},
        yaxis={"title": "held-out loss (nats per token)", "rangemode": "normal" if min(y) > 0 else "tozero"},
    )


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


def front_figure(search: Mixture, pair: dict[str, Any]) -> go.Figure:
    """The objective of both targets along the front of a pair; report.js marks the point of the slider."""
    (a, b), points = pair["targets"], [search.pareto[k].values for k in pair["points"]]
    marks = {"selected": {"marker": {"size": 16, "opacity": 1}}, "unselected": {"marker": {"opacity": 0.55}}}
    figure = go.Figure(
        go.Scatter(
            x=[p[a] for p in points], y=[p[b] for p in points], mode="lines+markers", marker={"size": 9}, **marks,
            hovertemplate="%{x:.4f} and %{y:.4f}<extra></extra>", cliponaxis=False,
        )
    )  # fmt: skip
    axes = {
        "xaxis": {"title": f"objective for {a}", "nticks": 5},
        "yaxis": {"title": f"objective for {b}", "automargin": True},
    }
    return figure.update_layout(**LAYOUT, **axes, height=320)


def samples_figure(samples: Samples, target: str) -> go.Figure:
    """Quartiles and range of the alignment of single sequences with a target, by corpus, highest median first;
    without corpora of which no score is finite."""
    found = {name: s.targets[target].quantiles for name, s in samples.items() if target in s.targets}
    names = sorted((n for n in found if found[n]), key=lambda n: -found[n][2])
    low, q1, median, q3, high = np.reshape([found[n] for n in names], (-1, 5)).T.tolist()
    box = go.Box(q1=q1, median=median, q3=q3, lowerfence=low, upperfence=high, y=names, orientation="h")
    figure = go.Figure(box if names else None)
    return figure.update_layout(
        **LAYOUT,
        height=90 + 32 * len(names),
        xaxis={"title": f"alignment of a sequence with {target}"},
        yaxis={"automargin": True, "autorange": "reversed"},
    )


def _with_half(estimate: Estimate) -> str:
    half = estimate["high"] - estimate["value"]
    # two batches give no interval
    return f"{estimate['value']:.3f}" + (f"<br>±{half:.3f}" if np.isfinite(half) else "")


def _margin(point: dict[str, Any]) -> float:
    """Half the interval of a change of loss; 0 where there is none."""
    return 0.0 if point["change_high"] is None else point["change_high"] - point["change"]


def _beside(points: list[dict[str, Any]]) -> list[str]:
    """Where a point's name goes: beside it, clear of its error bar, and towards the middle, where there is room."""
    x = [p["alignment"] for p in points]
    middle = (min(x) + max(x)) / 2
    return ["middle right" if v < middle else "middle left" for v in x]

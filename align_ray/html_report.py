"""The report: one self-contained HTML page with the answer first, then what it rests on."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs
from scipy import stats

from align_ray.config import Config

LAYOUT: dict[str, Any] = {
    "template": "simple_white",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#888"},
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    "colorway": ["#3b7dd8", "#e08a3c", "#4caf7d", "#b05cc8"],
}


def correlation(x: list[float], y: list[float]) -> dict[str, float] | None:
    """Pearson r with its 95% interval (Fisher z); None below four points or without spread."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = stats.pearsonr(x, y)
    interval = result.confidence_interval()
    return {"r": float(result.statistic), "low": float(interval.low), "high": float(interval.high), "points": len(x)}


def loss_against_alignment(results: dict[str, Any], target: str) -> dict[str, Any]:
    """The points (pooled alignment, loss on held-out text) of all runs, and r over the candidates; a mixture's alignment is
    its mean over the targets."""
    search = results["search"]
    runs = results["finetune"]["runs"]
    x = {row["candidate"]: row["pooled"]["value"] for row in results["alignment"]["ranking"][target]}
    x["uniform"] = search["mixtures"]["uniform"]["alignment"]["value"]
    x["mixture"] = search["mixtures"][search["chosen"]]["alignment"]["value"]
    points = [{"run": name, "alignment": x[name], **run["targets"][target]} for name, run in runs.items()]
    alone = [p for p in points if p["run"] in search["single"]]
    return {"points": points, "r": correlation([p["alignment"] for p in alone], [p["after"] for p in alone])}


def render_report(config: Config, results: dict[str, Any]) -> str:
    """The page as a string. `results` maps corpora, alignment, search, finetune, cost to their stored JSON; the last three
    may be missing."""
    figures = {"matrix": _matrix(results["alignment"])}
    losses = {}
    if "search" in results:
        figures["weights"] = _weights(results["search"])
    if "finetune" in results and "search" in results:
        for target in results["alignment"]["targets"]:
            losses[target] = loss_against_alignment(results, target)
            figures[f"loss-{target}"] = _loss(losses[target])
    environment = Environment(loader=PackageLoader("align_ray", "."), autoescape=True)
    environment.filters["pct"] = lambda v: f"{100 * v:.1f}%"
    return environment.get_template("report.html.j2").render(
        config=config,
        yaml=config.to_yaml(),
        results=results,
        losses=losses,
        # a "<" in a name must not end the script element
        figures={name: figure.to_json().replace("<", "\\u003c") for name, figure in figures.items()},
        plotlyjs=get_plotlyjs(),
    )


def _matrix(alignment: dict[str, Any]) -> go.Figure:
    names = [*alignment["targets"], *alignment["candidates"]]
    cells = [[alignment["matrix"][a][b] for b in names] for a in names]
    text = [[f"{c['value']:.3f}<br>±{c['high'] - c['value']:.3f}" for c in row] for row in cells]
    figure = go.Figure(
        go.Heatmap(
            z=[[c["value"] for c in row] for row in cells], x=names, y=names, text=text, texttemplate="%{text}", textfont={"size": 10},
            colorscale="Blues", colorbar={"title": "align"}, hovertemplate="%{y} and %{x}: %{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    return figure.update_layout(**LAYOUT, height=90 + 48 * len(names), yaxis={"autorange": "reversed", "automargin": True}, xaxis={"automargin": True})


def _weights(search: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    rows = search["weights"]
    for key, label in {"recommended": "recommended", "closed_form": "optimum", "unconstrained": "without constraints"}.items():
        weights = search["mixtures"][key]["weights"]
        error = {
            "type": "data",
            "array": [rows[n]["high"] - w for n, w in weights.items()],
            "arrayminus": [w - rows[n]["low"] for n, w in weights.items()],
        }
        figure.add_bar(name=label, x=list(weights), y=list(weights.values()), error_y=error if key == "closed_form" else None)
    caps = {name: cap for name, cap in search["caps"].items() if cap < 1}  # others do not bind
    figure.add_scatter(name="cap", x=list(caps), y=list(caps.values()), mode="markers", marker={"symbol": "line-ew-open", "size": 22, "color": "#c33"})
    return figure.update_layout(**LAYOUT, height=340, barmode="group", yaxis={"title": "weight (share of tokens)"}, xaxis={"automargin": True}, legend={"orientation": "h", "y": 1.1})


def _loss(loss: dict[str, Any]) -> go.Figure:
    points = loss["points"]
    figure = go.Figure(
        go.Scatter(
            x=[p["alignment"] for p in points], y=[p["after"] for p in points], text=[p["run"] for p in points],
            mode="markers+text", textposition="top center", marker={"size": 10},
            error_y={"type": "data", "array": [1.96 * (p["change_error"] or 0) for p in points], "thickness": 1},
            hovertemplate="%{text}: alignment %{x:.4f}, loss %{y:.4f}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(y=points[0]["before"], line_dash="dot", annotation_text="before fine-tuning", annotation_position="bottom left")
    return figure.update_layout(**LAYOUT, height=420, xaxis={"title": "pooled alignment"}, yaxis={"title": "held-out loss (nats per token)"})

"""The predictive study as Markdown tables and SVG plots, from its stored JSON."""

import io
from typing import Any

import numpy as np

from align_ray.reporting.results import Prediction
from align_ray.reporting.values import Interval

LEADING = 4
"""Measures of a family that a figure and the terminal show."""
PAPER = "trunk scaled-cosine pairwise"
"""The paper's coefficient, over the trunk's rows."""
COLOURS = {
    "alignment": "#3b7dd8",
    "gradient": "#b05cc8",
    "combined": "#c2410c",
    "baseline": "#e08a3c",
    "model": "#999999",
    "training": "#4caf7d",
}
READINGS = {
    "all": "all candidates",
    "others": "own corpus left out",
    "design": "design targets",
    "heldout": "held-out targets",
}


def study_files(result: Prediction) -> dict[str, bytes]:
    """The files of a study by name: study.md, and two plots for every number of tokens."""
    files = {"study.md": study_markdown(result).encode()}
    for tokens in result.settings:
        files[f"measures-{tokens}.svg"] = _svg(measures_plot(result, tokens))
        files[f"losses-{tokens}.svg"] = _svg(losses_plot(result, tokens))
    return files


def versus_lines(result: Prediction, tokens: str) -> list[str]:
    """One sentence on the best alignment, gradient or combined measure against the best cheap baseline."""
    setting = result.settings[tokens]
    reading = "heldout" if "heldout" in setting.results else "others"
    found, against = setting.results["design" if reading == "heldout" else reading], setting.versus[reading]
    ours = [n for n in found if _family(result, n) in ("alignment", "gradient", "combined")]
    if not ours:
        return []
    best = max(ours, key=lambda n: found[n].spearman.value)
    gap, own = against.difference[best], setting.results[reading][best].spearman
    how = "chosen on the design targets" if reading == "heldout" else "chosen on these very targets"
    return [
        f"The best of ours, {how}: **{best}**, rank correlation {own.value:.2f} ({READINGS[reading]}); less the best "
        "cheap "
        f"baseline there ({against.baseline}): {gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}], p = {gap.p:.2g}.",
        "",
    ]


def study_markdown(result: Prediction) -> str:
    """One section for every number of tokens: what was trained, then all measures, best first."""
    lines = [f"{len(result.candidates)} candidates, {len(result.targets)} targets.", ""]
    for tokens, setting in result.settings.items():
        gain = np.array(setting.before) - np.array(setting.loss).min(0)
        lines += [
            f"## {tokens} tokens",
            "",
            f"Learning rate {setting.learning_rate:g}. The best candidate lowers a target's "
            f"loss by {gain.mean():.3f} nats per token on average; standard error of a mean loss over seeds "
            f"{setting.seed_error:.4f}. One training: {setting.seconds:.1f} s. Rank correlation of one seed's losses "
            "with "
            f"the others': {setting.reliability:.3f}.",
            "",
            *versus_lines(result, tokens),
            *measure_table(result, tokens),
            "",
        ]
    return "\n".join(lines)


def measure_table(result: Prediction, tokens: str) -> list[str]:
    """Lines of a Markdown table of all measures, by rank correlation without the own corpus, best first.

    The first columns are within-target rank correlations; design and held-out targets, Pearson, regret and the
    correlation after row and column means are removed are without the own corpus as well; the pooled r² is over all
    pairs.
    """
    setting = result.settings[tokens]
    results, versus = setting.results, setting.versus
    readings = [r for r in READINGS if r in results]
    last = "heldout" if "heldout" in results else "others"
    order = sorted(results["others"], key=lambda n: -results["others"][n].spearman.value)
    head = [*(READINGS[r] for r in readings), "Pearson", "means removed", "regret@1", "pooled r²"]
    against = f"less {versus[last].baseline} ({READINGS[last]})"
    lines = [f"| measure | {' | '.join(head)} | {against} | s per corpus |", "|---" * (len(head) + 3) + "|"]
    for name in order:
        q = results["others"][name]
        gap = versus[last].difference.get(name)
        seconds = result.measures[name].seconds if name in result.measures else None
        cells = [
            *(_cell(results[r][name].spearman) for r in readings),
            _cell(q.pearson),
            _cell(q.centred),
            f"{q.regret.value:.3f}",
            f"{results['all'][name].pooled_r2:.2f}",
            f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]" if gap else "",
            "" if seconds is None or np.isnan(seconds) else f"{seconds:.2g}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def leading_measures(result: Prediction, tokens: str) -> list[str]:
    """The LEADING best of every family without the own corpus, every baseline, and the paper's coefficient."""
    results = result.settings[tokens].results["others"]
    families: dict[str, list[str]] = {}
    for name in sorted(results, key=lambda n: -results[n].spearman.value):
        families.setdefault(_family(result, name), []).append(name)
    names = [n for family, of in families.items() for n in (of if family == "baseline" else of[:LEADING])]
    return [*names, *([PAPER] if PAPER in results and PAPER not in names else [])]


def measures_plot(result: Prediction, tokens: str) -> Any:
    """Rank correlations of the leading measures with their intervals, a matplotlib figure."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    results = result.settings[tokens].results["others"]
    names = sorted(leading_measures(result, tokens), key=lambda n: results[n].spearman.value)
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.3 * len(names)), layout="constrained")
    for i, name in enumerate(names):
        q, colour = results[name].spearman, COLOURS[_family(result, name)]
        axes.plot([q.low, q.high], [i, i], color=colour, linewidth=2)
        axes.plot(q.value, i, "o", color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="#ccc", linewidth=1)
    figure.supxlabel(
        "rank correlation with the loss within a target, its own corpus left out (mean over targets, 95%)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    for family in dict.fromkeys(_family(result, n) for n in names):
        axes.plot([], [], "o", color=COLOURS[family], label=family)
    axes.legend(frameon=False, loc="lower right")
    return figure


def losses_plot(result: Prediction, tokens: str) -> Any:
    """Loss against the paper's coefficient, one panel a target, own corpora marked; a matplotlib figure."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    setting, targets = result.settings[tokens], result.targets
    scores, losses = np.array(result.measures[PAPER].scores), np.array(setting.loss)
    columns = min(4, len(targets))
    rows = -(-len(targets) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(2.6 * columns, 2.3 * rows), layout="constrained", squeeze=False
    )
    for i, panel in enumerate(panels.flat):
        panel.set_visible(i < len(targets))
        if i >= len(targets):
            continue
        own = np.array([c in result.related.get(targets[i], []) for c in result.candidates])
        panel.plot(scores[~own, i], losses[~own, i], "o", color=COLOURS["alignment"], markersize=4)
        panel.plot(scores[own, i], losses[own, i], "D", color=COLOURS["baseline"], markersize=5)
        panel.axhline(setting.before[i], color="#999", linewidth=0.8, linestyle=":")
        panel.set_title(targets[i], fontsize=9)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(PAPER, fontsize=9)
    figure.supylabel("loss (nats per token)", fontsize=9)
    return figure


def _family(result: Prediction, name: str) -> str:
    return result.measures[name].family if name in result.measures else "training"


def _cell(q: Interval) -> str:
    return f"{q.value:.2f} [{q.low:.2f}, {q.high:.2f}]"


def _svg(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    with pyplot.rc_context({"svg.hashsalt": "align-ray"}):  # the same study gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue()

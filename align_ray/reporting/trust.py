"""Which number should I trust? Places of the candidates by every measure of this study, and how far each measure's
order is that of the measured losses."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from align_ray.reporting.results import Alignment

GOOD_FOR = {
    "loss": (
        "measured loss",
        "The loss on held-out text of the target after a short training on the candidate: the thing itself.",
        "It holds for this base and so many tokens. A longer training, or one that repeats text, may rank otherwise.",
    ),
    "choice": (
        "choice by training",
        "What a training is expected to end in; those without a chance stop early. For many candidates.",
        "From one seed; before the end too sure of itself where the base knows language.",
    ),
    "words": (
        "words",
        "How well the candidate's token counts predict the target's. Costs nothing and hardly depends on chance.",
        "It finds what is off the subject. It cannot see quality, nor what the base knows already.",
    ),
    "alignment": (
        "alignment",
        "The paper's coefficient, from the probe's gradients. Shows which corpora are alike.",
        "It depends on the probe, and in the project's study it predicted losses no better than words did.",
    ),
}
"""By measure: its name, what it is good for, and what it is not."""
FEWEST = 3
"""Candidates below which an order says nothing."""


def places(results: Mapping[str, Any], target: str) -> dict[str, dict[str, float]]:
    """By measure and candidate the value, lower is better; only measures that this study has, the best known first."""
    alignment: Alignment = results["alignment"]
    found: dict[str, dict[str, float]] = {}
    if "finetune" in results:
        runs = results["finetune"].runs
        found["loss"] = {n: runs[n].targets[target].after for n in alignment.candidates if n in runs}
    if "choice" in results:
        found["choice"] = {n: row.value for n, row in results["choice"].targets[target].candidates.items()}
    found["words"] = {row.candidate: row.value for row in alignment.predicted.ranking[target]}
    found["alignment"] = {row.candidate: -row.value for row in alignment.ranking[target]}
    return {measure: values for measure, values in found.items() if len(values) >= (FEWEST if measure == "loss" else 1)}


def trust(results: Mapping[str, Any], target: str) -> dict[str, Any]:
    """What the page's panel shows of a target.

    `judge`: the measure that the others are compared with, `loss`, else `choice`, else None. `rows`: by candidate,
    best by the judge (else by words) first, its place by every measure, 1 is best. `measures`: by measure Spearman's
    correlation with the judge over the candidates that both have, None below four, with a 95% interval (Bonett and
    Wright's standard error; none where the orders are the same); its `first` candidate, and that one's loss above the
    lowest (`regret`). `disagree`: candidates whose places differ by two or more, a sentence each.
    """
    known = places(results, target)
    judge = next((m for m in ("loss", "choice") if m in known), None)
    order = known[judge or "words"]
    names = [*sorted(order, key=lambda n: order[n]), *(n for n in known["alignment"] if n not in order)]
    ranks = {m: {n: i for i, n in enumerate(sorted(v, key=lambda n: v[n]), start=1)} for m, v in known.items()}
    rows = [{"candidate": n, **{m: ranks[m].get(n) for m in known}} for n in names]
    measures = {m: _compared(values, known[judge] if judge else {}) for m, values in known.items() if m != judge}
    return {"judge": judge, "rows": rows, "measures": measures, "disagree": _disagreements(rows, judge)}


def _compared(values: dict[str, float], judged: dict[str, float]) -> dict[str, Any]:
    both = [n for n in values if n in judged]
    first = min(values, key=lambda n: values[n])
    result: dict[str, Any] = {"first": first, "candidates": len(both), "regret": None, "spearman": None}
    if first in judged:
        result["regret"] = judged[first] - min(judged.values())
    if len(both) < FEWEST + 1 or not np.ptp([judged[n] for n in both]) or not np.ptp([values[n] for n in both]):
        return result
    r = float(stats.spearmanr([values[n] for n in both], [judged[n] for n in both]).statistic)
    if abs(r) > 1 - 1e-12:  # no interval comes of this error where all agree
        return {**result, "spearman": {"value": r, "low": None, "high": None}}
    reach = float(stats.norm.ppf(0.975)) * math.sqrt((1 + r**2 / 2) / (len(both) - 3))
    low, high = math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)
    return {**result, "spearman": {"value": r, "low": low, "high": high}}


def _disagreements(rows: list[dict[str, Any]], judge: str | None) -> list[str]:
    """Places are given in the measures' own words; without a judge words and alignment are compared."""
    one = judge or "words"
    others = [m for m in ("choice", "words", "alignment") if m != one]
    lines = []
    for row in rows:
        far = [m for m in others if row.get(m) and row.get(one) and abs(row[m] - row[one]) >= 2]
        if far:
            beside = " and ".join(f"place {row[m]} by {GOOD_FOR[m][0]}" for m in far)
            lines.append(f"{row['candidate']}: place {row[one]} by {GOOD_FOR[one][0]}, {beside}")
    return lines

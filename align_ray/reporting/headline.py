"""The one sentence that a study ends in: what to train on, what that was measured to give, and whether it held."""

import math
from collections.abc import Mapping
from typing import Any

from align_ray.reporting.trained import verdict_of
from align_ray.reporting.values import Verdict, Weights

SHOWN = 4
"""Corpora that are named."""


def headline(results: Mapping[str, Any], stopped: str = "") -> str | None:
    """Of a study's results by the name of their file; None where there is no mixture. `stopped`: what ended the run
    before its trainings. The numbers are the verdict's."""
    if "search" not in results:
        return None
    verdict = verdict_of(results, stopped)
    shares = shares_of(results["search"].mixtures["recommended"].weights)
    begin = {"confirmed": "Train on", "not confirmed": "Do not train on", "not tested": "Found, untested:"}
    measured = _measured(verdict, _bytes_per_token(results))
    return f"{begin.get(verdict.state, 'Found:')} {shares}{measured}: {verdict.state}."


def shares_of(weights: Weights) -> str:
    """The largest weights in words, "59% mathlib, 31% openlogic and 10% of 3 others"."""
    ordered = sorted(((w, name) for name, w in weights.items() if w >= 0.005), reverse=True)
    if not ordered:
        return f"{len(weights)} corpora, each below half a percent"
    kept = ordered[: SHOWN if len(ordered) > SHOWN + 1 else len(ordered)]
    parts = [f"{w:.0%} {name}" for w, name in kept]
    if rest := ordered[len(kept) :]:
        parts.append(f"{sum(w for w, _ in rest):.0%} of {len(rest)} others")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _measured(verdict: Verdict, bytes_per_token: float | None) -> str:
    against = verdict.against.get("uniform")
    if against is None:
        return ""
    better = [
        n for n, a in verdict.against.items() if n != "uniform" and verdict.state == "not confirmed" and a.value < 0
    ]
    beaten = min(better, key=lambda n: verdict.against[n].value, default=None)
    by_task, number = verdict.by == "task", f"{abs(against.value):.4f} nats per"
    size, direction = f"{number} token", "lower"
    if by_task:
        beside = f" (accuracy {verdict.accuracy.value:+.3f})" if verdict.accuracy else ""
        size = f"{number} byte of the task's score{beside}"
        if "nats" not in verdict.measure:  # a task of lm-eval whose metric alone is known
            size = f"{abs(against.value):.4f} of the task's metric"
        direction = "higher"
    elif bytes_per_token:
        size += f" ({abs(against.value) / bytes_per_token / math.log(2):.4f} bits per byte)"
    side = "above" if (against.value > 0) == by_task else "below"  # what is compared by a task is minus the score
    said = f"; measured {size} {side} uniform, P({direction}) = {1 - against.p_lower:.3f}"
    return f"{said}, and '{beaten}' is {direction}" if beaten and f"'{beaten}'" in verdict.why else said


def _bytes_per_token(results: Mapping[str, Any]) -> float | None:
    """Of the one target; None where there are several, whose tokens are not of one size."""
    found = getattr(results.get("finetune"), "bytes_per_token", {})
    return next(iter(found.values())) if len(found) == 1 else None

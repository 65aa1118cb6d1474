"""Did it hold? The recommended mixture's trainings against the uniform mixture's and other feasible ones'.

One word and the sentence why. A verdict is given over at least SEEDS trainings of each mixture and the held-out rows,
paired; where the base learns nothing from any candidate, its trainings say nothing of the mixture and there is none.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from scipy import stats

from align_ray.alignment.intervals import combined_mean
from align_ray.config import Corpus, Search

SEEDS = 3
"""Fewest trainings of a mixture."""
LEVEL = 0.95
"""Probability from which on a difference stands."""

State = Literal["confirmed", "not confirmed", "undecided", "no difference", "not tested"]
ByTarget = Mapping[str, np.ndarray]
"""Losses or their differences by target, float64 [seeds, held-out rows]."""


@dataclasses.dataclass(frozen=True)
class Against:
    """Another mixture's loss less the recommended one's (above 0 the other is worse), nats per token, mean over targets
    by their weight: with its 95% interval, and the probability that the other's is lower."""

    value: float
    low: float
    high: float
    p_lower: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`state` and the sentence `why`; `against`: by mixture that was trained, what stands against it."""

    state: State
    why: str
    against: dict[str, Against]
    seeds_needed: int | None = None
    """Of an undecided one: about how many seeds would settle it; None where only more held-out text would."""


def verdict(
    mixture: ByTarget,
    others: Mapping[str, ByTarget],
    helped: Mapping[str, ByTarget],
    share: np.ndarray,
    delta: float,
    known: Sequence[str] = (),
) -> Verdict:
    """The verdict of a mixture.

    `mixture`: its losses; `others`: those of feasible mixtures, `uniform` among them, paired with them by seed and row;
    `helped`: by training what it changed of every target's loss, which shows whether the base can learn; `share`: the
    targets' weights, float64 [M], sum 1; `delta`: a difference of nats per token that makes none; `known`: corpora that
    the base was made from, by its model card.
    """
    mixture = {t: losses for (t, losses), s in zip(mixture.items(), share, strict=True) if s > 0}
    share = share[share > 0]
    seeds = len(next(iter(mixture.values())))
    if seeds < SEEDS:
        few = f"finetune.seeds is {seeds}, and a verdict needs {SEEDS} trainings of each mixture"
        return Verdict("not tested", few, {})
    if min(losses.shape[1] for losses in mixture.values()) < 2:
        return Verdict("not tested", "a target has a single held-out row; raise finetune.eval_tokens", {})
    if known:
        which = f"the base was made from {', '.join(known)} (its model card says so)"
        return Verdict("not tested", f"{which}, so that training on it again says nothing about new text", {})
    measured = [
        *([mixture[t] for t in mixture]),
        *(o[t] for o in (*others.values(), *helped.values()) for t in mixture),
    ]
    if not all(np.isfinite(losses).all() for losses in measured):
        return Verdict("not tested", "a training diverged: its loss is no number; lower finetune.learning_rate", {})
    if not _learns(helped, mixture):
        return Verdict(
            "not tested",
            "no training lowers the loss of a target for certain: the base may have seen such text, or the learning "
            "rate does not suit it, so these trainings say nothing about mixtures",
            {},
        )
    differences = {name: [losses[t] - mixture[t] for t in mixture] for name, losses in others.items()}
    against = {name: _against(values, share) for name, values in differences.items()}
    uniform = against["uniform"]
    if all(np.array_equal(mixture[t], others["uniform"][t]) for t in mixture):
        return Verdict("no difference", "the recommended mixture is the uniform one", against)
    over = f"{seeds} seeds" if len(share) == 1 else f"{seeds} seeds, mean over {len(share)} targets"
    beside = _said("uniform", uniform, over)
    limit = 1 - (1 - LEVEL) / max(1, len(others) - 1)  # of several, one would be better by chance (Bonferroni)
    better = [n for n, a in against.items() if n != "uniform" and a.p_lower >= limit and a.value < -delta]
    if better:
        best = min(better, key=lambda name: against[name].value)
        return Verdict("not confirmed", _said(best, against[best], over), against)
    if -delta <= uniform.low and uniform.high <= delta:
        return Verdict("no difference", f"{beside}: within {delta:g} nats either way", against)
    if uniform.p_lower >= LEVEL:
        return Verdict("not confirmed", beside, against)
    if uniform.p_lower <= 1 - LEVEL:
        return Verdict("confirmed", beside, against)
    needed = seeds_to_settle(differences["uniform"], share, delta)
    text = "more held-out text (finetune.eval_tokens) is needed to settle it"
    remedy = f"about {needed} seeds would settle it" if needed else text
    return Verdict("undecided", f"{beside}; {remedy}, if the difference is what it seems", against, needed)


def known_to(folder: Path, corpora: Sequence[Corpus]) -> list[str]:
    """Names of the corpora that the model card in a folder lists among its data sets (`datasets` of its head)."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return []
    try:
        listed = ModelCard.load(card).data.get("datasets") or []
    except (ValueError, yaml.YAMLError):  # a head that is no YAML, or not of a model
        return []
    names = {str(name).lower() for name in ([listed] if isinstance(listed, str) else listed)}
    return [c.name for c in corpora if any(_hub_name(source) in names for source in c.sources)]


def _hub_name(source: str) -> str:
    parts = source.removeprefix("hf://").removeprefix("datasets/").partition("@")[0].split("/")
    return "/".join(parts[:2]).lower() if source.startswith("hf://") else ""


def keeps_to(search: Search, caps: Mapping[str, float], weights: Mapping[str, float]) -> bool:
    """Whether a mixture is one that could be recommended: within the repetition `caps`, the configured weights and the
    number of corpora."""
    if search.max_corpora is not None and sum(w > 1e-6 for w in weights.values()) > search.max_corpora:
        return False
    for name, cap in caps.items():  # all candidates: what a mixture does not name it gives no weight
        bound, w = search.weights.get(name), weights.get(name, 0.0)
        if not (bound.min if bound else 0.0) - 1e-6 <= w <= min(cap, bound.max if bound else 1.0) + 1e-6:
            return False
    return True


def _learns(helped: Mapping[str, ByTarget], targets: Iterable[str]) -> bool:
    """Whether a training lowers the loss of a target that counts, by two standard errors after adjusting for their
    number."""
    changes = [by_target[t] for t in targets for by_target in helped.values()]
    limit = 1 - 0.025 / max(1, len(changes))
    return any(combined_mean([change], np.ones(1))[1] >= limit for change in changes)


def _against(differences: list[np.ndarray], share: np.ndarray) -> Against:
    estimate, p_lower = combined_mean(differences, share)
    return Against(estimate.value, estimate.low, estimate.high, p_lower)


def _said(name: str, against: Against, over: str) -> str:
    return (
        f"the loss of '{name}' less the mixture's is {against.value:+.4f} nats per token [{against.low:+.4f}, "
        f"{against.high:+.4f}]; P('{name}' is lower) {_probability(against.p_lower)}; {over}"
    )


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else "> 0.999" if p > 0.999 else f"= {p:.3f}"


def seeds_to_settle(differences: list[np.ndarray], share: np.ndarray, delta: float, most: int = 1000) -> int | None:
    """The fewest seeds with which the mean difference seen would stand at LEVEL, or its interval lie within `delta`;
    None where it would not with `most`: what the held-out rows leave uncertain stays. `differences`: by target, float64
    [seeds, rows]."""
    by_seed = sum(s * d.mean(1) for s, d in zip(share, differences, strict=True))
    mean, spread = abs(by_seed.mean()), by_seed.var(ddof=1)
    rows = sum(s**2 * d.mean(0).var(ddof=1) / d.shape[1] for s, d in zip(share, differences, strict=True))
    for n in range(len(by_seed) + 1, most + 1):
        error = math.sqrt(spread / n + rows)
        if mean > stats.t.ppf(LEVEL, n - 1) * error or mean + stats.t.ppf(0.5 + LEVEL / 2, n - 1) * error < delta:
            return n
    return None

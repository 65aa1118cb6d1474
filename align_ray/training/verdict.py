"""Did it hold? The recommended mixture's trainings against the uniform mixture's and other feasible ones'.

One word and the sentence why. A verdict is given over at least SEEDS trainings of each mixture and the held-out rows,
paired; where the base learns nothing from any candidate, its trainings say nothing of the mixture and there is none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from scipy import stats

from align_ray.alignment.intervals import combined_mean
from align_ray.config import Config, Search
from align_ray.reporting.values import Against, Verdict

SEEDS = 3
"""Fewest trainings of a mixture."""
LEVEL = 0.95
"""Probability from which on a difference stands."""

ByTarget = Mapping[str, np.ndarray]
"""Losses or their differences by target, float64 [seeds, held-out rows]."""


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
    targets' weights, float64 [M], sum 1; `delta`: a difference of nats per token that makes none; `known`: candidates
    that the base was made from (`made_from`).
    """
    mixture = {t: losses for (t, losses), s in zip(mixture.items(), share, strict=True) if s > 0}
    share = share[share > 0]
    seeds = len(next(iter(mixture.values())))
    if seeds < SEEDS:
        few = f"finetune.seeds is {seeds}, and a verdict needs {SEEDS} trainings of each mixture"
        return Verdict(state="not tested", why=few)
    if min(losses.shape[1] for losses in mixture.values()) < 2:
        return Verdict(state="not tested", why="a target has a single held-out row; raise finetune.eval_tokens")
    if known:
        which = f"the base was made from {', '.join(known)} (its model card says so)"
        return Verdict(state="not tested", why=f"{which}, so that training on it again says nothing about new text")
    measured = (mixture, *others.values(), *helped.values())
    if not all(np.isfinite(losses[t]).all() for losses in measured for t in mixture):
        diverged = "a training diverged: its loss is no number; lower finetune.learning_rate"
        return Verdict(state="not tested", why=diverged)
    if not _learns(helped, mixture):
        nothing = (
            "no training lowers the loss of a target for certain: the base may have seen such text, or the learning "
            "rate does not suit it, so these trainings say nothing about mixtures"
        )
        return Verdict(state="not tested", why=nothing)
    differences = {name: [losses[t] - mixture[t] for t in mixture] for name, losses in others.items()}
    against = {name: _against(values, share) for name, values in differences.items()}
    uniform = against["uniform"]
    if all(np.array_equal(mixture[t], others["uniform"][t]) for t in mixture):
        return Verdict(state="no difference", why="the recommended mixture is the uniform one", against=against)
    over = f"{seeds} seeds" if len(share) == 1 else f"{seeds} seeds, mean over {len(share)} targets"
    beside = _said("uniform", uniform, over)
    limit = 1 - (1 - LEVEL) / max(1, len(others) - 1)  # of several, one would be better by chance (Bonferroni)
    better = [n for n, a in against.items() if n != "uniform" and a.p_lower >= limit and a.value < -delta]
    if better:
        best = min(better, key=lambda name: against[name].value)
        return Verdict(state="not confirmed", why=_said(best, against[best], over), against=against)
    if -delta <= uniform.low and uniform.high <= delta:
        return Verdict(state="no difference", why=f"{beside}: within {delta:g} nats either way", against=against)
    if uniform.p_lower >= LEVEL:
        return Verdict(state="not confirmed", why=beside, against=against)
    if uniform.p_lower <= 1 - LEVEL:
        return Verdict(state="confirmed", why=beside, against=against)
    needed = seeds_to_settle(differences["uniform"], share, delta)
    text = "more held-out text (finetune.eval_tokens) is needed to settle it"
    remedy = f"about {needed} seeds would settle it" if needed else text
    why = f"{beside}; {remedy}, if the difference is what it seems"
    return Verdict(state="undecided", why=why, against=against, seeds_needed=needed)


def made_from(folder: Path, config: Config) -> list[str]:
    """Names of the candidates that the card of the model in a folder lists among its data sets (`datasets` of its
    head); none where it is trained from random weights."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if config.finetune.scratch is not None or not card.is_file():
        return []
    try:
        listed = ModelCard.load(card).data.get("datasets") or []
    except (ValueError, yaml.YAMLError):  # a head that is no YAML, or not of a model
        return []
    names = {str(name).lower() for name in ([listed] if isinstance(listed, str) else listed)}
    return [c.name for c in config.candidates if any(_hub_name(source) in names for source in c.sources)]


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
    return Against(value=estimate.value, low=estimate.low, high=estimate.high, p_lower=p_lower)


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

"""Did it hold? The recommended mixture's trainings against the uniform mixture's and other feasible ones'.

One word and the sentence why. A verdict is given over at least SEEDS trainings of each mixture and the held-out rows,
paired; where the base learns nothing from any candidate, its trainings say nothing of the mixture and there is none.

Where targets have a task it is by the task, over its items in the place of rows: loss tells wrongly in many cases which
model does a task better. It is by the continuous score, since an accuracy counts items of 0 and 1, whose variance hides
what some hundred items could tell; the accuracy is said beside it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import yaml
from scipy import stats

from align_ray.alignment import intervals
from align_ray.alignment.intervals import combined_mean
from align_ray.config import Config, Search
from align_ray.corpora.rows import report_half
from align_ray.reporting.values import Against, Estimate, Verdict
from align_ray.training.tasks import of_items

if TYPE_CHECKING:
    from align_ray.training.jobs import Trained

SEEDS = 3
"""Fewest trainings of a mixture."""
LEVEL = 0.95
"""Probability from which on a difference stands."""

ByTarget = Mapping[str, np.ndarray]
"""Losses or their differences by target, float64 [seeds, held-out rows]."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a verdict is by, and its words. Lower is better: of a task it is minus the score."""

    by: Literal["loss", "task"]
    measure: str
    difference: str
    """What is said of the difference from another mixture, `{name}`."""
    unit: str
    better: str
    learns: str
    more: str
    """What would settle it where seeds would not."""


LOSS = Measured(
    by="loss",
    measure="held-out loss, nats per token",
    difference="the loss of '{name}' less the mixture's",
    unit="nats per token",
    better="lower",
    learns="lowers the loss of a target",
    more="more held-out text (finetune.eval_tokens) is needed to settle it",
)
TASK = Measured(
    by="task",
    measure="minus the task's score, nats per byte",
    difference="the task's score after the mixture less that after '{name}'",
    unit="nats per byte",
    better="higher",
    learns="raises the score of a target's task",
    more="more items (task.items, or more records) are needed to settle it",
)
METRIC = dataclasses.replace(
    TASK,
    measure="minus the task's metric",
    difference="the task's metric after the mixture less that after '{name}'",
    unit="of the metric",
    learns="raises the metric of a target's task",
)
"""Of tasks of lm-eval that have no score of their own; never averaged with scores in nats."""


def judged(
    mixture: "Sequence[Trained]",
    others: "Mapping[str, Sequence[Trained]]",
    runs: "Mapping[str, Sequence[Trained]]",
    share: Mapping[str, float],
    delta: float,
    known: Sequence[str] = (),
) -> Verdict:
    """The verdict of a mixture from its trainings, those of `others` and of all `runs`, one a seed each: by the tasks
    of the targets that count, where one has any, else by the loss. `share`: the targets' weights; further arguments:
    see `verdict`."""

    def by(measured: Measured, weights: Mapping[str, float]) -> Verdict:
        read = partial(_minus_scores if measured.by == "task" else _losses, targets=list(weights))
        after = {name: read(of, when="after") for name, of in others.items()}
        changes = {n: _less(read(of, when="after"), read(of, when="before")) for n, of in runs.items()}
        parts = np.array(list(weights.values()))
        return verdict(read(mixture, when="after"), after, changes, parts / parts.sum(), delta, known, measured)

    by_loss = by(LOSS, share)
    counted = {t: s for t, s in share.items() if s > 0}
    every = {t: s for t, s in counted.items() if t in mixture[0].tasks}
    whole = [t for t in counted if t in mixture[0].wholes]
    if not every:
        of = f"by the loss, since the metric of the task of {', '.join(whole)} is not one of single items"
        return by_loss.model_copy(update={"why": f"{by_loss.why}; {of}"}) if whole else by_loss
    in_nats = {t: s for t, s in every.items() if mixture[0].tasks[t].unit}
    tasks = in_nats or every
    found = by(TASK if in_nats else METRIC, tasks)
    ours, theirs = ([of_items(of, t, "right_after") for t in tasks] for of in (mixture, others["uniform"]))
    weights = np.array(list(tasks.values())) / sum(tasks.values())
    estimate, _ = combined_mean([a - b for a, b in zip(ours, theirs, strict=True)], weights)
    other = by_loss.state if by_loss.state != found.state else None
    without = [t for t in counted if t not in every and t not in whole]
    apart = [t for t in counted if t not in tasks and t not in without]
    why = [
        found.why,
        *([_accuracy(estimate)] if found.against and in_nats else []),
        *([f"by the loss: {other}"] if other else []),
        *([f"targets without a task do not count: {', '.join(without)}"] if without else []),
        *([f"targets whose task has no items in {TASK.unit} do not count: {', '.join(apart)}"] if apart else []),
    ]
    accuracy = Estimate(**vars(estimate)) if found.against and in_nats and estimate.error > 0 else None
    return found.model_copy(update={"why": "; ".join(why), "accuracy": accuracy, "by_loss": other})


def _accuracy(found: intervals.Estimate) -> str:
    if found.error == 0:  # an interval of no width would say more than is known
        return "accuracies do not differ on any item"
    return f"accuracy less that of 'uniform' {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _losses(trained: "Sequence[Trained]", targets: Iterable[str], when: str) -> ByTarget:
    return {t: np.stack([report_half(getattr(x.losses[t], when)) for x in trained]) for t in targets}


def _minus_scores(trained: "Sequence[Trained]", targets: Iterable[str], when: str) -> ByTarget:
    return {t: -of_items(trained, t, when) for t in targets}


def _less(after: ByTarget, before: ByTarget) -> ByTarget:
    return {t: values - before[t] for t, values in after.items()}


def verdict(
    mixture: ByTarget,
    others: Mapping[str, ByTarget],
    helped: Mapping[str, ByTarget],
    share: np.ndarray,
    delta: float,
    known: Sequence[str] = (),
    measured: Measured = LOSS,
) -> Verdict:
    """The verdict of a mixture.

    `mixture`: its losses; `others`: those of feasible mixtures, `uniform` among them, paired with them by seed and row;
    `helped`: by training what it changed of every target's loss, which shows whether the base can learn; `share`: the
    targets' weights, float64 [M], sum 1; `delta`: a difference that makes none, in the unit of the losses; `known`:
    candidates that the base was made from (`made_from`); `measured`: what the losses are.
    """
    found = partial(Verdict, by=measured.by, measure=measured.measure)
    mixture = {t: losses for (t, losses), s in zip(mixture.items(), share, strict=True) if s > 0}
    share = share[share > 0]
    seeds = len(next(iter(mixture.values())))
    if seeds < SEEDS:
        few = f"finetune.seeds is {seeds}, and a verdict needs {SEEDS} trainings of each mixture"
        return found(state="not tested", why=few)
    if min(losses.shape[1] for losses in mixture.values()) < 2:
        single = "a target has a single held-out row; raise finetune.eval_tokens"
        return found(state="not tested", why=single)
    if known:
        which = f"the base was made from {', '.join(known)} (its model card says so)"
        again = f"{which}, so that training on it again says nothing about new text"
        return found(state="not tested", why=again)
    every = (mixture, *others.values(), *helped.values())
    if not all(np.isfinite(losses[t]).all() for losses in every for t in mixture):
        diverged = "a training diverged: its loss is no number; lower finetune.learning_rate"
        return found(state="not tested", why=diverged)
    if not _learns(helped, mixture):
        nothing = (
            f"no training {measured.learns} for certain: the base may have seen such text, or the learning "
            "rate does not suit it, so these trainings say nothing about mixtures"
        )
        return found(state="not tested", why=nothing)
    differences = {name: [losses[t] - mixture[t] for t in mixture] for name, losses in others.items()}
    against = {name: _against(values, share) for name, values in differences.items()}
    uniform = against["uniform"]
    if all(np.array_equal(mixture[t], others["uniform"][t]) for t in mixture):
        return found(state="no difference", why="the recommended mixture is the uniform one", against=against)
    over = f"{seeds} seeds" if len(share) == 1 else f"{seeds} seeds, mean over {len(share)} targets"
    beside = _said("uniform", uniform, over, measured)
    limit = 1 - (1 - LEVEL) / max(1, len(others) - 1)  # of several, one would be better by chance (Bonferroni)
    better = [n for n, a in against.items() if n != "uniform" and a.p_lower >= limit and a.value < -delta]
    if better:
        best = min(better, key=lambda name: against[name].value)
        return found(state="not confirmed", why=_said(best, against[best], over, measured), against=against)
    if -delta <= uniform.low and uniform.high <= delta:
        return found(
            state="no difference", why=f"{beside}: within {delta:g} {measured.unit} either way", against=against
        )
    if uniform.p_lower >= LEVEL:
        return found(state="not confirmed", why=beside, against=against)
    if uniform.p_lower <= 1 - LEVEL:
        return found(state="confirmed", why=beside, against=against)
    needed = seeds_to_settle(differences["uniform"], share, delta)
    remedy = f"about {needed} seeds would settle it" if needed else measured.more
    why = f"{beside}; {remedy}, if the difference is what it seems"
    return found(state="undecided", why=why, seeds_needed=needed, against=against)


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


def _said(name: str, against: Against, over: str, measured: Measured) -> str:
    return (
        f"{measured.difference.format(name=name)} is {against.value:+.4f} {measured.unit} [{against.low:+.4f}, "
        f"{against.high:+.4f}]; P('{name}' is {measured.better}) {_probability(against.p_lower)}; {over}"
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

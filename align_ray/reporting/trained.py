"""What the stages that train return, the verdict among it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from align_ray.reporting.result import Result, estimate_columns
from align_ray.reporting.tasks import columns, remarks, said, task_tables
from align_ray.reporting.values import (
    Difference,
    Estimates,
    Extrapolation,
    TaskScore,
    Training,
    Validated,
    Verdict,
)


class Finetuned(Result):
    """What `finetune` returns."""

    TITLE = "Change of the held-out loss (nats per token)"
    SHOWN = {"run": "", "after": ".4f", "bits_per_byte": ".4f", "change": "+.4f", "change_low": "+.4f"}
    DRAWN = ("run", "change")
    AXIS = "change of the loss (nats per token), 95% over seeds and held-out rows"

    verdict: Verdict | None = None
    """Whether the recommended mixture held; None where an earlier version trained."""
    tokens: int
    seeds: int = 1
    learning_rate: float | None = None
    bytes_per_token: dict[str, float] = {}
    """By target, UTF-8 bytes of a held-out token that counts."""
    runs: dict[str, Training]
    uniform_less_mixture: Estimates = {}
    """By target the uniform mixture's loss less the recommended one's, paired by seed and held-out row."""
    extrapolation: dict[str, Extrapolation] = {}
    """By target; empty where the token budget is no more than was trained on."""

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and training run, lowest loss first: tokens trained on, `distinct_tokens` among them and how
        often each was seen (`epochs`), loss `before` and `after` (nats per token; of
        a target with completions, of those alone), `bits_per_byte` after, `change` with its interval over seeds and
        held-out rows, and `overlap`, the share of held-out 13-token windows in the training
        text. Of a target with a task also `accuracy` and `score`, each with its interval and the value before."""
        rows: list[dict[str, Any]] = []
        for name, run in self.runs.items():
            for target, loss in run.targets.items():
                seen = {"distinct_tokens": run.distinct_tokens, "epochs": run.epochs}
                known = {k: v for k, v in loss.model_dump(exclude={"task"}).items() if v is not None}
                if loss.task is not None:
                    known |= columns(loss.task)
                if of_token := self.bytes_per_token.get(target):
                    known["bits_per_byte"] = loss.after / of_token / math.log(2)
                rows.append({"target": target, "run": name, "tokens": self.tokens, **seen, **known})
        return _by_loss(rows, "after")

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield from super()._shown()
        yield from task_tables(self._by_target(), "run")

    def notes(self) -> list[str]:
        return [*([f"verdict: {self.verdict}"] if self.verdict else []), *self.conditions()]

    def conditions(self) -> list[str]:
        """How the runs were trained, and what to know of them, one sentence each."""
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        about = f"after {self.tokens:,} tokens, {self.seeds} seeds{rate}"
        return [about, *self.forgets(), *self.tasks(), *self.better_alone(), *self.beyond(), *self.repeated()]

    def beyond(self) -> list[str]:
        """How long the short run is good for: by target a sentence on which run leads where it was measured, and which
        would at the token budget, and one on what that does not foresee."""
        lines, named = [], {"mixture": None} if "mixture" in self.runs else {}
        for target, found in self.extrapolation.items():
            now, then = found.runs[found.best], found.runs[found.best_at_budget]
            end, trained = then.expected[-1], now.measured[-1].tokens
            settled = "not settled" if found.holds_to is None else f"settled up to {found.holds_to:,} tokens"
            lines.append(
                f"{target}: after {trained:,} tokens '{found.best}' has the lowest loss with P = {now.p_best:.3f}, "
                f"{settled}. Extrapolated to {found.token_budget:,} tokens, not measured: '{found.best_at_budget}' "
                f"with P = {then.p_best_at_budget:.3f}, loss {end.value:.4f} [{end.low:.4f}, {end.high:.4f}]"
                + ("" if found.settled_at_budget else "; the order is not settled at the budget")
            )
            named |= dict.fromkeys((found.best, found.best_at_budget))
        epochs = {n: e for n in named if (e := self.runs[n].epochs_at_budget) is not None and e > 1}
        if lines and epochs:
            often = ", ".join(f"with '{name}' {times:.1f} times" for name, times in epochs.items())
            lines.append(f"the extrapolation foresees no repetition; at the budget some text is seen {often}")
        return lines

    def tasks(self) -> list[str]:
        """Of every target with a task, what the mixture and the uniform one came to in it, and `task_remarks`."""
        found = self._by_task().items()
        return [
            line for t, (scores, _) in found for line in said(t, scores, ("mixture", "uniform"))
        ] + self.task_remarks()

    def task_remarks(self) -> list[str]:
        """A sentence where another run is best by the task than by the loss, and where accuracies are at the floor."""
        return [line for t, of in self._by_task().items() for line in remarks(t, *of)]

    def _by_task(self) -> dict[str, tuple[dict[str, TaskScore], dict[str, float]]]:
        """By target with a task the scores and the losses of all runs."""
        found: dict[str, tuple[dict[str, TaskScore], dict[str, float]]] = {}
        for name, run in self.runs.items():
            for target, loss in run.targets.items():
                if loss.task is not None:
                    scores, losses = found.setdefault(target, ({}, {}))
                    scores[name], losses[name] = loss.task, loss.after
        return found

    def forgets(self) -> list[str]:
        """Of the mixture and the uniform one, what they made the model forget of general text."""
        lines = []
        for name in ("mixture", "uniform"):
            if (found := self.runs[name].general if name in self.runs else None) is not None:
                between = "" if found.change_low is None else f" [{found.change_low:+.4f}, {found.change_high:+.4f}]"
                lines.append(f"general text after '{name}': {found.after:.4f}, {found.change:+.4f}{between}")
        return lines

    def front(self, target: str) -> list[str]:
        """Runs that no other beats on both the target and general text, lowest loss on the target first; none without
        replay."""
        points = {n: (r.targets[target].after, r.general.after) for n, r in self.runs.items() if r.general}
        kept = [n for n, (a, b) in points.items() if not any(x < a and y < b for x, y in points.values())]
        return sorted(kept, key=lambda name: points[name])

    def better_alone(self) -> list[str]:
        """A sentence for every target that a candidate alone has done better on than the mixture, by its task where
        the verdict is by that."""
        lines = []
        by_task = self.verdict is not None and self.verdict.by == "task"
        for target, mixed in self.runs["mixture"].targets.items() if "mixture" in self.runs else ():
            alone = {n: run.targets[target] for n, run in self.runs.items() if n not in ("mixture", "uniform")}
            scores = {n: of.task.score.value for n, of in alone.items() if of.task is not None} if by_task else {}
            if scores and mixed.task is not None:
                best = max(scores, key=lambda name: scores[name])
                better = scores[best] > mixed.task.score.value
                said = f"a score of {scores[best]:+.4f}, higher than the mixture's {mixed.task.score.value:+.4f}"
            else:
                best = min(alone, key=lambda name: alone[name].after)
                better = alone[best].after < mixed.after
                said = f"{alone[best].after:.4f}, lower than the mixture's {mixed.after:.4f}"
            if better:
                epochs = self.runs[best].epochs
                repeated = epochs is not None and epochs > 1
                held = f"Its text was seen {epochs:.2f} times" if repeated else "There is enough of it"
                lines.append(
                    f"{target}: '{best}' alone comes to {said}. {held} for {self.tokens:,} tokens; the mixture is for "
                    "the token budget"
                )
        return lines

    def repeated(self) -> list[str]:
        """A sentence for every run that saw its text more than once."""
        return _repeated({name: (run.distinct_tokens, run.epochs) for name, run in self.runs.items()})


def verdict_of(results: Mapping[str, Any], stopped: str = "") -> Verdict:
    """A study's one verdict, from its results by the name of their file: that of `validate`, which compares most, else
    of `finetune`. `stopped`: what ended the run before its trainings."""
    for name in ("validation", "finetune"):
        if (found := getattr(results.get(name), "verdict", None)) is not None:
            return found
    if results.get("finetune") is not None:
        why = "its trainings were judged by an earlier version; align-ray finetune judges them without training again"
    else:
        why = "no training on the mixture belongs to this configuration; align-ray finetune makes them"
    return Verdict(state="not tested", why=stopped.rstrip(".") or why)


def _repeated(seen: dict[str, tuple[int | None, float | None]]) -> list[str]:
    """A sentence for every training that saw its text more than once; `seen`: by run its distinct tokens and epochs."""
    lines = []
    for name, (distinct, epochs) in seen.items():
        if distinct is not None and epochs is not None and epochs > 1:
            harm = " WARNING: above 4 times the loss tells of repetition, not of the text" if epochs > 4 else ""
            lines.append(f"{name}: {distinct:,} distinct tokens, each seen {epochs:.1f} times{harm}")
    return lines


class Validation(Result):
    """What `validate` returns."""

    TITLE = "Loss after training on each mixture (nats per token)"
    SHOWN = {
        "mixture": "",
        "loss": ".4f",
        "loss_low": ".4f",
        "difference": "+.4f",
        "difference_low": "+.4f",
        "p_lower": ".3f",
    }
    DRAWN = ("mixture", "loss")
    AXIS = "held-out loss (nats per token), 95% over seeds and sequences"

    verdict: Verdict | None = None
    """Whether the recommended mixture held; None where an earlier version trained."""
    tokens: int = 0
    seeds: int = 0
    learning_rate: float | None = None
    before: dict[str, float] = {}
    mixtures: dict[str, Validated]
    versus: dict[str, dict[str, dict[str, Difference]]]
    """`versus[a][b][target]`: a's loss less b's."""

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield from super()._shown()
        yield from task_tables(self._by_target(), "mixture")

    def notes(self) -> list[str]:
        before = ", ".join(f"{target} {loss:.4f}" for target, loss in self.before.items())
        return [
            *([f"verdict: {self.verdict}"] if self.verdict else []),
            f"after {self.tokens:,} tokens, {self.seeds} seeds, 95% over seeds and sequences; before: {before}",
            "difference: from the recommended mixture's loss, above 0 is worse",
            "P(lower): that the loss is lower than the recommended mixture's",
            *(["all: the weighted mean of the targets"] if len(self.before) > 2 else []),
            *(f"{name}: the weights of {m.same_as}, trained once" for name, m in self.mixtures.items() if m.same_as),
            *self.tasks(),
            *self.repeated(),
        ]

    def tasks(self) -> list[str]:
        """The same as `Finetuned.tasks`, of mixtures."""
        found = self._by_task().items()
        return [
            line for t, (scores, _) in found for line in said(t, scores, ("recommended", "uniform"))
        ] + self.task_remarks()

    def task_remarks(self) -> list[str]:
        """The same as `Finetuned.task_remarks`."""
        return [line for t, of in self._by_task().items() for line in remarks(t, *of)]

    def _by_task(self) -> dict[str, tuple[dict[str, TaskScore], dict[str, float]]]:
        found: dict[str, tuple[dict[str, TaskScore], dict[str, float]]] = {}
        for name, mixture in self.mixtures.items():
            for target, task in mixture.task.items() if mixture.same_as is None else ():
                scores, losses = found.setdefault(target, ({}, {}))
                scores[name], losses[name] = task, mixture.loss[target].value
        return found

    def repeated(self) -> list[str]:
        """A sentence for every mixture whose training saw its text more than once."""
        return _repeated({n: (m.distinct_tokens, m.epochs) for n, m in self.mixtures.items() if not m.same_as})

    def against_recommended(self, mixture: str, target: str) -> Difference | None:
        """The mixture's loss less the recommended one's: above 0 where the mixture is worse. None for the
        recommended itself."""
        return self.versus.get(mixture, {}).get("recommended", {}).get(target)

    def to_pandas(self) -> pd.DataFrame:
        """One row a target (`all`: their weighted mean) and mixture, lowest loss first: `loss` with its interval,
        `difference` from the recommended mixture's (above 0: worse), `p_lower`, the probability that it is lower
        than the recommended one's, and `same_as`, the mixture with the same weights that was trained in its place."""
        rows: list[dict[str, Any]] = []
        for name, mixture in self.mixtures.items():
            for target, loss in mixture.loss.items():
                cells = {
                    "target": target,
                    "mixture": name,
                    "same_as": mixture.same_as,
                    **estimate_columns("loss", loss),
                    **(columns(mixture.task[target]) if target in mixture.task else {}),
                }
                against = self.against_recommended(name, target)
                rows.append(
                    {**cells, **estimate_columns("difference", against), "p_lower": getattr(against, "p_lower", None)}
                )
        frame = _by_loss(rows, "loss")
        return frame if frame["target"].nunique() > 2 else frame[frame["target"] != "all"]


def _by_loss(rows: list[dict[str, Any]], loss: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows).sort_values(loss, kind="stable")
    order = dict.fromkeys(row["target"] for row in rows)
    return pd.concat([frame[frame["target"] == target] for target in order], ignore_index=True)

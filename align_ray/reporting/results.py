"""What the stages return: typed values, written and read as JSON, each with a table, a figure and a readable form.

Fields are attributes (`result.ranking["target"][0].value`); `result["ranking"]` gives the same. `to_pandas()` gives
everything as a tidy table, a notebook shows the main columns of it, and `plot()` draws values with their intervals.
Labels, units and signs of what is shown stand here and nowhere else.
"""

import math
from collections.abc import ItemsView, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, RootModel

from align_ray.reporting.names import called
from align_ray.reporting.result import Result, estimate_columns, texts_of
from align_ray.reporting.tasks import columns, remarks, said, task_tables
from align_ray.reporting.values import (
    AtBudget,
    Bounded,
    Checked,
    Clean,
    Counts,
    Described,
    Difference,
    Diversity,
    Embedded,
    Estimates,
    Extrapolation,
    FrontPoint,
    Lead,
    Measured,
    MeasureScores,
    MixturePrediction,
    Noise,
    Overlap,
    Predicted,
    Ranked,
    Sampled,
    Setting,
    TaskScore,
    Training,
    Trial,
    Validated,
    Verdict,
)


class Corpora(Result):
    """What `embed` returns."""

    TITLE = "Corpora"
    SHOWN = {"corpus": "", "role": "", "documents": ",", "estimated_tokens": ",", "batches": ",", "in_target": ","}
    DRAWN = ("corpus", "estimated_tokens")
    AXIS = "tokens (estimated from bytes)"

    corpora: dict[str, Counts]
    work: Embedded

    def recorded(self) -> dict[str, Any]:
        work = self.work.model_dump()
        rate = {"tokens": self.work.tokens, "actor_seconds": self.work.actor_seconds}
        return {**work, "rate": rate if self.work.tokens else None}

    def to_pandas(self) -> pd.DataFrame:
        """One row a corpus: counts of its documents, bytes, tokens, and records left out."""
        rows = [{"corpus": n, **counts.model_dump(exclude={"shared_with"})} for n, counts in self.corpora.items()]
        frame = pd.DataFrame(rows)
        counts = frame.select_dtypes("number").columns
        return frame.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))  # absent: no such record


class Alignment(Result):
    """What `align` returns."""

    TITLE = "Candidates, best first"
    SHOWN = {
        "candidate": "",
        "cross_entropy": ".3f",
        "cross_entropy_low": ".3f",
        "p_above_next": ".3f",
        "alignment": ".4f",
        "alignment_low": ".4f",
    }
    DRAWN = ("candidate", "cross_entropy")
    AXIS = "cross-entropy of the target under the candidate's unigram model (nats per token), 95%"

    targets: list[str]
    candidates: list[str] = []
    measure: str = "trunk"
    """The main one, to which the next five belong."""
    matrix: dict[str, Estimates] = {}
    """Of more than 64 corpora the rows of the targets and the diagonal alone."""
    alike: list[list[float]] = []
    """There, what candidates have with each other, in their order: means over at most 16 batches each."""
    ranking: dict[str, list[Ranked]]
    diversity: dict[str, Diversity] = {}
    ceiling: Estimates
    others: dict[str, Measured] = {}
    noise: dict[str, Noise] = {}
    loss: dict[str, float] = {}
    """The probe's, nats per token."""
    skipped: dict[str, list[tuple[int, int]]] = {}
    """[batch, sequence] of those left out because their embedding is not finite."""
    predicted: Predicted

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and candidate, ranked by `cross_entropy`; to it belong `p_best`, `p_above_next`
        (that it is better than the next), `settled` (whether that stands after adjustment for all comparisons) and
        `batches_to_separate` the row from the next. Candidates without a rank come last. `alignment` is the paper's
        coefficient with its own `alignment_p_best`, ..., `alignment_corrected` is it without label noise,
        `alignment_pooled` that of the corpora's mean embeddings; further rows of the probe stand under their name,
        for example `head`; `ceiling` is 1 - div(target)."""
        blocks = {
            name: {target: {row.candidate: row for row in rows} for target, rows in ranking.items()}
            for name, ranking in [("alignment", self.ranking), *((n, b.ranking) for n, b in self.others.items())]
        }
        rows: list[dict[str, Any]] = []
        for target, ranking in self.predicted.ranking.items():
            for rank, row in enumerate(ranking, start=1):
                cells = {
                    "target": target,
                    "candidate": row.candidate,
                    "rank": rank,
                    **_ranked("cross_entropy", "", row),
                }
                for name, block in blocks.items():
                    found = block[target][row.candidate]
                    cells |= _ranked(name, f"{name}_", found)
                    cells |= estimate_columns(f"{name}_corrected", found.corrected) | estimate_columns(
                        f"{name}_pooled", found.pooled
                    )
                rows.append(cells | estimate_columns("ceiling", self.ceiling[target]))
        for target, few in self.predicted.unranked.items():
            rows += [{"target": target, "candidate": r.candidate, **estimate_columns("cross_entropy", r)} for r in few]
        return pd.DataFrame(rows)

    def pair(self, a: str, b: str) -> tuple[str | int, ...]:
        """Where the alignment of two corpora stands: of the path's end a mapping with `value`, or a number."""
        if b in self.matrix.get(a, {}):
            return "matrix", a, b
        if a in self.matrix.get(b, {}):
            return "matrix", b, a
        return "alike", self.candidates.index(a), self.candidates.index(b)

    def pairs(self, names: list[str]) -> np.ndarray:
        """Alignment of all pairs, float64 [n, n], 1 - div on the diagonal."""
        place = {name: k for k, name in enumerate(self.candidates)}
        among = [(i, place[name]) for i, name in enumerate(names) if name in place]
        result = np.full((len(names), len(names)), np.nan)
        if self.alike and among:
            rows, own = np.array(among).T
            result[np.ix_(rows, rows)] = np.array(self.alike)[np.ix_(own, own)]
        for i, a in enumerate(names):
            of_corpus = self.matrix.get(a, {})
            for j, b in enumerate(names):
                if (found := of_corpus.get(b)) is not None:
                    result[i, j] = found.value
        return np.where(np.isnan(result), result.T, result)


def _ranked(name: str, prefix: str, row: Ranked) -> dict[str, Any]:
    places = {
        "p_best": row.p_best,
        "p_above_next": row.p_above_next,
        "settled": row.settled,
        "batches_to_separate": row.separate,
    }
    return estimate_columns(name, row) | {f"{prefix}{column}": value for column, value in places.items()}


class Mixture(Result):
    """What `search` returns."""

    TITLE = "Recommended mixture (shares of tokens)"
    SHOWN = {
        "corpus": "",
        "weight": ".1%",
        "optimum": ".1%",
        "optimum_low": ".1%",
        "epochs": ".2f",
        "limited_by": "",
        "gain_of_more": ".4f",
    }
    DRAWN = ("corpus", "optimum")
    AXIS = "weight at the optimum (share of tokens), 95%"

    objective: str = ""
    optimum: str = ""
    """How it was found: `closed_form`, `search`, or by trained proxies."""
    mixtures: dict[str, Described]
    """`recommended` first."""
    weights: dict[str, Bounded]
    caps: dict[str, float]
    effective_corpora: float = 0.0
    kkt_residual: float | None = 0.0
    """None where `search.max_corpora` binds: no such certificate holds over all choices of corpora."""
    kkt_residual_within: float = 0.0
    """The same among mixtures of the optimum's corpora alone, where it binds."""
    choice: Literal["exhaustive", "exchange"] | None = None
    """How those were chosen, where it binds: of all choices, or by exchanging one for another."""
    gap_of_search: float | None = None
    standard_error: float = 0.0
    slack: float = 0.0
    single: dict[str, float] = {}
    lead_over_single: Lead | None = None
    pareto: list[FrontPoint] = []
    budgets: list[AtBudget] = []
    """The optimum at other token budgets, smallest first."""
    warnings: list[str] = []
    trials: list[Trial] = []
    check: dict[str, dict[str, Checked]] = {}
    surrogate: dict[str, Any] | None = None
    prediction: MixturePrediction | None = None
    """Where losses were predicted: of which mixtures what."""
    cheap: Described | None = None
    """What a search by loss started from."""

    def to_pandas(self) -> pd.DataFrame:
        """One row a corpus, largest weight first: `weight` (recommended), `optimum` with its interval, `cap` of the
        repetition limit, `epochs` of the corpus within the budget, what limits it and what more of it would gain."""
        best = self.mixtures["recommended"]
        rows = [
            {
                "corpus": name,
                "weight": best.weights[name],
                "optimum": found.weight,
                "optimum_low": found.low,
                "optimum_high": found.high,
                "cap": self.caps[name],
                "epochs": best.epochs[name],
                "limited_by": found.binds,
                "gain_of_more": found.gain_of_more or None,
            }
            for name, found in self.weights.items()
        ]
        return pd.DataFrame(rows).sort_values("weight", ascending=False, ignore_index=True)

    def comparison(self) -> pd.DataFrame:
        """One row a mixture (`mixture`: its name in the results, `called`: what a person reads): `value` of the
        objective and that less the uniform mixture's (`gain`), its mean alignment with the targets with interval, the
        epochs of the corpus that is repeated most, and whether it is `feasible` within the constraints."""
        uniform = self.mixtures["uniform"].value
        return pd.DataFrame(
            [
                {
                    "mixture": name, "called": called(name), "value": m.value, "gain": m.value - uniform,
                    **estimate_columns("alignment", m.alignment), "most_epochs": max(m.epochs.values()),
                    "feasible": m.feasible,
                }
                for name, m in self.mixtures.items()
            ]
        )  # fmt: skip

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        for title, part in super()._shown():
            yield title, part.assign(**{"95%": [_interval(self.weights[name]) for name in part["corpus"]]})
        frame = self.comparison().sort_values("gain", ascending=False, kind="stable").rename(columns={"called": "name"})
        frame["within_limits"] = frame["feasible"].map({True: "yes", False: "no"})
        shown = {"name": "", "within_limits": "", "gain": "+.4f", "alignment": ".4f", "alignment_low": ".4f"}
        yield "Beside it, best by the objective first", texts_of(frame, {**shown, "most_epochs": ".2f"})

    def notes(self) -> list[str]:
        weight, objective = (
            "weight: the mean of all mixtures that are as good as the optimum within its error",
            self.objective,
        )
        if objective == "loss":  # the cheap objective from which the search by training started
            weight, objective = "weight: by the losses of trained proxies", "cross-entropy"
        if objective == "predicted":
            weight, objective = "weight: the least predicted loss", "mixmin"
        return [
            *(self.prediction.lines() if self.prediction else []),
            weight,
            f"optimum: of the objective ({objective}), 95% from halves of the batches",
            "gain of more: of that objective, with a tenth more text of a corpus that repetition limits",
            "gain: of that objective, above the uniform mixture's; it is not a gain of the loss. alignment: pooled",
            "most epochs: of the corpus that is repeated most; within limits: of repetition, and your own bounds",
            f"effective number of corpora: {self.effective_corpora:.1f}",
            *self._certificate(),
        ]

    def _certificate(self) -> list[str]:
        """What is said where the number of corpora is limited, so that no KKT residual certifies the optimum."""
        if self.kkt_residual is not None:
            return []
        exchanged = "chosen by exchanges, another choice may be better"
        how = "every choice was tried" if self.choice == "exhaustive" else exchanged
        return [f"corpora limited, so no KKT certificate: {how}"]


def _interval(found: Bounded) -> str:
    """The interval of a weight; where a limit holds the weight at its upper end, that is said in its place."""
    if found.binds and found.high - found.low < 5e-4:
        return "held"
    high = "limit" if found.binds and found.high <= found.weight + 1e-6 else f"{found.high:.1%}"
    return f"[{found.low:.1%}, {high}]"


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


class Contamination(Result):
    """What `contamination` returns."""

    TITLE = "Text shared with the target"
    SHOWN = {
        "candidate": "",
        "documents": ",",
        "of": ",",
        "covered": ".2%",
        "alignment": ".4f",
        "alignment_clean": ".4f",
        "cross_entropy": ".3f",
        "cross_entropy_clean": ".3f",
        "rank": ".0f",
        "rank_clean": ".0f",
    }
    DRAWN = ("candidate", "covered")
    AXIS = "share of the target's runs of 13 words that the candidate holds"

    words: int = 13
    overlap: dict[str, dict[str, Overlap]]
    """By candidate and target, as `clean`."""
    clean: dict[str, dict[str, Clean]]
    warnings: list[str] = []

    def covers(self, other: "Contamination") -> bool:
        return other.overlap.keys() < self.overlap.keys()

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and candidate: `documents` of `of` that share a run of words with the target, the share
        of the target's runs they cover, and alignment, cross-entropy and rank with and without (`_clean`) the
        sequences concerned."""
        rows: list[dict[str, Any]] = []
        for candidate, targets in self.overlap.items():
            for target, overlap in targets.items():
                found = self.clean[candidate][target]
                cells = {"target": target, "candidate": candidate, **overlap.model_dump(), **found.model_dump()}
                for name in ("alignment", "alignment_clean"):
                    cells |= estimate_columns(name, getattr(found, name))
                rows.append(cells)
        order = {target: i for i, target in enumerate(dict.fromkeys(row["target"] for row in rows))}
        rows.sort(key=lambda row: (order[row["target"]], row["rank"] is None, row["rank"] or 0))
        return pd.DataFrame(rows)

    def notes(self) -> list[str]:
        return [
            f"documents: that share a run of {self.words} words with the target; covered: share of its runs",
            "clean: without the sequences that hold such a run; cross-entropy: nats per token",
        ]


class Samples(Result, RootModel[dict[str, Sampled]]):
    """What `samples` returns: by corpus; empty where single sequences have no embedding."""

    model_config = ConfigDict(frozen=True, extra=None)

    TITLE = "Alignment of single sequences"
    SHOWN = {"corpus": "", "of": ",", "smallest": ".4f", "median": ".4f", "largest": ".4f"}
    DRAWN = ("corpus", "median")
    AXIS = "median alignment of a sequence with the target; lines: smallest to largest"

    def __getitem__(self, corpus: str) -> Sampled:
        return self.root[corpus]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def __contains__(self, corpus: object) -> bool:
        return corpus in self.root

    def items(self) -> ItemsView[str, Sampled]:
        """Corpora and their scores."""
        return self.root.items()

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and corpus: `of`, sequences scored, and the quantiles of their alignment with the target;
        texts are in the result itself, `most` and `least`. Without corpora of which no score is finite; empty where
        the estimator has no embedding of a single sequence."""
        names = ("smallest", "lower_quartile", "median", "upper_quartile", "largest")
        rows: list[dict[str, Any]] = []
        for corpus, found in self.root.items():
            for target, scores in found.targets.items():
                if not scores.quantiles:
                    continue
                values = dict(zip(names, scores.quantiles, strict=True))
                ends = {"median_low": values["smallest"], "median_high": values["largest"]}
                rows.append({"target": target, "corpus": corpus, "of": scores.of, **values, **ends})
        return pd.DataFrame(rows, columns=None if rows else ["target", "corpus", "of", *names])


class Prediction(Result):
    """What `predict` returns: how well measures of data predict the loss after training on them."""

    TITLE = "Rank correlation with the loss within a target, its own corpus left out"
    SHOWN = {"tokens": ",", "measure": "", "spearman": ".2f", "spearman_low": ".2f", "regret": ".3f"}
    DRAWN = ("measure", "spearman")
    AXIS = "Spearman's rank correlation with minus the loss, mean over targets, 95%"

    candidates: list[str]
    targets: list[str]
    related: dict[str, list[str]]
    design: list[str]
    measures: dict[str, MeasureScores]
    settings: dict[str, Setting]
    """By training tokens."""

    def to_pandas(self) -> pd.DataFrame:
        """One row a number of tokens and measure, best first: rank correlation, regret in nats per token."""
        rows: list[dict[str, Any]] = []
        for tokens, setting in self.settings.items():
            for name, found in setting.results.get("others", {}).items():
                ends = {"spearman_low": found.spearman.low, "spearman_high": found.spearman.high}
                cells = {"tokens": int(tokens), "measure": name, "spearman": found.spearman.value, **ends}
                rows.append({**cells, "regret": found.regret.value})
        frame = pd.DataFrame(rows, columns=["tokens", "measure", "spearman", "spearman_low", "spearman_high", "regret"])
        return frame.sort_values(["tokens", "spearman"], ascending=[True, False], ignore_index=True)

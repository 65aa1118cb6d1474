"""What the stages return: typed values, written and read as JSON, each with a table, a figure and a readable form.

Fields are attributes (`result.ranking["target"][0].value`); `result["ranking"]` gives the same. `to_pandas()` gives
everything as a tidy table, a notebook shows the main columns of it, and `plot()` draws values with their intervals.
Labels, units and signs of what is shown stand here and nowhere else.
"""

from collections.abc import ItemsView, Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, RootModel

from align_ray.reporting.names import called
from align_ray.reporting.result import Result, estimate_columns, texts_of
from align_ray.reporting.values import (
    AtBudget,
    Bounded,
    Checked,
    Clean,
    Counts,
    Described,
    Diversity,
    Embedded,
    Estimates,
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
    Trial,
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

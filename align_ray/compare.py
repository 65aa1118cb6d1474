"""Two answers beside each other: what their configurations differ in, weights, losses, task scores, verdicts, and why a
number is another one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from align_ray.answers import Answer, Difference, differences, shown
from align_ray.reporting.choices import Choice
from align_ray.reporting.result import Result
from align_ray.reporting.results import Alignment, Corpora, Mixture
from align_ray.reporting.trained import Finetuned, Validation, verdict_of
from align_ray.reporting.values import Estimate, TaskScore, Verdict

RESULTS: dict[str, type[Result]] = {
    "corpora": Corpora,
    "alignment": Alignment,
    "choice": Choice,
    "search": Mixture,
    "finetune": Finetuned,
    "validation": Validation,
}
"""By file, what is compared."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A number of both answers; None where one has none. `ends`: of their 95% intervals, where they have some."""

    target: str
    what: str
    before: float | None
    after: float | None
    ends: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)

    @property
    def difference(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers, `before` and `after`."""

    answers: tuple[Answer, Answer]
    configuration: list[Difference]
    weights: list[Row]
    predicted: list[Row]
    """Losses and cross-entropies that no training of the very mixture has measured, nats per token."""
    measured: list[Row]
    """Losses after training, nats per token."""
    tasks: list[Row]
    """Scores and accuracies of targets' tasks after training, with intervals."""
    verdicts: tuple[Verdict, Verdict]
    why: list[str]
    """Why numbers differ, or cannot be compared, one sentence each."""

    def dump(self) -> dict[str, Any]:
        """As a JSON value."""
        known = [
            {"answer": a.id, "output": a.store.uri, "made": a.made, "version": a.version, "verdict": v.model_dump()}
            for a, v in zip(self.answers, self.verdicts, strict=True)
        ]
        parts = {name: [vars(row) for row in getattr(self, name)] for name in PARTS}
        configuration = [vars(difference) for difference in self.configuration]
        return {"answers": known, "configuration": configuration, **parts, "why": self.why}


PARTS = ("weights", "predicted", "measured", "tasks")
"""The tables of a comparison."""


def results_of(answer: Answer) -> dict[str, Any]:
    """An answer's results by file; those that are there."""
    found = {}
    for file, kind in RESULTS.items():
        parsed: Callable[[bytes], Result] = kind.model_validate_json
        if (result := answer.result(file, parsed)) is not None:
            found[file] = result
    return found


def compare(before: Answer, after: Answer) -> Comparison:
    """Set two answers beside each other, of one study or of two."""
    one, other = results_of(before), results_of(after)
    changed = differences(before.config, after.config)
    return Comparison(
        (before, after),
        changed,
        _rows(_weights(one), _weights(other)),
        _rows(_predicted(one), _predicted(other)),
        _rows(_measured(one), _measured(other)),
        _task_rows(_tasks(one), _tasks(other)),
        (verdict_of(one), verdict_of(other)),
        list(_why(changed, before, after, one, other)),
    )


Numbers = dict[tuple[str, str], float]
"""By target ("" for all) and what it is."""


def _rows(one: Numbers, other: Numbers) -> list[Row]:
    return [Row(*key, one.get(key), other.get(key)) for key in {**one, **other}]


def _task_rows(one: dict[tuple[str, str], Estimate], other: dict[tuple[str, str], Estimate]) -> list[Row]:
    rows = []
    for key in {**one, **other}:
        both = [of.get(key) for of in (one, other)]
        before, after = (found.value if found else None for found in both)
        ends = tuple((found.low, found.high) if found else None for found in both)
        rows.append(Row(*key, before, after, (ends[0], ends[1])))
    return rows


def _weights(results: dict[str, Any]) -> Numbers:
    if "search" not in results:
        return {}
    weights = results["search"].mixtures["recommended"].weights
    return {("", name): w for name, w in sorted(weights.items(), key=lambda item: -item[1])}


def _predicted(results: dict[str, Any]) -> Numbers:
    found: Numbers = {}
    if "alignment" in results:
        for target, ranking in results["alignment"].predicted.ranking.items():
            found |= {(target, f"cross-entropy, {row.candidate}"): row.value for row in ranking}
    if "choice" in results:
        for target, standings in results["choice"].targets.items():
            found |= {(target, f"loss by rungs, {n}"): row.value for n, row in standings.candidates.items()}
    if "search" in results and results["search"].prediction:
        for mixture, targets in results["search"].prediction.mixtures.items():
            found |= {(target, f"loss, {mixture}"): row.value for target, row in targets.items()}
    return found


def _measured(results: dict[str, Any]) -> Numbers:
    found: Numbers = {}
    if "finetune" in results:
        for name, run in results["finetune"].runs.items():
            found |= {(target, name): loss.after for target, loss in run.targets.items()}
    if "validation" in results:
        for name, mixture in results["validation"].mixtures.items():
            found |= {(target, f"validate: {name}"): loss.value for target, loss in mixture.loss.items()}
    return found


def _tasks(results: dict[str, Any]) -> dict[tuple[str, str], Estimate]:
    """By target and run with what the number is."""
    scored: dict[tuple[str, str], TaskScore] = {}
    if "finetune" in results:
        for name, run in results["finetune"].runs.items():
            scored |= {(t, name): loss.task for t, loss in run.targets.items() if loss.task is not None}
    if "validation" in results:
        for name, mixture in results["validation"].mixtures.items():
            scored |= {(t, f"validate: {name}"): task for t, task in mixture.task.items()}
    return {
        (t, f"{name}, {label}"): task[k] for (t, name), task in scored.items() for k, label in task.labels().items()
    }


def _why(
    changed: list[Difference], before: Answer, after: Answer, one: dict[str, Any], other: dict[str, Any]
) -> Iterator[str]:
    added = [d.after for d in changed if d.field == "candidates" and d.after is not None]
    removed = [d.before for d in changed if d.field == "candidates" and d.before is not None]
    if added or removed:
        yield from _why_corpora(added, removed, one, other)
    fields = {d.field for d in changed}
    if "search.token_budget" in fields:
        yield "weights: a corpus may be repeated search.max_epochs times within the token budget, which is another one"
    trained = [(r["finetune"].tokens, r["finetune"].learning_rate) for r in (one, other) if "finetune" in r]
    if len(trained) == 2 and trained[0][0] != trained[1][0]:
        yield f"measured losses: after {trained[0][0]:,} and {trained[1][0]:,} tokens, which are not one question"
    elif len(trained) == 2 and trained[0][1] != trained[1][1]:
        yield (
            f"measured losses: learning rates {shown(trained[0][1])} and {shown(trained[1][1])}, chosen on their own "
            "uniform mixtures"
        )
    held = [
        {
            corpus["name"]: results["corpora"].corpora[corpus["name"]].sample_digest
            for corpus in answer.config["targets"]
        }
        for answer, results in ((before, one), (after, other))
        if "corpora" in results
    ]
    if len(held) == 2 and (other_text := [t for t in held[0] if t in held[1] and held[0][t] != held[1][t]]):
        yield f"losses on {', '.join(other_text)} are of other documents: another seed, sample size or source"


def _why_corpora(added: list[str], removed: list[str], one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What another number of candidates changes, and what it does not."""
    if "alignment" in one and "alignment" in other:
        kinds: list[Numbers] = []
        for results in (one, other):
            ranking = results["alignment"].predicted.ranking
            kinds.append({(t, row.candidate): row.value for t, rows in ranking.items() for row in rows})
        common = [key for key in kinds[0] if key in kinds[1]]
        moved = sorted({name for t, name in common if kinds[0][t, name] != kinds[1][t, name]})
        count = len({name for _, name in common})
        yield (
            f"cross-entropies: those of {', '.join(moved)} changed with their text"
            if moved
            else f"cross-entropies: those of the {count} candidates that both have are the same; P(best) and P(>next) "
            "are not, since a place is one among all candidates"
        )
    names = ", ".join(added or removed)
    if "search" in one and "search" in other:
        yield f"weights: shares of one whole, of which {names} {'takes' if added else 'took'} a part"
    if "finetune" in one and "finetune" in other:
        sizes = [len(r["search"].mixtures["recommended"].weights) for r in (one, other) if "search" in r]
        if len(sizes) == 2:
            yield f"loss of 'uniform': the mixture of all candidates, {sizes[0]} before and {sizes[1]} now"

"""What `choose` returns: candidates compared by short trainings."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from align_ray.reporting.result import Result
from align_ray.reporting.tasks import columns, remarks, task_tables
from align_ray.reporting.values import Standings


class Choice(Result):
    """What `choose` returns."""

    TITLE = "Loss after a whole training on each candidate (nats per token)"
    SHOWN = {
        "candidate": "", "tokens": ",", "loss": ".4f", "loss_low": ".4f", "change": "+.4f",
        "p_best": ".3f", "p_within": ".3f", "regret": ".4f",
    }  # fmt: skip
    DRAWN = ("candidate", "loss")
    AXIS = "loss after a whole training (nats per token), expected, 95%"

    targets: dict[str, Standings]
    tokens: int
    """Of a whole training."""
    spent: int
    """Tokens that were trained on, all candidates together."""
    exhaustive: int
    """What whole trainings on all candidates would take."""
    learning_rate: float
    delta: float
    diverged: list[str] = []
    """Candidates whose loss is no number, or more than twice the base's: left out."""
    stopped: str | None = None
    """What ended the trainings before their end."""

    def chosen(self, among: list[str] | None = None) -> list[str]:
        """Every target's best candidate, each once; `among`: of these alone, where a target has one."""
        ordered = (list(found.candidates) for found in self.targets.values())
        best = ([n for n in names if among is None or n in among][:1] for names in ordered)
        return list(dict.fromkeys(name for names in best for name in names))

    def to_pandas(self) -> pd.DataFrame:
        """One row a target and candidate, the likeliest best first: `tokens` it was trained on, `loss` expected of
        the end of a whole training with its 95% interval, `change` from the base's, `p_best`, `p_within` (within delta
        of the best) and `regret`, the expected loss above the best candidate's. Of a target with a task also `accuracy`
        and `score`, after these tokens."""
        rows: list[dict[str, Any]] = []
        for target, found in self.targets.items():
            for name, row in found.candidates.items():
                loss = {"loss": row.value, "loss_error": row.error, "loss_low": row.low, "loss_high": row.high}
                chances = {"p_best": row.p_best, "p_within": row.p_within, "regret": row.regret}
                cells = {"target": target, "candidate": name, "tokens": row.tokens, **loss}
                rows.append(
                    {**cells, "change": row.value - found.before, **chances, **(columns(row.task) if row.task else {})}
                )
        return pd.DataFrame(rows)

    def _shown(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield from super()._shown()
        yield from task_tables(self._by_target(), "candidate")

    def task_remarks(self) -> list[str]:
        """See `Finetuned.task_remarks`; of the candidates that were trained on the most tokens."""
        lines: list[str] = []
        for target, found in self.targets.items():
            scored = {n: (row.task, row) for n, row in found.candidates.items() if row.task is not None}
            most = max((row.tokens for _, row in scored.values()), default=0)
            alike = {n: of for n, of in scored.items() if of[1].tokens == most}
            if len(alike) > 1:
                scores = {n: task for n, (task, _) in alike.items()}
                lines += remarks(target, scores, {n: row.value for n, (_, row) in alike.items()})
        return lines

    def notes(self) -> list[str]:
        scored = [f.task for of in self.targets.values() for f in of.candidates.values() if f.task is not None]
        return [
            *(f"{target}: {found.state}: {found.why}" for target, found in self.targets.items()),
            f"trained on {self.spent:,} tokens, of {self.exhaustive:,} that whole trainings on all would take (beside "
            "those that chose the learning rate)",
            f"loss: expected after {self.tokens:,} tokens at learning rate {self.learning_rate:g}, one seed; "
            "before the end its interval is too narrow where the base knows language (docs/coverage.md)",
            f"P(within): of {self.delta:g} nats from the best; regret: expected loss above the best one's",
            *(["task: after the tokens trained on, one seed; intervals over items"] if scored else []),
            *self.task_remarks(),
            *([f"left out, since their training diverged: {', '.join(self.diverged)}"] if self.diverged else []),
            *([f"stopped: {self.stopped}"] if self.stopped else []),
        ]

"""The items of a task whose answer is written: a context, the right answer in full, and the final one that counts.

What a model writes is searched for its final answer by a regular expression and never executed. The right answer in
full is a row whose tokens count, for the score that tells where no final answer is right yet.
"""

import dataclasses
import hashlib
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from align_ray.config import digest
from align_ray.config_corpora import ExactMatch
from align_ray.corpora.records import Unusable, as_text, filled, is_template, value_at
from align_ray.corpora.rows import Rows
from align_ray.errors import CorpusError

FEWEST = 2
"""Items without which there is no interval."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """n items."""

    rows: Rows
    """[n, T]: context and the right answer; the answer's tokens are scored."""
    bytes: np.ndarray
    """int64 [n]: of the right answer, as UTF-8."""
    prompts: tuple[list[int], ...]
    """Token ids of the contexts after which answers are written, short enough for as many more as may be."""
    finals: tuple[str, ...]
    """The right final answers (see `final_answer`)."""
    task: ExactMatch
    chance = 0.0
    """Accuracy of guessing."""
    measure, unit = "log-likelihood", "nats per byte"
    """What the continuous score is called."""
    metric = "accuracy"

    @property
    def tokens(self) -> int:
        """That go through the model."""
        return self.rows.tokens + sum(map(len, self.prompts)) + self.task.max_new_tokens * len(self.prompts)

    def digest(self) -> str:
        """Digest of all that a score depends on."""
        sizes = hashlib.sha256(self.bytes.astype("<i8").tobytes()).hexdigest()
        written = [self.task.pattern, self.task.stop, self.task.max_new_tokens]
        return digest([self.rows.digest(), sizes, self.prompts, self.finals, written])

    def scores(self, losses: np.ndarray) -> np.ndarray:
        """By item the log-likelihood of the right answer, nats per byte, float64 [n], of the rows' losses [n, T-1]
        (`step.heldout_losses`)."""
        return -np.nansum(losses.astype(np.float64), axis=1) / self.bytes

    def answered(self, written: list[str]) -> np.ndarray:
        """Whether the final answer of each text is the right one, bool [n]."""
        found = [final_answer(self.task.pattern, text) for text in written]
        return np.array([mine == right for mine, right in zip(found, self.finals, strict=True)])


def context_of(context: str, record: dict[str, Any]) -> str | None:
    """A task's context, of a column or by a format string. Raises Unusable."""
    return filled(context, record, optional=True) if is_template(context) else as_text(value_at(record, context))


def question_of(task: ExactMatch, record: dict[str, Any]) -> tuple[str, str, str]:
    """Context, right answer and its final answer. Raises Unusable."""
    text, answer = context_of(task.context, record), as_text(value_at(record, task.answer))
    if not text or not answer:
        raise Unusable("missing_column")
    final = final_answer(task.pattern, answer)
    if final is None:
        raise Unusable("no_answer")
    return text, answer, final


def final_answer(pattern: str, text: str) -> str | None:
    """What a pattern finds first in a text, its first group where it has one; a number in one way of writing. None
    where there is nothing."""
    found = re.search(pattern, text)
    said = (found[1] if found.re.groups else found[0]) if found else None
    if said is None:
        return None
    plain = said.strip().replace(",", "").removeprefix("$").removesuffix(".").casefold()
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return plain or None
    return f"{number.normalize():f}" if number.is_finite() and abs(number.adjusted()) < 100 else plain


def questions_of(
    target: str, items: list[tuple[Any, ...]], tokenizer: Any, task: ExactMatch, context: int
) -> Questions:
    """Items as rows of at most `context` tokens, and contexts that leave room for an answer; contexts lose their
    beginning, and items whose right answer alone is too long are left out. Raises CorpusError where none are left."""
    if task.max_new_tokens >= context:
        raise CorpusError(
            f"target '{target}': field 'task.max_new_tokens' is {task.max_new_tokens}, and the model takes {context} "
            "tokens with the question; lower it."
        )
    lines, counted, sizes, prompts, finals = [], [], [], [], []
    for text, answer, final in items:
        between = "" if not task.separator or text[-1].isspace() else task.separator
        before = tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]
        said = tokenizer(between + answer, add_special_tokens=False, verbose=False)["input_ids"]
        if len(said) >= context:
            continue
        lines.append([*before[-(context - len(said)) :], *said])
        counted.append(len(said))
        sizes.append(len(answer.encode()))
        prompts.append(list(before[-(context - task.max_new_tokens) :]))
        finals.append(final)
    if len(lines) < FEWEST:
        raise CorpusError(f"target '{target}': the answers of its task are longer than the model's {context} tokens.")
    return Questions(Rows.ending(lines, counted), np.array(sizes), tuple(prompts), tuple(finals), task)

"""The items of a target's task: a context, choices and the right one, as rows whose choices' tokens count. Those whose
answer is written are in `questions.py`.

Items are of the target's held-out records: those whose text is no part of what is embedded, so that nothing is chosen
by them, nor of what is trained on (`item_keys`). One row an item and choice; contexts that are too long for the model
lose their beginning.
"""

import dataclasses
import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from align_ray.config import digest
from align_ray.config_corpora import Choices, Corpus, ExactMatch, LmEval
from align_ray.context import Study
from align_ray.corpora.draw import document_key
from align_ray.corpora.harness import HarnessTask, harness_task, task_files
from align_ray.corpora.questions import Questions, context_of, question_of, questions_of
from align_ray.corpora.records import Unusable, render, value_at
from align_ray.corpora.rows import Rows
from align_ray.corpora.sources import files_seen, whole_records
from align_ray.corpora.tasks import with_template
from align_ray.errors import CorpusError
from align_ray.fisher.probe import Located, load_tokenizer

FEWEST = 2
"""Items without which there is no interval."""


@dataclasses.dataclass(frozen=True)
class Items:
    """n items of c_1, ..., c_n choices, m in all."""

    rows: Rows
    """[m, T]: context and choice; the choice's tokens are scored."""
    item: np.ndarray
    """int64 [m]: which item a row is of, in order."""
    right: np.ndarray
    """bool [m]: whether it is the right choice."""
    bytes: np.ndarray
    """int64 [m]: of the choice, as UTF-8."""

    measure, unit = "margin", "nats per byte"
    """What the continuous score is called."""
    metric = "accuracy"

    @property
    def tokens(self) -> int:
        """That go through the model."""
        return self.rows.tokens

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return float(np.mean(1 / np.bincount(self.item)))

    def digest(self) -> str:
        """Digest of all that a score depends on."""
        rest = hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in (self.item, self.right, self.bytes)))
        return digest([self.rows.digest(), rest.hexdigest()])


Asked = Items | Questions | HarnessTask
"""What is asked of a model in a task."""


def read_items(study: Study) -> dict[str, Asked]:
    """By target that has a task, its items, read once in a process as long as its files stay as they are. Raises
    CorpusError where records give none, ConfigError where a task of lm-eval is refused."""
    seed = study.config.seed
    found = {}
    for t in _with_task(study):
        files = files_seen(t) + (task_files(t.name, t.task) if isinstance(t.task, LmEval) else ())
        found[t.name] = _items(t.model_dump_json(), seed, study.model, files)
    return found


def item_keys(study: Study) -> set[bytes]:
    """The keys of the documents that items are of, those that are not drawn as well. Raises CorpusError as
    `read_items`."""
    seed = study.config.seed
    ours = [t for t in _with_task(study) if not isinstance(t.task, LmEval)]  # whose items are records of the target
    return {key for t in ours for key in _records(t.model_dump_json(), seed, files_seen(t))}


def _with_task(study: Study) -> list[Corpus]:
    return [with_template(t, study.chat_template) for t in study.config.targets if t.task is not None]


@lru_cache
def _items(target_json: str, seed: int, model: Located, files: tuple[object, ...]) -> Asked:
    target = Corpus.model_validate_json(target_json)
    if isinstance(target.task, LmEval):
        return harness_task(target.name, target.task, load_tokenizer(model))
    records = list(_records(target_json, seed, files).values())
    if isinstance(target.task, ExactMatch):
        return questions_of(target.name, records, load_tokenizer(model), target.task, model.context)
    assert target.task is not None
    return items_of(records, load_tokenizer(model), target.task.separator, model.context)


@lru_cache
def _records(target_json: str, seed: int, files: tuple[object, ...]) -> dict[bytes, tuple[Any, ...]]:
    """By the key of its document, what `item_of` or `question_of` makes of a record: those with the smallest keys.
    `files`: what tells that the target's files are those that were read (`sources.files_seen`)."""
    target = Corpus.model_validate_json(target_json)
    task = target.task
    assert task is not None and not isinstance(task, LmEval)
    found: dict[bytes, tuple[Any, ...]] = {}
    faults: dict[str, int] = {}
    for record in whole_records(target):
        try:
            key = document_key(seed, render(target, record))
            if key[-1] % 2 == 1:  # the held-out half (`sample.sample_corpora`)
                found[key] = question_of(task, record) if isinstance(task, ExactMatch) else item_of(task, record)
        except Unusable as reason:
            faults[str(reason)] = faults.get(str(reason), 0) + 1
    if len(found) < FEWEST:
        wanted = [f"'{field}'" for field in ("context", "choices", "answer", "pattern") if hasattr(task, field)]
        why = ", ".join(f"{count} with {reason}" for reason, count in faults.items()) or "too few records"
        raise CorpusError(
            f"target '{target.name}': field 'task' gives {len(found)} items of its held-out half, and {FEWEST} are "
            f"needed ({why}); check the fields {', '.join(wanted[:-1])} and {wanted[-1]}, or give more records."
        )
    return {key: found[key] for key in sorted(found)[: task.items]}


def item_of(task: Choices, record: dict[str, Any]) -> tuple[str, list[str], int]:
    """Context, choices and the number of the right one. Raises Unusable."""
    text = context_of(task.context, record)
    choices: Any = value_at(record, task.choices) if isinstance(task.choices, str) else task.choices
    labels: Any = None
    if isinstance(choices, dict):  # as some data sets keep them: {text: [...], label: [...]}
        labels, choices = choices.get("label"), choices.get("text")
    if not text or not isinstance(choices, list | tuple) or not all(isinstance(c, str) and c for c in choices):
        raise Unusable("missing_column")
    answer, texts = value_at(record, task.answer), [str(c) for c in choices]
    names = [str(label) for label in labels] if isinstance(labels, list | tuple) else []
    given = [texts, names] if names else [texts]
    if len(texts) < 2 or any(not len(set(among)) == len(among) == len(texts) for among in given):
        raise Unusable("no_answer")  # nothing to choose between, or no telling which is meant
    for among in (texts, names, [chr(ord("A") + i) for i in range(len(texts))]):
        if isinstance(answer, str) and answer in among:
            return text, texts, among.index(answer)
    if isinstance(answer, str) and answer.isdecimal() and len(answer) < 10:  # no number of a choice is longer
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return text, texts, answer
    raise Unusable("no_answer")


def items_of(items: list[tuple[str, list[str], int]], tokenizer: Any, separator: str, context: int) -> Items:
    """Items as rows of at most `context` tokens; a context loses its beginning."""
    lines, counted, item, right, sizes = [], [], [], [], []
    for i, (text, choices, answer) in enumerate(items):
        between = "" if not separator or text[-1].isspace() else separator
        before = tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]
        for c, choice in enumerate(choices):
            # the separator is the choice's, as in " yes": tokenizers keep a leading space with the word
            said = tokenizer(between + choice, add_special_tokens=False)["input_ids"]
            room = context - len(said)
            if room < 1:
                raise CorpusError(f"a choice of a task has {len(said)} tokens, the model takes {context}; shorten it.")
            lines.append([*before[-room:], *said])
            counted.append(len(said))
            item.append(i)
            right.append(c == answer)
            sizes.append(len(choice.encode()))
    return Items(Rows.ending(lines, counted), np.array(item), np.array(right), np.array(sizes))


def margins(losses: np.ndarray, items: Items) -> np.ndarray:
    """By item, the log-likelihood per byte of the right choice less that of the best wrong one, nats, float64 [n];
    above 0 the item is answered. `losses`: of the rows' tokens that count, [m, T-1] (`step.heldout_losses`)."""
    by_byte = -np.nansum(losses.astype(np.float64), axis=1) / items.bytes
    best_wrong = np.full(items.item[-1] + 1, -np.inf)
    np.maximum.at(best_wrong, items.item[~items.right], by_byte[~items.right])
    return by_byte[items.right] - best_wrong

"""Ray Data tasks that read corpora: what each reads, and how a function is run on every one."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from align_ray.config_corpora import Corpus
from align_ray.corpora.sources import Fragment, plan_fragments

TASK_BYTES = 64 * 2**20
"""Read by one task, or more where a corpus would be more than MOST_TASKS tasks."""


MOST_TASKS = 8192
"""The driver starts some 75 tasks a second (docs/scaling.md)."""


FIELDS = set(Corpus.model_fields)
"""What a task is told of a corpus, also of the one for replay."""


def read_tasks(corpora: list[Corpus], chat_template: str | None) -> list[dict[str, str]]:
    """Rows of a Ray Data set whose tasks read the corpora (see `grouped_fragments`): `corpus` and `fragments` as
    JSON. `chat_template`: of conversations in corpora that have none of their own (`probe.chat_template_of`)."""
    return [
        {
            "corpus": with_template(corpus, chat_template).model_dump_json(include=FIELDS),
            "fragments": json.dumps([dataclasses.asdict(f) for f in group]),
        }
        for corpus, groups in zip(corpora, grouped_fragments(corpora), strict=True)
        for group in groups or [[]]  # files may have become empty since they were checked
    ]


def with_template(corpus: Corpus, chat_template: str | None) -> Corpus:
    """The corpus, whose conversations are rendered by this template unless it has one of its own."""
    if corpus.chat_template is not None or (corpus.chat is None and corpus.completion is None):
        return corpus
    return corpus.model_copy(update={"chat_template": chat_template})


def on_tasks(tasks: list[dict[str, Any]], read: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """The Ray Data set of what `read` makes of rows such as those of `read_tasks`, each in a batch of its own and a
    task."""
    import ray

    return ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(read, batch_size=1)


def read_task(batch: dict[str, np.ndarray]) -> tuple[Corpus, list[Fragment]]:
    """What a row of `read_tasks` says, in a batch of one."""
    return Corpus(**json.loads(batch["corpus"][0])), [Fragment(**f) for f in json.loads(batch["fragments"][0])]


def grouped_fragments(corpora: list[Corpus]) -> list[list[list[Fragment]]]:
    """By corpus, what each task reads: TASK_BYTES, or more where there would be more than MOST_TASKS tasks in all."""
    plans = [plan_fragments(corpus) for corpus in corpora]
    total = sum(fragment.bytes for plan in plans for fragment in plan)
    return [group_fragments(plan, max(TASK_BYTES, total // MOST_TASKS)) for plan in plans]


def group_fragments(fragments: list[Fragment], most: int) -> list[list[Fragment]]:
    """Consecutive fragments together up to `most` bytes, so that ten thousand small files are not ten thousand
    tasks."""
    groups: list[list[Fragment]] = []
    size = most
    for fragment in fragments:
        if size + fragment.bytes > most or fragment.kind in ("hub", "installed"):
            groups.append([])
            size = 0
        groups[-1].append(fragment)
        size += fragment.bytes
    return groups

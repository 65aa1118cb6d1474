"""What the records of a corpus are: conversations, prompts with completions, preferences, or texts. By the names and
the values of their columns; where those do not tell, nothing is guessed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from align_ray.corpora.records import Unusable, messages_of, value_at
from align_ray.errors import ConfigError

TEXT_COLUMNS = ("text", "content")
CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
TURNS = ("data", *CONVERSATIONS)
"""Columns whose lists of texts are taken for turns; a list elsewhere may be anything."""
PAIRS = (
    ("instruction", ("input", "context"), ("output", "response")),  # Alpaca, Dolly
    ("prompt", (), ("completion", "response", "answer", "output")),
    ("question", ("context",), ("answer", "response")),
    ("query", (), ("response", "answer")),
    ("problem", (), ("solution", "answer")),
)
"""Prompt, what may stand beside it, and completion."""
SHORT = 40
"""Characters: values that are shorter and all different may be ids or titles."""


@dataclasses.dataclass(frozen=True)
class Recognised:
    """Fields of a corpus' configuration, and why."""

    fields: dict[str, Any]
    why: str


def recognise(records: list[dict[str, Any]], name: str) -> Recognised | None:
    """What the records are, where their columns tell; None where they do not. Raises ConfigError for data that no
    corpus can be made of."""
    if not records:
        return None
    columns = list(dict.fromkeys(column for record in records for column in record))

    def mostly(test: Callable[[Any], bool], column: str) -> bool:
        values = [v for record in records if (v := value_at(record, column)) is not None]
        return bool(values) and sum(map(test, values)) > 0.5 * len(values)

    def has_text(column: str) -> bool:
        return column in columns and mostly(lambda v: isinstance(v, str), column)

    if "label" in columns and {"prompt", "completion"} <= set(columns) and mostly(_is_label, "label"):
        raise ConfigError(
            f"corpus '{name}': its records have prompt, completion and a label, so that some completions are wanted "
            "and some are not; keep those that are wanted, in a file of their own."
        )
    for column in (*CONVERSATIONS, *columns):
        if column in columns and mostly(_is_conversation, column) and column not in ("chosen", "rejected", "prompt"):
            if "completion" in columns and mostly(_is_conversation, "completion"):
                continue
            return Recognised({"chat": {"messages": column}}, f"'{column}' holds conversations")
    for column in TURNS:
        if column in columns and mostly(_is_turns, column):
            return Recognised({"chat": {"messages": column}}, f"'{column}' holds the turns of conversations")
    if {"chosen", "rejected"} <= set(columns):
        return _preferred(mostly, has_text, columns)
    for prompt, beside, completions in PAIRS:
        completion = next((c for c in completions if c in columns), None)
        if completion is None or prompt not in columns:
            continue
        if mostly(_is_conversation, completion):
            return Recognised({"prompt": prompt, "completion": completion}, "prompts and completions as messages")
        if not has_text(prompt) or not has_text(completion):
            continue
        more = [c for c in beside if has_text(c)]
        asked = "\n".join(f"{{{c}}}" for c in (prompt, *more)) if more else prompt
        return Recognised({"prompt": asked, "completion": completion}, f"'{completion}' answers '{prompt}'")
    return None


def _preferred(mostly: Callable, has_text: Callable, columns: list[str]) -> Recognised | None:
    why = "preference pairs: 'chosen' is taken, 'rejected' is not"
    if mostly(_is_conversation, "chosen"):
        return Recognised({"chat": {"messages": "chosen"}}, why)
    if has_text("chosen") and "prompt" in columns and has_text("prompt"):
        return Recognised({"prompt": "prompt", "completion": "chosen"}, why)
    return Recognised({"column": "chosen"}, why) if has_text("chosen") else None


def text_columns(records: list[dict[str, Any]]) -> list[str]:
    """Columns with strings in them, nested ones as `outer.inner`."""
    found: list[str] = []
    for column in dict.fromkeys(column for record in records for column in record):
        values = [record.get(column) for record in records]
        inner = dict.fromkeys(name for value in values if isinstance(value, dict) for name in value)
        nested = [f"{column}.{name}" for name in inner]
        found += [
            name for name in (column, *nested) if any(isinstance(value_at(record, name), str) for record in records)
        ]
    return found


def doubtful(records: list[dict[str, Any]], column: str) -> str | None:
    """Why the only column with strings may not be the text; None where nothing speaks against it."""
    others = sorted(
        {c for r in records for c, v in r.items() if isinstance(v, list | dict) and c != column.partition(".")[0]}
    )
    if others:
        return f"its records also hold lists or structures ({', '.join(others)})"
    values = [v for r in records if isinstance(v := value_at(r, column), str)]
    if len(values) > 3 and len(set(values)) == len(values) and max(map(len, values)) < SHORT:
        return f"its values are short and all different, as {values[0]!r}"
    return None


def _is_conversation(value: Any) -> bool:
    try:
        return not isinstance(value, str) and any(isinstance(m, dict) for m in value or ()) and bool(messages_of(value))
    except (Unusable, TypeError):
        return False


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(turn, str) for turn in value)


def _is_label(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1, "0", "1", "true", "false")

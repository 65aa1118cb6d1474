"""From a record to a text: by a column, a template, a prompt and its completion, or a conversation.

A text may hold marks: what stands between the first and the second one, the third and the fourth, ... is what a model
is to say (a completion, an assistant's turns), the rest is context. A mark is the character NUL, which no text holds:
it is taken out of all that is read.
"""

import json
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from align_ray.config_corpora import Corpus

MARK = "\0"
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
"""Other names of roles."""
PLAIN_TEMPLATE = """\
{% for message in messages %}{{ message.role | capitalize }}: \
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}

{% endgeneration %}{% else %}{{ message.content }}

{% endif %}{% endfor %}"""
"""How a conversation is written where the tokenizer has no chat template: `User: ...`, `Assistant: ...`."""


class Unusable(Exception):
    """Why no text comes of a record: the name of the counter for it."""


def columns_of(corpus: Corpus) -> list[str]:
    """The columns that the corpus' text is made of; a nested one as `outer.inner`."""
    if corpus.chat is not None:
        return [corpus.chat.messages]
    if corpus.prompt is not None and corpus.completion is not None:
        return list(dict.fromkeys([*_named(corpus.prompt), *_named(corpus.completion)]))
    return _named(corpus.template) if corpus.template is not None else [corpus.column]


def needed_columns(corpus: Corpus) -> list[str]:
    """Those of them without which there is no text: of a prompt's template any may be missing or empty."""
    if corpus.prompt is not None and corpus.completion is not None:
        optional = _named(corpus.prompt) if is_template(corpus.prompt) else []
        return [column for column in columns_of(corpus) if column not in optional]
    return columns_of(corpus)


def render(corpus: Corpus, record: dict[str, Any]) -> str:
    """The text of a record, with marks where only a part of it counts. Raises Unusable."""
    if corpus.chat is not None:
        text = conversation(messages_of(value_at(record, corpus.chat.messages)), corpus.chat_template)
    elif corpus.prompt is not None and corpus.completion is not None:
        text = _prompt_and_completion(corpus, record)
    else:
        return filled(corpus.template, record) if corpus.template is not None else _column(corpus.column, record)
    if text.count(MARK) < 2:
        raise Unusable("no_completion")
    return text if corpus.mask == "completion" else unmarked(text)


def unmarked(text: str) -> str:
    """The text itself."""
    return text.replace(MARK, "")


def parts_of(text: str) -> list[tuple[str, bool]]:
    """A text's parts in order, each with whether it counts; all of a text without marks does."""
    pieces = text.split(MARK)
    return [(piece, i % 2 == 1 or len(pieces) == 1) for i, piece in enumerate(pieces) if piece]


def counted_characters(text: str) -> np.ndarray:
    """bool [n]: which characters of the unmarked text count."""
    return np.concatenate([np.full(len(piece), counts) for piece, counts in parts_of(text)] or [np.zeros(0, bool)])


def value_at(record: dict[str, Any], column: str) -> Any:
    """The value of a column, or of a nested one (`outer.inner`); None where it is not there."""
    if column in record:
        return record[column]
    value: Any = record
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def clean(text: str) -> str:
    """NUL and lone surrogates are legal in JSON; a tokenizer and Arrow take neither."""
    return text.replace("\0", "").encode("utf-8", errors="replace").decode()


def _column(column: str, record: dict[str, Any]) -> str:
    text = as_text(value_at(record, column))
    if text is None:
        raise Unusable("missing_column")
    return text


def is_template(given: str) -> bool:
    """Whether a field is a format string, not the name of a column."""
    return "{" in given


def _named(given: str) -> list[str]:
    """The columns that a template names, or the column itself."""
    if not is_template(given):
        return [given]
    return list(dict.fromkeys(field for _, field, _, _ in string.Formatter().parse(given) if field))


def filled(template: str, record: dict[str, Any], optional: bool = False) -> str:
    """A format string with a record's values; with `optional`, what is missing is empty. Raises Unusable."""
    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if field:
            value = as_text(value_at(record, field))
            if value is None and not optional:
                raise Unusable("missing_column")
            parts.append(value or "")
    return "".join(parts)


def as_text(value: Any) -> str | None:
    """A string as it is, a list of strings as its lines, nothing else."""
    if isinstance(value, list | tuple) and value and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    return clean(value) if isinstance(value, str) else None


def _prompt_and_completion(corpus: Corpus, record: dict[str, Any]) -> str:
    prompt, completion = corpus.prompt, corpus.completion
    assert prompt is not None and completion is not None
    said = value_at(record, completion) if not is_template(completion) else None
    if _holds_messages(said):
        asked = value_at(record, prompt)
        before = messages_of(asked) if _holds_messages(asked) else [{"role": "user", "content": as_text(asked) or ""}]
        return conversation([*before, *messages_of(said)], corpus.chat_template)
    if is_template(prompt):
        asked_text = filled(prompt, record, optional=True).strip("\n")
        if not any(as_text(value_at(record, column)) for column in _named(prompt)):
            raise Unusable("missing_column")
    else:
        asked_text = _column(prompt, record)
    answer = filled(completion, record) if is_template(completion) else _column(completion, record)
    if not answer.strip():
        raise Unusable("no_completion")
    if asked_text and not asked_text[-1].isspace() and not answer[0].isspace():
        asked_text += corpus.separator
    return f"{asked_text}{MARK}{answer}{MARK}"


# --- conversations ----------------------------------------------------------------------------------------------------


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(m, dict) for m in value)


def messages_of(value: Any) -> list[dict[str, Any]]:
    """Messages with `role` and `content`, of a list of those, of `from` and `value`, or of texts that user and
    assistant say in turn. Content in parts is their text. Raises Unusable."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":  # a list that was stored as JSON
        try:
            value = json.loads(value)
        except ValueError:
            raise Unusable("missing_column") from None
    if not isinstance(value, list | tuple) or not value:
        raise Unusable("missing_column")
    found = []
    for i, message in enumerate(value):
        if isinstance(message, str):
            message = {"role": "assistant" if i % 2 else "user", "content": message}
        if not isinstance(message, dict):
            raise Unusable("missing_column")
        role = message.get("role", message.get("from"))
        content = _content(message.get("content", message.get("value")))
        calls = message.get("tool_calls")
        if not isinstance(role, str) or (content is None and not calls):
            raise Unusable("missing_column")
        kept = {"role": ROLES.get(role, role), "content": clean(content or "")}
        extra = {k: message[k] for k in ("tool_calls", "name", "tool_call_id") if message.get(k)}
        found.append(kept | extra)
    return found


def _content(value: Any) -> str | None:
    """A message's text, or that of its parts; None where it holds none (an image alone)."""
    if isinstance(value, list | tuple):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        found = [text for text in texts if isinstance(text, str)]
        return "".join(found) if found else None
    return value if isinstance(value, str) else None


def conversation(messages: list[dict[str, Any]], template: str | None) -> str:
    """Messages as one text by a chat template, the assistant's turns marked: as the template itself marks them
    (`{% generation %}`), else by rendering the messages before each, with what the template puts before an answer.
    Raises Unusable where a turn is not found so, or the template refuses the conversation."""
    write = _renderer(template or PLAIN_TEMPLATE)
    if template is None:  # the plain one knows nothing of tools
        messages = [
            m if m["content"] or not m.get("tool_calls") else {**m, "content": json.dumps(m["tool_calls"])}
            for m in messages
        ]
    try:
        text, spans = write(messages, True, False)
        if not spans:
            spans = [
                _turn(messages, i, text, write) for i, message in enumerate(messages) if message["role"] == "assistant"
            ]
    except Unusable:
        raise
    except Exception:  # a template raises what it likes, for roles that do not alternate for example
        raise Unusable("unreadable") from None
    for start, stop in sorted(spans, reverse=True):
        text = f"{text[:start]}{MARK}{text[start:stop]}{MARK}{text[stop:]}"
    return text


def template_mistake(template: str) -> str | None:
    """What is wrong with the syntax of a chat template; None where nothing is."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        _renderer(template)([{"role": "user", "content": ""}], False, False)
    except TemplateSyntaxError as error:
        return str(error)
    except (TemplateError, TypeError, ValueError):
        return None  # of this conversation; its records say more
    return None


def _turn(messages: list[dict[str, Any]], i: int, text: str, write: Callable) -> tuple[int, int]:
    """Where in the text the i-th message's own text is."""
    (until, _), (before, _) = write(messages[: i + 1], False, False), write(messages[:i], False, True)
    if not (text.startswith(until) or i + 1 == len(messages)) or not until.startswith(before):
        raise Unusable("no_completion")
    return len(before), len(until)


@lru_cache(maxsize=8)
def _renderer(template: str) -> Callable[[list[dict], bool, bool], tuple[str, list[tuple[int, int]]]]:
    """A function of (messages, whether spans are wanted, whether an answer is begun) that gives the text and the spans
    that the template marks."""
    import re

    from transformers.utils.chat_template_utils import render_jinja_template

    marks = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None

    def write(messages: list[dict], spans: bool, begun: bool) -> tuple[str, list[tuple[int, int]]]:
        wanted = spans and marks
        texts, found = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=begun,
            return_assistant_tokens_mask=wanted,
        )
        return texts[0].replace(MARK, ""), [(a, b) for a, b in found[0]] if wanted else []

    return write

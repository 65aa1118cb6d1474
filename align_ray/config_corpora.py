"""The configuration of a corpus: where its text is, how a record is read, and a target's task."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    model_serializer,
    model_validator,
)

from align_ray.config_fields import Model, Name
from align_ray.credentials import Place


class Chat(Model):
    """Conversations, rendered by a chat template."""

    messages: str = "messages"
    """The column of the messages: a list of `{role, content}` or `{from, value}`, or of texts that user and assistant
    say in turn."""

    @model_validator(mode="before")
    @classmethod
    def _column(cls, value: Any) -> Any:
        return {"messages": value} if isinstance(value, str) else value


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); fix it") from None
    return pattern


class Choices(Model):
    """A task: of several choices the model finds one most likely, by its log-likelihood per byte after the context."""

    kind: Literal["choices"]
    """What is done: of several choices one is right."""
    context: str
    """A column, or a format string over columns, for example "{context}\\nQuestion: {question}\\nAnswer:"."""
    choices: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)]
    """The column of an item's choices (a list of texts), or the same choices for all items, for example [yes, no]."""
    answer: str = "answer"
    """The column of the right one: its text, its number from 0, or its letter from A."""
    separator: str = " "
    """Between context and choice, where the context does not end in white space."""
    items: PositiveInt = 500
    """Items at most, of the half of the records that is held out."""


class ExactMatch(Model):
    """A task: after the context the model writes an answer, each token its likeliest, whose final answer must be the
    record's. The score beside it is the log-likelihood per byte of the record's whole answer."""

    kind: Literal["exact_match"]
    """What is done: an answer is written."""
    context: str
    """A column, or a format string over columns, for example "Question: {question}\\nAnswer:"."""
    answer: str = "answer"
    """The column of the right answer, in full."""
    pattern: Annotated[str, AfterValidator(_compiles)] = r"####\s*(\S+)"
    """A regular expression that finds the final answer, in the record's and in what is written: its first group, or
    all that it matches, at the first place. Default: what follows `####`, as in GSM8K. Numbers are compared as such,
    without commas, a dollar sign before and a full stop after."""
    stop: Annotated[str, Field(min_length=1)] = "\n\n"
    """What ends an answer that is written."""
    max_new_tokens: PositiveInt = 128
    """Tokens of it at most."""
    separator: str = " "
    """Between context and the record's answer, where the context does not end in white space."""
    items: PositiveInt = 200
    """Items at most, of the half of the records that is held out."""


class LmEval(Model):
    """A task of EleutherAI's lm-eval, whose items are the task's own, not the target's records; needs the extra
    `lm-eval` (`pip install 'align-ray[lm-eval]'`) on every node, and a local file and its data at the same place
    there. A multiple-choice task gets the margin of its choices for a score, as `choices` does; another one is
    compared by its metric, if that is a mean over items, else by the loss."""

    kind: Literal["lm_eval"]
    """What is done: as lm-eval does it."""
    name: Annotated[str, Field(min_length=1)]
    """A task's YAML file, or the name of one that comes with lm-eval, whose data is then read from the hub."""
    metric: str | None = None
    """The metric that counts, METRIC or METRIC,FILTER as lm-eval prints it. Default: the first of the task."""
    items: PositiveInt = 500
    """Items at most: the first of the task's test split (of its validation split where it has no other)."""
    trust_remote_code: bool = False
    """Run Python that the task file names (`!function`, `class`, a metric of the hub, ...). Off: such a task is
    refused."""


class Corpus(Model):
    """One corpus: where its records are and how a record becomes a text: by `column`, `template`, `chat`, or `prompt`
    and `completion`."""

    name: Name
    """Distinct among all targets and candidates; used in every table and file name."""
    source: Place | Annotated[list[Place], Field(min_length=1)]
    """A file, folder or glob (`*`, `?`, `[a-z]`, `{a,b}`, and `**/` for any folders) on any pyarrow file system
    (`data/*.jsonl.gz`, `s3://bucket/x.parquet`), or a list of them; a data set of the Hugging Face hub
    (`hf://owner/name`, or `hf://` plus a local folder in the hub's layout); or `installed:NAME`."""
    column: str = "text"
    """The column that holds the text, or a nested one as `doc.body` (ignored where one of the next fields is given)."""
    template: str | None = None
    """A format string over the columns, for example "{informal}\\n{formal}"."""
    chat: Chat | None = None
    """Conversations: `{messages: COLUMN}`, or the column alone. What counts is what the assistant says."""
    prompt: str | None = None
    """With `completion`: a column, or a format string over columns, each of which may be missing or empty. A list of
    messages is rendered by the tokenizer's chat template."""
    completion: str | None = None
    """What follows the prompt, a column or a format string: what counts."""
    chat_template: str | None = None
    """A Jinja template for conversations. Default: the tokenizer's own; where it has none, `User: ...` and
    `Assistant: ...` with a blank line between."""
    separator: str = "\n"
    """Between prompt and completion, where neither has white space there."""
    allow_missing: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the records that may be left out (a missing column, broken, empty); beyond it the run stops."""
    mask: Literal["completion", "all"] = "completion"
    """What counts of a conversation, or of prompt and completion, in embeddings, word counts and losses: the
    assistant's tokens, or all."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What one document is in plain-text files: the file, a paragraph (blank lines between) or a line."""
    split: str = "train"
    """hf:// only: the split."""
    subset: str | None = None
    """hf:// only: the data set's configuration name."""
    streaming: bool = True
    """hf:// only: stream the data set instead of downloading it whole."""
    task: Annotated[Choices | ExactMatch | LmEval, Field(discriminator="kind")] | None = None
    """Targets only: what the model is to do with the records, scored before and after every training, beside the
    loss."""

    @model_serializer(mode="wrap")
    def _without_no_task(self, dump: Any) -> dict[str, Any]:
        """Results of a corpus without a task keep the keys from before there were tasks."""
        return {k: v for k, v in dump(self).items() if k != "task" or v is not None}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion belong together; give both")
        ways = {"template": self.template, "chat": self.chat, "prompt": self.prompt}
        if len(given := [name for name, value in ways.items() if value is not None]) > 1:
            raise ValueError(f"{' and '.join(given)} are two ways to make a text of a record; keep one")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if isinstance(self.source, list):
            if alone := [s for s in self.source if s.startswith("installed:") or is_hub_dataset(s)]:
                raise ValueError(f"a list of sources is one of files, which {alone[0]} is not; make it its own corpus")
            if len(places := {_place(source) for source in self.source}) > 1:
                named = " and ".join(sorted(places))
                raise ValueError(f"the sources of one corpus are in one place, not {named}; make two corpora of them")
        return self

    @property
    def sources(self) -> list[str]:
        """All of them, one too."""
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def where(self) -> str:
        """The sources, for sentences."""
        return ", ".join(self.sources)


def _place(source: str) -> str:
    """The file system of a source, with its options: what is read is opened by one."""
    parts = urlsplit(source)
    return (
        f"{parts.scheme}://{parts.netloc}{'?' if parts.query else ''}{parts.query}"
        if "://" in source
        else "local files"
    )


def is_hub_dataset(source: str) -> bool:
    """Whether `datasets` loads it, by a name: `hf://datasets/...` are files."""
    return source.startswith("hf://") and not source.startswith("hf://datasets/")


class Replay(Corpus):
    """General text that goes into every training beside the text in question, so that the model forgets less of what
    it knew. Half of its documents are held out: the loss on them shows what is forgotten all the same."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the rows of every batch, at least one and never all. `finetune.tokens` counts the other rows alone."""

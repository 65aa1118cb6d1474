"""A first configuration: look at each source, name it, find its text, and write down what else can be set."""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.text import Text

from align_ray.config import Config, to_yaml
from align_ray.config_corpora import Corpus
from align_ray.config_file import validated
from align_ray.corpora.contents import Contents
from align_ray.corpora.examples import examples, marked
from align_ray.corpora.formats import TEXT_COLUMNS, doubtful, recognise, text_columns
from align_ray.corpora.sources import check_corpus, first_records, plan_fragments
from align_ray.errors import ConfigError
from align_ray.mixture.constraints import round_tokens

FEW_FILES = 32
"""So many plain-text files or fewer are read by paragraph: a file each would give too few documents."""
SPLITS = {"targets": ("test", "validation", "train"), "candidates": ("train",)}
"""Splits of a hub data set, the first that it has is taken: what a model is evaluated on is seldom the training
split."""

SPLIT_NAMES = {"train", "test", "validation", "valid", "dev", "data"}
"""Names of files that say less than the folder's name."""

T = TypeVar("T")
Ask = Callable[[str, str | None, Callable[[str], T]], T]
"""Put a question with a default answer; gives what the check makes of the answer, and asks again when that raises
UserError."""

NAMED = re.compile(r"([^/\\:*?=]+)=(.+)", re.DOTALL)


def look(
    given: str,
    role: Literal["targets", "candidates"],
    taken: Collection[str],
    columns: dict[str, str],
    ask: Ask | None,
    tell: Callable[[str], None] = lambda line: None,
):
    """The fields of one corpus from SOURCE or NAME=SOURCE (a source with "=" in its first part is written ./a=b).

    `taken`: names in use. `columns`: by name, the column or template to take. `ask`: asked where more than one column,
    split or subset may be meant; None without a terminal. `tell`: told what records were recognised as. Raises
    UserError where nothing can be read or it stays open what is meant.
    """
    named = NAMED.fullmatch(given)
    name, source = named.groups() if named else (proposed_name(given, taken), given)
    corpus: dict[str, Any] = {"name": name, "source": source}
    where = f"--{role.removesuffix('s')}"
    validated(Corpus, corpus, where)  # before anything is read or said: a URI may carry a credential
    if source.startswith("hf://"):
        corpus |= _hub_fields(corpus, SPLITS[role], ask)
    kinds = [f.kind for f in plan_fragments(validated(Corpus, corpus, where))]
    if set(kinds) == {"text"}:
        corpus |= {"sample_by": "paragraph" if len(kinds) <= FEW_FILES else "document"}
    elif set(kinds) != {"installed"}:
        corpus |= _text_fields(corpus, columns.get(name), ask, tell)
    check_corpus(validated(Corpus, corpus, where))
    return corpus


def proposed_name(source: str, taken: Collection[str] = ()) -> str:
    """A valid name that is not taken, from the last parts of a path or URI without its suffixes and globs."""
    parts = [p for p in re.split(r"[/\\:]", source.partition("?")[0]) if p and "*" not in p][-2:]
    parts[-1:] = [p.removesuffix("".join(PurePosixPath(p).suffixes)) for p in parts[-1:]]
    *parents, last = [_plain(p) for p in parts] or [""]
    parent, last = "".join(parents), last or "corpus"
    names = [last, f"{parent}-{last}"] if last not in SPLIT_NAMES else [parent, f"{parent}-{last}", last]
    names += [f"{last}-{i}" for i in range(2, len(taken) + 3)]
    return next(n for n in names if n and not n.startswith("-") and n not in taken)


def _plain(text: str) -> str:
    ascii_ = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_).strip("._-")


def _hub_fields(corpus: dict[str, str], preferred: tuple[str, ...], ask: Ask | None) -> dict[str, str]:
    import datasets

    name, fields = corpus["source"].removeprefix("hf://"), {}
    try:
        subsets = datasets.get_dataset_config_names(name)
        if len(subsets) > 1:
            fields["subset"] = _choice(corpus, "subset", subsets, ("default",), ask)
        splits = datasets.get_dataset_split_names(name, fields.get("subset"))
    except ConfigError:
        raise
    except Exception:  # the hub's client has a class for each reason; planning the corpus says which
        return fields
    return {**fields, "split": _choice(corpus, "split", splits, preferred, ask)}


def _choice(corpus: dict[str, str], field: str, options: list[str], preferred: tuple[str, ...], ask: Ask | None) -> str:
    likely = next((o for o in (*preferred, *options[: len(options) == 1]) if o in options), None)
    if ask is None or len(options) == 1:
        if likely is None:
            raise ConfigError(
                f"corpus '{corpus['name']}': {corpus['source']} has the {field}s {', '.join(options)}; run align-ray "
                "init on a "
                f"terminal to be asked, or write the field '{field}' of a configuration."
            )
        return likely

    def check(answer: str) -> str:
        if answer not in options:
            raise ConfigError(f"one of {', '.join(options)}.")
        return answer

    return ask(f"{corpus['name']}: which {field} ({', '.join(options)})", likely, check)


def _text_fields(
    corpus: dict[str, Any], wanted: str | None, ask: Ask | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """How a record becomes a text: as asked for, as its columns tell, by the only one possible, or as the user says."""

    def check(answer: str) -> dict[str, str]:
        fields = {"template": answer.replace("\\n", "\n")} if "{" in answer else {"column": answer}
        check_corpus(validated(Corpus, corpus | fields, f"corpus '{corpus['name']}'"))
        return fields

    if wanted is not None:
        return check(wanted)
    records = first_records(Corpus.model_validate(corpus))
    found = recognise(records, corpus["name"])
    if found is not None:
        check_corpus(validated(Corpus, corpus | found.fields, f"corpus '{corpus['name']}'"))
        tell(f"{corpus['name']}: {found.why}")
        return found.fields
    strings = text_columns(records)
    usual = [n for n in TEXT_COLUMNS if n in strings]
    doubt = doubtful(records, strings[0]) if len(strings) == 1 and not usual else None
    if usual or (len(strings) == 1 and doubt is None):
        return {"column": (usual or strings)[0]}
    if not strings:  # nothing to choose from: checking the default column names what is there
        return {"column": "text"}
    template = "\\n".join(f"{{{n}}}" for n in strings if n.replace(".", "_").isidentifier())
    columns = f"the text column {strings[0]}, but {doubt}" if doubt else f"the text columns {', '.join(strings)}"
    if ask is None:
        raise ConfigError(
            f"corpus '{corpus['name']}': {corpus['source']} has {columns}; say what the text is with --column "
            f"'{corpus['name']}={strings[0]}', or a template such as --column '{corpus['name']}={template or '{a}'}'."
        )
    question = f"{corpus['name']} has {columns}. Which one, or what template of them"
    return ask(question, template or strings[0], check)


def shown_examples(corpus: dict[str, Any]) -> list[Text]:
    """The first texts of a corpus, in one line each; where completions alone count, those between marks and whole."""
    made = Corpus.model_validate(corpus)
    if made.chat is None and made.completion is None:
        return [Text(f"  | {marked(parts)}", style="dim") for parts in examples(made, shown=LINE)]
    found: list[Text] = []
    for parts in examples(made):
        shown = Text("  ")
        for part, counts in parts:
            lines = (f"\u00ab{part.strip()}\u00bb\n" if counts else part).replace("\n", "\n  ")
            shown.append(lines, style="bold green" if counts else "dim")
        found.append(shown)
    head = "  what counts stands in \u00ab\u00bb; conversations are written by the probe's chat template if it has one"
    return [Text(head), *found]


LINE = 110
"""Characters of an example in one line."""
BYTES_A_TOKEN = 4.0


def budget_for(candidates: list[Contents]) -> tuple[int, str]:
    """A token budget, and why: about what the candidates hold together, so that none has to be repeated and some may
    be; the default where a source does not tell its size."""
    if not all(found.text_bytes for found in candidates):
        default = Config.model_fields["search"].default.token_budget
        return default, "the default, since not every source tells its size; set what you mean to train on"
    tokens = round_tokens(sum(found.text_bytes for found in candidates) / BYTES_A_TOKEN)
    return tokens, (
        f"about what the candidates hold ({BYTES_A_TOKEN:g} bytes a token); --tokens sets what you mean to train on, "
        "and with much more the repetition limit decides the mixture"
    )


# --- the file ---------------------------------------------------------------------------------------------------------

HEADER = """\
# A study for align-ray, written by `align-ray init`. Sources and folders are relative to where align-ray is started.
# A field with "#" and no space before it has its default: remove the mark, and that of its section, to change it.
"""
OPTIONS = {
    "": ("seed",),
    "probe": ("revision",),
    "sampling": ("sequence_length", "batch_size", "batches", "packing"),
    "embedding": ("estimator", "draws"),
    "search": ("objective", "max_epochs", "weights", "max_corpora", "prior"),
    "choose": ("by",),
    "finetune": ("tokens", "learning_rate", "seeds"),
    "tracking": ("uri", "experiment"),
    "cluster": ("address", "use_gpu", "max_actors"),
}
"""By section, the fields that are shown with their defaults where they are not in use."""


def render(asked: dict[str, Any]) -> str:
    """The commented YAML of a configuration; `asked`: the fields in use, which the file gives back when it is
    loaded."""
    fields = Config.model_fields
    parts = [HEADER]
    for name in ("name", "output"):
        parts.append(_shown(fields[name], name, asked[name]))
    parts += [_shown(fields[n], n, fields[n].default, "#") for n in OPTIONS[""] if n not in asked]
    corpus = [
        f"{n}: {summary(f)}" for n, f in Corpus.model_fields.items() if n not in ("name", "source") and f.description
    ]
    parts.append("\n" + "".join(_comment(line) for line in ("Fields of a corpus beside `name` and `source`:", *corpus)))
    for role in ("targets", "candidates"):
        parts.append(f"{role}:\n" + textwrap.indent(to_yaml(asked[role]), "  "))
    for section in list(OPTIONS)[1:]:
        given, model = asked.get(section, {}), type(fields[section].default)
        mark = "" if given else "#"
        parts.append(f"\n{mark}{section}:\n")
        parts += [_shown(model.model_fields[n], n, value, "", "  ") for n, value in given.items()]
        rest = [n for n in OPTIONS[section] if n not in given]
        parts += [_shown(model.model_fields[n], n, model.model_fields[n].default, "#", "  ") for n in rest]
    return "".join(parts)


def summary(field: FieldInfo) -> str:
    """The first sentence of a field's description, and its choices."""
    text = re.split(r"(?<=\.) (?=[A-Z`])", " ".join((field.description or "").split()))[0]
    choices = ", ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
    return f"{text} One of {choices}." if choices and choices.partition(",")[0] not in text else text


def _shown(field: FieldInfo, name: str, value: Any, mark: str = "", indent: str = "") -> str:
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return textwrap.indent(
        _comment(summary(field)) + mark + to_yaml({name: plain}, None if isinstance(plain, list) else False), indent
    )


def _comment(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="# ") + "\n" if text else ""


def write(path: Path, asked: dict[str, Any]) -> Config:
    """Check the fields asked for and write the file; returns what it holds. Raises ConfigError."""
    config = validated(Config, asked, str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(asked), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file.") from None
    return config

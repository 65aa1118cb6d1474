"""Read a configuration: YAML in, a validated Config out, or one sentence that names the file, the field and the fix."""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from align_ray.config import Config
from align_ray.config_fields import Model
from align_ray.errors import ConfigError

EMBEDDED_DEFAULT = Path(__file__).with_name("demo.yaml")

M = TypeVar("M", bound=Model)

REMOVED = {
    "predict.learning_rates": "is finetune.learning_rate since 0.2.0, a list or one number; move it there",
    "search.bootstrap": "is called search.resamples since 0.2.0; rename it",
    "search.sampler": "was removed in 0.2.0: the search always uses Optuna's TPE; delete it",
    "embedding.pooling: winsorised": "was removed in 0.2.0: it breaks the additivity of embeddings; set unit or mean",
    "predict.poolings: winsorised": "was removed in 0.2.0: it breaks the additivity of embeddings; name unit or mean",
    "search.targets: sum": "was renamed in 0.2.0: it always was the mean of the targets; set mean",
}
"""What a configuration could hold in earlier versions, FIELD or FIELD: VALUE, and what takes its place."""


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read and validate a YAML configuration; None gives the embedded default.

    `overrides` maps dotted fields to values ({"search.trials": 8}); relative sources and outputs are taken from the
    current directory. Raises ConfigError with one sentence that names the file and the field.
    """
    path = Path(path) if path else EMBEDDED_DEFAULT
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, no date, nested without end
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); fix the syntax.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping of fields such as 'targets' and 'candidates'.")
    for field, value in (overrides or {}).items():
        *parents, last = field.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {field}: '{parent}' is not a section; name one field of a section.")
        section[last] = value
    return validated(Config, data, str(path))


def validated(model: type[M], data: Any, where: str) -> M:
    """`data` as a `model`; raises ConfigError that begins with `where` and has a sentence for every field that is
    wrong, which it names."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        sentences = [_sentence(first, model) for first in _by_field(error.errors())]
    if len(sentences) == 1:
        raise ConfigError(f"{where}: {sentences[0]}")
    shown = "".join(f"\n  {sentence}" for sentence in sentences[:MOST_SHOWN])
    more = f"\n  and {len(sentences) - MOST_SHOWN} more" if len(sentences) > MOST_SHOWN else ""
    raise ConfigError(f"{where}: {len(sentences)} mistakes:{shown}{more}")


MOST_SHOWN = 20
"""Mistakes of one configuration that are listed."""


KIND = re.compile(r"(list|dict|tuple|literal|nullable|function-\w+|constrained-\w+)\[")
"""How pydantic calls one of several kinds that a field may be of, in the place of an error."""


def _by_field(errors: list[Any]) -> list[Any]:
    """One error a field; where a field may be of several kinds (`kind[...]` in its place), that of the kind which the
    value came furthest with: for a list the error of its element, not that it is no text."""
    left, found = list(errors), []
    while left:
        loc = left[0]["loc"]
        kind = next((i for i, part in enumerate(loc) if i and KIND.match(str(part))), None)
        if kind is None or left[0]["type"] == "extra_forbidden":
            found.append(left.pop(0))
            continue
        of_field = [e for e in left if e["loc"][:kind] == loc[:kind]]
        found.append(max(of_field, key=lambda e: len(e["loc"])))
        left = [e for e in left if e not in of_field]
    return found


def _sentence(first: Any, model: Any) -> str:
    """A validation error as one sentence with a remedy."""
    field = ".".join(str(part) for part in first["loc"] if not KIND.match(str(part)))
    value = first["input"]
    parts = [part for part in first["loc"] if isinstance(part, str)]
    named = {".".join(parts), ".".join(parts[:-1])}  # of a field with several kinds of value, the last part is the kind
    for old in (*named, *(f"{name}: {value}" for name in named if isinstance(value, str))):
        if old in REMOVED:
            return f"'{old}' {REMOVED[old]}."
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        for part in parents:  # a list's numbers and a mapping's own keys leave it as it is
            if part in getattr(model, "model_fields", {}):
                annotation = model.model_fields[part].annotation
                model = [annotation, *get_args(annotation)][-1]
        known = list(getattr(model, "model_fields", {}))
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known fields: {', '.join(known)}."
        return f"unknown field {field!r}; {hint}"
    if first["type"] == "missing":
        return f"the field '{field}' is missing; add it."
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return f"{message}."
    sentence = message if message.startswith("the URI") else message[0].lower() + message[1:]
    # not repeated: a URI, wherever it stands, may carry a credential, and aliases can make a small file's list endless
    if (isinstance(value, dict | list) and value) or "://" in str(value):
        return f"field {field!r}: {sentence}."
    return f"field {field!r} is {reprlib.repr(value)}: {sentence}."

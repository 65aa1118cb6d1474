"""The configuration reference, docs/configuration.md, written from the models of `config.py` and
`config_corpora.py`.

    python -m align_ray.cli.config_page > docs/configuration.md

It reads pydantic's JSON schema: types, defaults and bounds as they are validated, descriptions from the fields'
docstrings.
"""

import json
from typing import Any

from align_ray.config import Config

HEAD = """# Configuration

<!-- Made by `python -m align_ray.cli.config_page > docs/configuration.md` from align_ray/config.py: change that. -->

A study is one YAML file. Three fields must be given, all others have defaults:

```yaml
output: runs/my-study
targets:
  - {name: proofs, source: data/proofs.jsonl}
candidates:
  - {name: textbook, source: data/textbook.jsonl}
  - {name: web, source: "data/web/*.parquet"}
```

- Relative paths are taken from the current directory.
- `--set FIELD=VALUE` overrides a field on the command line, sections by dots: `--set search.token_budget=5000000`. The
  value is YAML.
- An unknown field, a value out of bounds and fields that contradict each other are refused before anything is computed,
  in one sentence that names the field.
- The resolved configuration of the last result, defaults included, is kept as `config.yaml` in the output folder.
- Credentials do not belong here: a URI that carries one is refused. See [running](running.md#credentials).

"Required" in the column of defaults means that the field must be given; `null` that it is empty.
"""


def reference() -> str:
    """The whole page, Markdown."""
    schema = Config.model_json_schema()
    sections = {"": schema} | _sections(schema, schema["$defs"], "")
    return "\n".join([HEAD, *(_section(path, model, sections) for path, model in sections.items())])


def _sections(model: dict[str, Any], models: dict[str, Any], above: str) -> dict[str, dict[str, Any]]:
    """The models that a model's fields hold, by the field's dotted path, in the order of the fields, nested ones
    after their parent; a model met twice is listed once."""
    found: dict[str, dict[str, Any]] = {}
    for name, field in model["properties"].items():
        for reference in _references(field):
            inner = models[reference]
            path = f"{above}{name}"
            kind = inner["properties"].get("kind", {}).get("const")
            path = f"{path}: {kind}" if kind else path  # one of several
            if not any(inner is other for other in found.values()):
                found |= {path: inner} | _sections(inner, models, f"{above}{name}.")
    return found


def _references(field: Any) -> list[str]:
    """Names of the models that a field's schema refers to."""
    if isinstance(field, dict):
        own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
        return own + [name for value in field.values() for name in _references(value)]
    return [name for value in field for name in _references(value)] if isinstance(field, list) else []


def _section(path: str, model: dict[str, Any], sections: dict[str, dict[str, Any]]) -> str:
    required = model.get("required", [])
    places = {inner["title"]: other for other, inner in sections.items()}
    rows = []
    for name, field in model["properties"].items():
        kind = _type(field, places)
        default = "Required" if name in required else "" if _references(field) else f"`{json.dumps(field['default'])}`"
        text = _inline(field.get("description") or _described(field, places, sections))
        rows.append(f"| `{name}` | {kind} | {default} | {text} |")
    title = f"## {_heading(path)}\n\n{_inline(model['description'])}" if path else "## The study"
    return "\n".join([title, "", "| field | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _described(field: dict[str, Any], places: dict[str, str], sections: dict[str, dict[str, Any]]) -> str:
    """The text of a field that holds a section and has none of its own: the section's first sentence."""
    names = _references(field)
    return sections[places[names[0]]]["description"].partition(". ")[0] if names else ""


def _heading(path: str) -> str:
    return {"targets": "targets, candidates"}.get(path, path)


def _anchor(path: str) -> str:
    return _heading(path).replace(", ", "-").replace(": ", "-").replace(".", "")


def _type(field: dict[str, Any], places: dict[str, str]) -> str:
    """A schema in words, with its bounds."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name.lower()}](#{_anchor(places[name])})"
    for several in ("anyOf", "oneOf"):
        if several in field:
            return " or ".join(_type(f, places) for f in field[several])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    if kind == "array":
        least = f" ({field['minItems']} or more)" if "minItems" in field else ""
        return f"list{least} of {_type(field['items'], places)}"
    if kind == "object":
        values = next(iter(field.get("patternProperties", {}).values()), field.get("additionalProperties"))
        return f"mapping of name to {_type(values, places)}" if isinstance(values, dict) else "mapping"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {field[key]:g}" for key, word in bounds.items() if key in field]
    name = {"null": "`null`", "string": "text"}.get(kind, kind)
    letters = f" matching `{field['pattern']}`" if "pattern" in field else ""
    return " ".join([name, " and ".join(limits)]).strip() + letters


def _inline(text: str) -> str:
    """One line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")

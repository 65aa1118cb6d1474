"""The answers that an output folder holds: a configuration each, with the results that belong to it.

OUTPUT/answers/ID.json says of an answer its configuration, when it was last added to, where that was started, and the
key of every result (OUTPUT/answers/FILE-KEY.json). So an answer can be read, listed and compared whatever was asked or
drawn since. The ID is a digest of the configuration without what says how or where work is done.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from align_ray.config import Config, digest
from align_ray.store import Parsed, Store

NO_MATTER = ("name", "output", "text_in_results", "tracking", "cluster", "cost")
"""Sections and fields that no number depends on."""
INDIFFERENT = {
    "finetune": (
        "workers", "shard", "gpus_per_worker", "keep_weights", "checkpoint_every", "micro_batch_size",
        "checkpoint_layers", "seeds",
    )
}  # fmt: skip
"""By section, fields that say how or where work is done: no result depends on them but for rounding (and for what
dropout draws on several workers). Results over all `seeds` name them beside the section (`stages.answer_key`)."""
CORPORA = ("targets", "candidates")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A configuration, as a JSON value, and its results in a store."""

    store: Store
    id: str
    config: dict[str, Any]
    made: str
    """When its last result was made, ISO 8601, UTC."""
    version: str
    started_in: str
    """The folder that relative sources are relative to."""
    results: dict[str, str]
    """By file, `search` for example, the key of the result."""

    def result(self, file: str, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        """What `parse` makes of a result; None where this answer has none."""
        key = self.results.get(file)
        return self.store.find(f"answers/{file}-{key}.json", parse) if key else None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field that two configurations have different values of; of a corpus that only one has, `candidates` or
    `targets`, its name, and None. As text it says of the configuration after what it has in place of the one before."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.field in CORPORA:
            return f"{self.field} {f'without {self.before}' if self.after is None else f'with {self.after}'}"
        return f"{self.field} {shown(self.after)} in place of {shown(self.before)}"


def shown(value: Any) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def answer_id(config: Config) -> str:
    """Eight hexadecimal digits that tell the answers of a folder apart."""
    values = config.model_dump(mode="json", exclude=set(NO_MATTER))
    for section, fields in INDIFFERENT.items():
        values[section] = {k: v for k, v in values[section].items() if k not in fields or k == "seeds"}
    return digest(values, 8)


def remember(store: Store, config: Config, version: str, results: dict[str, str]) -> None:
    """Write down that results belong to a configuration; `results`: their keys by file."""
    name = f"answers/{answer_id(config)}.json"
    known = store.find_json(name)
    before = known.get("results", {}) if isinstance(known, dict) else {}
    value = {
        "config": config.model_dump(mode="json"),
        "made": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": version,
        "started_in": os.getcwd(),
        "results": before | results,
    }
    store.write_json(name, value)


def answers(store: Store) -> list[Answer]:
    """All of a store that are whole, the last one first; results of versions that wrote none down are in none."""
    found = []
    for name in store.names("answers"):
        stem = name.removesuffix(".json")
        if "-" not in stem and isinstance(value := store.find_json(f"answers/{name}"), dict):
            known: dict[str, Any] = {f.name: value.get(f.name) for f in dataclasses.fields(Answer)} | {
                "store": store,
                "id": stem,
            }
            if all(part is not None for part in known.values()):
                found.append(Answer(**known))
    return sorted(found, key=lambda answer: (answer.made, answer.id), reverse=True)


def differences(before: dict[str, Any], after: dict[str, Any], fields: tuple[str, ...] = ()) -> list[Difference]:
    """What two configurations differ in that a number may depend on; `fields`: sections or single fields, default all.

    Corpora are compared by their names, other fields by their dotted ones."""
    found = []
    for role in CORPORA:
        if fields and role not in fields:
            continue
        one, other = ({c["name"]: c for c in config[role]} for config in (before, after))
        found += [Difference(role, name, None) for name in one if name not in other]
        found += [Difference(role, None, name) for name in other if name not in one]
        for name in one:
            if name in other:
                found += list(_differing(f"{role}.{name}", one[name], other[name]))
    for field in fields or [name for name in after if name not in NO_MATTER]:
        if field not in CORPORA:
            found += list(_differing(field, _at(before, field), _at(after, field)))
    unique = {
        difference.field if difference.field not in CORPORA else str(difference): difference for difference in found
    }
    return list(unique.values())


def _at(config: dict[str, Any], field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _differing(field: str, one: Any, other: Any) -> Iterator[Difference]:
    if isinstance(one, dict) and isinstance(other, dict) and (one or other):
        for name in {**one, **other}:
            if name not in INDIFFERENT.get(field, ()) or name == "seeds":
                yield from _differing(f"{field}.{name}", one.get(name), other.get(name))
    elif one != other:
        yield Difference(field, one, other)

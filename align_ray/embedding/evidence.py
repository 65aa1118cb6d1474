"""What a study knows of its corpora: the batches of token ids and their embeddings, read once and passed on.

A corpus is read when it is first asked for, so that a stage which needs the targets alone reads the targets alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from align_ray.alignment.coefficients import batch_matrix, main_blocks
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import units_of
from align_ray.fisher.unit import Unit

Value = TypeVar("Value")


class Lazy(Mapping[str, Value], Generic[Value]):
    """A mapping over fixed names whose values are made when first asked for, once."""

    def __init__(self, names: list[str], make: Callable[[str], Value]):
        self._names, self._make = dict.fromkeys(names), make
        self._made: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._made:
            if name not in self._names:
                raise KeyError(name)
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of every corpus, targets first: N batches of B sequences of T tokens; D rows of the main
    measure."""

    batches: Mapping[str, np.ndarray]
    """int32 [N, B, T], those that are embedded."""
    units: Mapping[str, list[Unit]]
    """N embeddings, in the order of the batches."""
    rows: Mapping[str, np.ndarray]
    """float32 [N, D], embeddings of the batches by the main measure, means over label draws."""
    key: str
    """The units' folder (see `units.Folder`)."""
    dtype: str
    """The dtype of the probe that made them."""


def read_evidence(study: Study, embedded: Any) -> Evidence:
    """The study's evidence. `embedded`: what the embedding gave, with `key`, `dtype` and, where not all batches were
    embedded, `used`, their number by corpus. Raises StoreError where a unit that is asked for is missing."""
    used, key, names = embedded["used"] or {}, embedded["key"], [c.name for c in study.config.corpora]
    batches = Lazy(names, lambda name: read_sample(study.store, name).batches[: used.get(name)])
    units = Lazy(names, lambda name: units_of(study.store, key, batches[name]))
    rows = Lazy(names, lambda name: batch_matrix(units[name], main_blocks(units[name])))
    return Evidence(batches, units, rows, key, embedded["dtype"])

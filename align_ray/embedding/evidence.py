"""What a study knows of its corpora: the batches of token ids and their embeddings, read once and passed on.

A corpus is read when it is first asked for, so that a stage which needs the targets alone reads the targets alone.
Token ids of very many corpora are let go and read again: whoever needs all of them goes through them one by one. What
statistics need of its units (`coefficients.Reduced`) is made of them once, in a Ray task where there are many corpora,
and kept as OUTPUT/evidence/KEY/CORPUS-MEASURE.npy, float32 [1 + R, N, D], and CORPUS.json; in a local folder the arrays
are mapped into memory, so that the driver holds no more of them than it works on.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from align_ray.alignment.coefficients import Reduced
from align_ray.alignment.noise import LabelNoise
from align_ray.config import digest
from align_ray.context import Study
from align_ray.corpora.sample import read_batches
from align_ray.embedding.units import unit_id, units_of
from align_ray.fisher.unit import Unit
from align_ray.progress import counted
from align_ray.runtime import as_they_end
from align_ray.store import Store

Value = TypeVar("Value")
FORMAT = 1
TOGETHER = 32
"""From so many corpora on, their units are reduced in Ray tasks as soon as all are embedded."""
HELD_BYTES = 2**27
"""Of token ids: 500 corpora of the default sampling."""


class Lazy(Mapping[str, Value], Generic[Value]):
    """A mapping over fixed names whose values are made when first asked for, once."""

    def __init__(self, names: list[str], make: Callable[[str], Value]):
        self._names, self._make = dict.fromkeys(names), make
        self._made: dict[str, Value] = {}

    def _hold(self, name: str, value: Value) -> None:
        self._made[name] = value

    def __getitem__(self, name: str) -> Value:
        if name not in self._made:
            if name not in self._names:
                raise KeyError(name)
            self._hold(name, self._make(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Recent(Lazy[np.ndarray]):
    """The same of arrays, of which those that were made last are held, up to HELD_BYTES; others are made again."""

    def _hold(self, name: str, value: np.ndarray) -> None:
        size = value.nbytes + sum(held.nbytes for held in self._made.values())
        while self._made and size > HELD_BYTES:
            size -= self._made.pop(next(iter(self._made))).nbytes
        self._made[name] = value


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of every corpus, targets first: N batches of B sequences of T tokens; D rows of the main
    measure."""

    batches: Mapping[str, np.ndarray]
    """int32 [N, B, T], those that are embedded."""
    units: Mapping[str, list[Unit]]
    """N embeddings, in the order of the batches."""
    reduced: Mapping[str, Reduced]
    """What alignment is computed from."""
    rows: Mapping[str, np.ndarray]
    """float32 [N, D], embeddings of the batches by the main measure, means over label draws."""
    key: str
    """The units' folder (see `units.Folder`)."""
    dtype: str
    """The dtype of the probe that made them."""


def read_evidence(study: Study, embedded: Any, keep: bool = True) -> Evidence:
    """The study's evidence. `embedded`: what the embedding gave, with `key`, `dtype` and, where not all batches were
    embedded, `used`, their number by corpus. `keep`: in the store, what is made of the units. Raises StoreError where a
    unit that is asked for is missing."""
    used, key, names = embedded["used"] or {}, embedded["key"], [c.name for c in study.config.corpora]
    store, absolute = study.store, study.config.embedding.epsilon
    batches = Recent(names, lambda name: read_batches(store, name)[: used.get(name)])
    units = Lazy(names, lambda name: units_of(store, key, batches[name]))
    # a sequential study asks with ever more batches: only what is there at its end is kept
    reduced = Lazy(names, lambda name: reduced_of(store, key, batches[name], absolute, keep))
    rows = Lazy(names, lambda name: reduced[name].main)
    return Evidence(batches, units, reduced, rows, key, embedded["dtype"])


def reduced_of(store: Store, key: str, batches: np.ndarray, absolute: float | None, keep: bool = True) -> Reduced:
    """What is kept of the units of these batches (int32 [N, B, T]); made of them, and kept, where it is not there.
    Raises StoreError where a unit is missing or damaged."""
    ids = [unit_id(batch) for batch in batches]
    place = f"evidence/{key}/{digest([FORMAT, ids, absolute])}"
    if (found := _find(store, place)) is not None:
        return found
    made = Reduced.of(units_of(store, key, batches), absolute)
    if not keep:
        return made
    for kind, rows in made.rows.items():
        file = io.BytesIO()
        np.save(file, rows, allow_pickle=False)
        store.write_bytes(f"{place}-{kind}.npy", file.getvalue())
    between = None if made.noise.between is None else made.noise.between.tolist()
    facts = {"noise": vars(made.noise) | {"between": between}, "losses": made.losses, "skipped": made.skipped}
    shapes = {kind: list(rows.shape) for kind, rows in made.rows.items()}
    store.write_json(f"{place}.json", {"shapes": shapes, "facts": facts})
    return _find(store, place) or made


def _find(store: Store, place: str) -> Reduced | None:
    stored = store.find_mappings(f"{place}.json")
    if stored.keys() != {"shapes", "facts"}:
        return None
    rows = {kind: _array(store, f"{place}-{kind}.npy", shape) for kind, shape in stored["shapes"].items()}
    if any(values is None for values in rows.values()):
        return None
    facts = stored["facts"]
    between = facts["noise"]["between"]
    noise = LabelNoise(**facts["noise"] | {"between": None if between is None else np.array(between)})
    return Reduced({k: v for k, v in rows.items() if v is not None}, noise, facts["losses"], facts["skipped"])


def _array(store: Store, name: str, shape: list[int]) -> np.ndarray | None:
    """Mapped into memory where the store is a local folder; None where it is not there or torn."""
    local = store.local_path(name)

    def parse(data: bytes) -> np.ndarray:
        return np.load(io.BytesIO(data), allow_pickle=False)

    try:
        found = np.load(local, mmap_mode="r", allow_pickle=False) if local else store.find(name, parse)
    except (OSError, ValueError, EOFError):
        return None
    return found if found is not None and list(found.shape) == shape and found.dtype == np.float32 else None


def reduce_corpora(study: Study, embedded: Any) -> None:
    """Reduce the units of many corpora, one Ray task a corpus; of few it is done where they are asked for."""
    import ray

    corpora = study.config.corpora
    if len(corpora) < TOGETHER:
        return
    used, epsilon = embedded["used"] or {}, study.config.embedding.epsilon

    def reduce(store: Store, name: str, key: str, absolute: float | None, first: int | None) -> None:
        reduced_of(store, key, read_batches(store, name)[:first], absolute)

    task = ray.remote(num_cpus=1)(reduce)
    waiting = [task.remote(study.store, c.name, embedded["key"], epsilon, used.get(c.name)) for c in corpora]
    for _ in counted(as_they_end(waiting), "corpora's embeddings reduced", len(waiting)):
        pass

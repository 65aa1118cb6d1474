"""Stored embeddings: the folder of those that belong together, the digest that names each batch's, and the file it is
in.

A unit is a Parquet file of its own, OUTPUT/embeddings/KEY/UNIT.parquet, with a checksum over all it holds.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from align_ray.config import Config, Embedding, digest
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.fisher.probe import Located, has_bfloat16
from align_ray.fisher.settings import PROCEDURE
from align_ray.fisher.unit import Unit
from align_ray.runtime import capacity
from align_ray.store import Store, parse_table

VERSION = 2
"""Version of the estimators and the unit's format; part of the key of every stored unit."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where units that belong together are: same probe, dtype, head, estimator and seed."""

    key: str
    dtype: str
    """The dtype of the probe's weights and activations."""
    head: str | None
    """File of the tuned vocabulary head; None for the probe's own."""


def unit_folder(study: Study, dtype: str | None = None) -> Folder:
    """The folder of the study's units; `dtype`: default, the probe's on the cluster as it is."""
    dtype = dtype or probe_dtype(study.config.embedding, capacity(study.config.cluster).use_gpu)
    head = head_name(study, dtype)
    return Folder(embedding_key(study.config, study.probe, dtype, head), dtype, head)


def embedding_key(config: Config, located: Located, dtype: str, head: str | None) -> str:
    """Digest of all that determines a unit but its batch."""
    unused: dict[str, Any] = {"quirks": {"absolute_epsilon"} if config.embedding.estimator == "reference" else True}
    if config.embedding.filters is None:
        unused["filters"] = True  # units of versions without it are found
    settings = {**config.embedding.model_dump(exclude=unused), "dtype": dtype}
    made_by = {"procedure": PROCEDURE} if config.embedding.estimator == "reference" else {}
    parts = {"version": VERSION, "probe": located.digest, "head": head, "embedding": settings, "seed": config.seed}
    return digest(parts | made_by)


def probe_dtype(settings: Embedding, use_gpu: bool) -> str:
    """The dtype that `auto` stands for here."""
    if settings.estimator == "reference":
        return "float32"
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if use_gpu or has_bfloat16(torch.device("cpu")) else "float32"


def head_name(study: Study, dtype: str) -> str | None:
    """File of the vocabulary head that is tuned once on the first batch of every corpus (`head_tuning: shared`)."""
    if study.config.embedding.head_tuning != "shared":
        return None
    rows = [unit_id(read_sample(study.store, c.name).batches[0]) for c in study.config.corpora]
    return f"heads/{digest([study.probe.digest, dtype, rows])}.safetensors"


def unit_id(batch: np.ndarray) -> str:
    """Name of a batch: the digest of its token ids."""
    return digest([list(batch.shape), batch.ravel().tolist()])


def write_unit(store: Store, key: str, name: str, unit: Unit) -> None:
    """Store the unit of the batch with this `unit_id`."""
    scalars = {f.name: getattr(unit, f.name) for f in dataclasses.fields(unit) if f.name not in ("blocks", "variances")}
    empty = np.zeros(0, np.float32)
    columns = {
        "block": list(unit.blocks),
        "draws": [len(values) for values in unit.blocks.values()],
        "values": pa.array([values.ravel() for values in unit.blocks.values()], pa.list_(pa.float32())),
        "variance": pa.array([unit.variances.get(name, empty) for name in unit.blocks], pa.list_(pa.float32())),
    }
    metadata = {"unit": json.dumps(scalars), "crc32": str(_checksum(unit))}
    store.write_table(_file(key, name), pa.table(columns).replace_schema_metadata(metadata))


def read_unit(store: Store, key: str, name: str) -> Unit:
    """Raises StoreError where the unit is missing or damaged."""
    return store.read(_file(key, name), _parse)


def units_of(store: Store, key: str, batches: Iterable[np.ndarray]) -> list[Unit]:
    """The stored units of batches (int32 [B, T] each), in their order."""
    return [read_unit(store, key, unit_id(batch)) for batch in batches]


def stored_units(store: Store, key: str) -> set[str]:
    """Names of the units of a folder, whole or not."""
    return {name.removesuffix(".parquet") for name in store.names(f"embeddings/{key}")}


def sound_units(store: Store, key: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that are there and whole: every one is read and its checksums compared."""
    there = stored_units(store, key) & set(names)
    return store.sound({name: _file(key, name) for name in there}, _parse)


def _file(key: str, name: str) -> str:
    return f"embeddings/{key}/{name}.parquet"


def _parse(data: bytes) -> Unit:
    table = parse_table(data)
    scalars = json.loads(table.schema.metadata[b"unit"])
    blocks: dict[str, np.ndarray] = {}
    variances: dict[str, np.ndarray] = {}
    for i, name in enumerate(table["block"].to_pylist()):
        blocks[name] = table["values"][i].values.to_numpy().reshape(table["draws"][i].as_py(), -1)
        variance = table["variance"][i].values.to_numpy()
        variances |= {name: variance} if len(variance) else {}
    unit = Unit(blocks, variances, **{**scalars, "skipped": tuple(scalars["skipped"])})
    checksum = table.schema.metadata.get(b"crc32")  # older units have none
    if checksum and int(checksum) != _checksum(unit):
        raise ValueError("the unit's checksum differs")
    return unit


def _checksum(unit: Unit) -> int:
    """CRC-32 of all of a unit: those of Parquet cover its pages, but neither their headers nor the footer."""
    parts = {"blocks": unit.blocks, "variances": unit.variances}
    shapes = {part: {name: list(values.shape) for name, values in arrays.items()} for part, arrays in parts.items()}
    scalars = [unit.loss, unit.sequences, *unit.skipped, unit.tokens, unit.seconds]
    total = zlib.crc32(json.dumps([shapes, scalars]).encode())
    for arrays in parts.values():
        for values in arrays.values():
            total = zlib.crc32(np.ascontiguousarray(values, np.float32).data, total)
    return total

"""Where results are kept: files on any pyarrow file system, written atomically, found again by what determined them.

    OUTPUT/config.yaml                    the resolved configuration
    OUTPUT/corpora/NAME.parquet           the batches of a corpus: token ids and document keys
    OUTPUT/embeddings/KEY/UNIT.parquet    one Fisher embedding per batch; KEY: probe, tokenizer, estimator, seed;
                                          UNIT: the batch's token ids
    OUTPUT/selection/KEY/CHUNK.parquet    scores of 64 documents (or a batch's sequences), with their texts; CHUNK: their keys
    OUTPUT/gradients/KEY.safetensors      sketches of a corpus' gradients (predictive study)
    OUTPUT/finetune/KEY.json              the losses of one training
    OUTPUT/{corpora,embedding,alignment,search,finetune,prediction}.json, report.html, study.md

A unit exists wholly or not at all, so that "run it again" is the recovery procedure.
"""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from align_ray.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Unit:
    """The embedding of one batch, by blocks that are never mixed silently: `trunk` and `head`, or of the reference
    procedure `trunk` and `vocabulary`."""

    blocks: dict[str, np.ndarray]
    """float32 [R, D], one row per label draw; R = 1 where there is no label noise."""
    variances: dict[str, np.ndarray]
    """float32 [D], variance over the batch's sequences of their draw-averaged embeddings (not of the reference)."""
    loss: float
    """The probe's nats per token."""
    sequences: int
    skipped: tuple[int, ...]
    """Sequences left out because their embedding is not finite, by position in the batch."""
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder on a file system; `uri` is a path or a pyarrow URI."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:  # made absolute here: Ray Train's workers run in folders of their own
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().resolve()))

    def _at(self, name: str) -> tuple[pafs.FileSystem, str]:
        fs, root = pafs.FileSystem.from_uri(self.uri) if "://" in self.uri else (pafs.LocalFileSystem(), self.uri)
        return fs, f"{root}/{name}"

    def check_writable(self) -> None:
        """Raise ConfigError where nothing can be written."""
        try:
            self.write_bytes(".writable", b"")
            fs, path = self._at(".writable")
            fs.delete_file(path)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"field 'output': cannot write to {self.uri} ({error}); choose a writable folder.") from None

    def local_path(self, name: str = "") -> Path | None:
        """The path of a file where the store is a local folder, else None."""
        fs, path = self._at(name)
        return Path(path) if isinstance(fs, pafs.LocalFileSystem) else None

    def exists(self, name: str) -> bool:
        fs, path = self._at(name)
        return fs.get_file_info(path).is_file

    def names(self, folder: str) -> set[str]:
        """Names of the complete files of a folder."""
        fs, path = self._at(folder)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {i.base_name for i in infos if i.is_file and not i.base_name.endswith(".part")}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write under another name, then rename: a reader sees all of a file or none of it."""
        fs, path = self._at(name)
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        with fs.open_output_stream(part) as stream:
            stream.write(data)
        fs.move(part, path)

    def read_bytes(self, name: str) -> bytes:
        fs, path = self._at(name)
        with fs.open_input_stream(path) as stream:
            return stream.read()

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1).encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.read_bytes(name)))

    def dataset(self, names: list[str]) -> pads.Dataset:
        """Parquet files of one schema as a pyarrow data set, in this order: columns and rows are read as they are asked for."""
        fs, root = self._at("")
        schema = pq.read_schema(f"{root}{names[0]}", filesystem=fs)
        return pads.dataset([f"{root}{name}" for name in names], schema=schema, filesystem=fs, format="parquet")

    def write_unit(self, key: str, unit_id: str, unit: Unit) -> None:
        scalars = {f.name: getattr(unit, f.name) for f in dataclasses.fields(unit) if f.name not in ("blocks", "variances")}
        empty = np.zeros(0, np.float32)
        columns = {
            "block": list(unit.blocks),
            "draws": [len(values) for values in unit.blocks.values()],
            "values": pa.array([values.ravel() for values in unit.blocks.values()], pa.list_(pa.float32())),
            "variance": pa.array([unit.variances.get(name, empty) for name in unit.blocks], pa.list_(pa.float32())),
        }
        self.write_table(
            f"embeddings/{key}/{unit_id}.parquet", pa.table(columns).replace_schema_metadata({"unit": json.dumps(scalars)})
        )

    def read_unit(self, key: str, unit_id: str) -> Unit:
        table = self.read_table(f"embeddings/{key}/{unit_id}.parquet")
        scalars = json.loads(table.schema.metadata[b"unit"])
        blocks, variances = {}, {}
        for i, name in enumerate(table["block"].to_pylist()):
            blocks[name] = table["values"][i].values.to_numpy().reshape(table["draws"][i].as_py(), -1)
            variance = table["variance"][i].values.to_numpy()
            variances |= {name: variance} if len(variance) else {}
        return Unit(blocks, variances, **{**scalars, "skipped": tuple(scalars["skipped"])})

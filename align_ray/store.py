"""Where results are kept: files on any pyarrow file system, written atomically, found again by what determined them.

    OUTPUT/config.yaml                    the resolved configuration
    OUTPUT/corpora/NAME.parquet           what is used of a corpus: token ids to embed, to train on and held out
    OUTPUT/corpora.json, embedding.json   counts of what was read; the folder of the embeddings and how many are used
    OUTPUT/embeddings/KEY/UNIT.parquet    one Fisher embedding per batch; KEY: probe, tokenizer, estimator, seed;
                                          UNIT: the batch's token ids
    OUTPUT/heads/KEY.safetensors          a vocabulary head tuned on all corpora
    OUTPUT/scores/KEY/CHUNK.parquet       scores of 64 documents (or a batch's sequences), with their texts; CHUNK:
                                          their keys
    OUTPUT/gradients/KEY.safetensors      sketches of a corpus' gradients (predictive study)
    OUTPUT/finetune/KEY.{json,safetensors}  losses after one training, by sequence and by token
    OUTPUT/finetune/state/KEY.*           a training that is under way
    OUTPUT/finetune/weights, merged       what trainings changed; losses of merged models
    OUTPUT/proxies/KEY.json               losses of one proxy of a search on real loss
    OUTPUT/tune, OUTPUT/train             state of Ray Tune and Ray Train
    OUTPUT/answers/FILE-KEY.json          every result of a stage; KEY: all that determines it
    OUTPUT/answers/ID.json                a configuration and the keys of its results (`answers.py`)
    OUTPUT/drawn/RUN/NAME.parquet         what a process is drawing of a corpus
    OUTPUT/{alignment,contamination,samples,search,finetune,validation,prediction,
    choice}.json                          the last result of each
    OUTPUT/{recipe,estimate,cost}.json, report.html, study.md
    OUTPUT/costs/RUN.json                 what each process has spent, of which cost.json is the sum
    OUTPUT/events/TIME-STAGE-RUN.jsonl    what happened, an object a run of a stage
    OUTPUT/running/RUN.json               on object storage, who is at work (`claims`)
    OUTPUT/{ratios,metrics}*.csv, results.md      every training (`handover/runs.py`)

A unit exists wholly or not at all, so that "run it again" is the recovery procedure. A file that was torn all the same
(by a disk, or by hand) counts as not there and is made again. One run at a time uses a local folder (`locked`).
"""

import dataclasses
import io
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors import SafetensorError

from align_ray.errors import ConfigError, StoreError

Parsed = TypeVar("Parsed")
DAMAGED = (pa.ArrowException, SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError)
"""What parsers raise for a file that is not what it should be (broken JSON and UTF-8 are ValueErrors)."""
READERS = 16
"""Threads that look through the units of a store: on S3 the time is the network's."""


def file_system(place: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or pyarrow URI, and the path on it."""
    return pafs.FileSystem.from_uri(place) if "://" in place else (pafs.LocalFileSystem(), place)


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder on a file system; `uri` is a path or a pyarrow URI."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:  # made absolute here: Ray Train's workers run in folders of their own
            try:
                object.__setattr__(self, "uri", str(Path(os.path.expanduser(self.uri)).resolve()))
            except (RuntimeError, ValueError) as error:  # an unknown user's home, a NUL
                raise ConfigError(f"field 'output': {self.uri!r} is no path ({error}).") from None

    def _at(self, name: str) -> tuple[pafs.FileSystem, str]:
        fs, root = file_system(self.uri)
        return fs, f"{root}/{name}"

    def check_writable(self) -> None:
        """Raise ConfigError where nothing can be written."""
        try:
            self._write(".writable", b"0")
            fs, path = self._at(".writable")
            fs.delete_file(path)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(
                f"field 'output': cannot write to {self.uri} ({error}); choose a writable folder."
            ) from None

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the store for this process and thread; within it, again, at no cost; gives whether there is a lock.
        Raises StoreError where another has it.

        A lock of the operating system, which ends with the process however it dies; workers write units without it.
        Stores on object storage have none (see `claims`): files appear whole and units are named by their content, so
        that two runs of one configuration waste work but damage nothing.
        """
        path = self.local_path(".lock")
        if path is None:
            yield False
            return
        lock = filelock.FileLock(path, timeout=0, is_singleton=True, fallback_to_soft=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise StoreError(
                f"{self.uri} is in use by {_holder(path)}; wait for it, stop it, or choose another 'output'."
            ) from None
        except NotImplementedError:  # a file system without locks is as object storage
            yield False
            return
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            with suppress(OSError):
                path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            yield True
        finally:
            lock.release()

    def local_path(self, name: str = "") -> Path | None:
        """The path of a file where the store is a local folder, else None."""
        fs, path = self._at(name)
        return Path(path) if isinstance(fs, pafs.LocalFileSystem) else None

    def place(self, name: str) -> str:
        """A path, or a URI on another file system, that Ray takes for a folder of the store."""
        local = self.local_path(name)
        return str(local) if local else f"{self.uri}/{name}"

    def exists(self, name: str) -> bool:
        fs, path = self._at(name)
        return fs.get_file_info(path).is_file

    def names(self, folder: str) -> set[str]:
        """Names of the complete files of a folder."""
        fs, path = self._at(folder)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {i.base_name for i in infos if i.is_file and not i.base_name.endswith(".part")}

    def written(self, folder: str) -> dict[str, float]:
        """When the complete files of a folder were written, in seconds since the epoch by the file system's clock."""
        fs, path = self._at(folder)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {i.base_name: i.mtime_ns / 1e9 for i in infos if i.is_file and not i.base_name.endswith(".part")}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write under another name, then rename: a reader sees all of a file or none of it. Raises StoreError where
        that fails."""
        try:
            self._write(name, data)
        except OSError as error:
            raise self._unwritable(error) from None

    def _write(self, name: str, data: bytes) -> None:
        fs, path = self._at(name)
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with fs.open_output_stream(part) as stream:
                stream.write(data)
            fs.move(part, path)
        except BaseException:
            with suppress(OSError):
                fs.delete_file(part)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        fs, path = self._at(name)
        with suppress(FileNotFoundError):
            fs.delete_file(path)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and what is in it, if it is there."""
        fs, path = self._at(name)
        with suppress(FileNotFoundError):
            fs.delete_dir(path)

    def move(self, name: str, to: str) -> None:
        """Give a file of the store another name, in the place of what has that name. Raises StoreError where that
        fails."""
        (fs, old), (_, new) = self._at(name), self._at(to)
        try:
            fs.create_dir(new.rpartition("/")[0], recursive=True)
            fs.move(old, new)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> StoreError:
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        return StoreError(
            f"cannot write to {self.uri} ({reason}); fix that and run it again: what was finished is kept."
        )

    def read_bytes(self, name: str) -> bytes:
        fs, path = self._at(name)
        with fs.open_input_stream(path) as stream:
            return stream.read()

    def write_json(self, name: str, value: Any) -> None:
        file = io.BytesIO()
        with io.TextIOWrapper(file, encoding="ascii", newline="\n") as text:
            json.dump(value, text, indent=1)  # `dumps` holds a string a number: of a thousand corpora half a gigabyte
            text.flush()
            self.write_bytes(name, file.getvalue())

    def find(self, name: str, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        """What `parse` makes of a file; None where there is none, or a torn one. A store that does not answer is an
        error."""
        try:
            data = self.read_bytes(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return parse(data)
        except DAMAGED:
            return None

    def find_json(self, name: str) -> Any:
        """A JSON value; None where there is no file, or a torn one."""
        return self.find(name, json.loads)

    def find_mapping(self, name: str) -> dict[str, Any]:
        """A JSON object; {} where there is no file, a torn one or another value."""
        value = self.find_json(name)
        return value if isinstance(value, dict) else {}

    def find_mappings(self, name: str) -> dict[str, dict[str, Any]]:
        """A JSON object of objects; whatever else the file holds is taken as not there."""
        value = self.find_json(name)
        return {k: v for k, v in value.items() if isinstance(v, dict)} if isinstance(value, dict) else {}

    def read(self, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What `parse` makes of a file. Raises StoreError where it is missing or torn."""
        try:
            return parse(self.read_bytes(name))
        except DAMAGED as error:
            state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            raise StoreError(
                f"{self.uri}/{name} is {state}; run the stages from 'embed' on again, which make it again."
            ) from None

    def read_json(self, name: str) -> Any:
        """Raises StoreError where the file is missing or torn; so does `read_table`."""
        return self.read(name, json.loads)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        return self.read(name, parse_table)

    def batches(self, names: list[str], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of Parquet files of one schema, in this order; `columns`: default, all. Raises StoreError for a
        damaged one."""
        fs, root = self._at("")
        try:
            schema = pq.read_schema(f"{root}{names[0]}", filesystem=fs)
            dataset = pads.dataset([f"{root}{name}" for name in names], schema=schema, filesystem=fs, format="parquet")
            yield from dataset.to_batches(columns=columns)
        except DAMAGED as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(
                f"a file of {self.uri}/{names[0].rpartition('/')[0]} is damaged ({reason}); delete that folder and "
                "run it again."
            ) from None

    def sound(self, files: dict[str, str], parse: Callable[[bytes], Any]) -> set[str]:
        """Those keys of `files` whose file is there and whole (`parse` takes it): every one is read, READERS at a
        time."""
        with ThreadPoolExecutor(READERS) as pool:
            whole = pool.map(lambda file: self.find(file, parse) is not None, files.values())
            return {key for key, sound in zip(files, whole, strict=True) if sound}

    def sound_tables(self, folder: str) -> set[str]:
        """Names of the Parquet files of a folder whose footer is whole: a file that was cut off has none."""
        fs, path = self._at(folder)

        def sound(name: str) -> bool:
            with suppress(*DAMAGED):
                return pq.read_metadata(f"{path}/{name}", filesystem=fs).num_rows >= 0
            return False

        stored = sorted(self.names(folder))
        with ThreadPoolExecutor(READERS) as pool:
            return {name for name, whole in zip(stored, pool.map(sound, stored), strict=True) if whole}


def parse_table(data: bytes) -> pa.Table:
    """A Parquet file of which every page has the checksum that was written with it."""
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, *DAMAGED):
        return "another process"

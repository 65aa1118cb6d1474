"""Records of tables and of JSON documents: CSV, Arrow IPC and Feather by pyarrow, arrays and objects over several lines
by the standard library's decoder, piece by piece."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from align_ray.corpora import limits
from align_ray.corpora.parquet import nested_records
from align_ray.corpora.rejects import keep

PIECE = 2**20


def csv_records(file: Any, delimiter: str, columns: list[str] | None, counts: Counter) -> Iterator[dict[str, Any]]:
    """Records (column -> text) of an open CSV or TSV file with a header; `columns`: those wanted, None for all. Rows
    with another number of fields and text that is not UTF-8 are counted as `unreadable`."""

    def skip(row: Any) -> str:
        counts["unreadable"] += 1
        keep(counts, "unreadable", row.text or "")
        return "skip"

    stream = file if isinstance(file, pa.NativeFile) else pa.PythonFile(file, "r")
    head = stream.read(PIECE)
    try:
        names = next(csv.reader(io.StringIO(head.decode("utf-8-sig", errors="replace")), delimiter=delimiter), [])
        wanted = names if columns is None else [c for c in columns if c in names]
        if not wanted:
            yield dict.fromkeys(names)
            return
        reader = pacsv.open_csv(
            pa.PythonFile(_Again(head, stream), "r"),
            pacsv.ReadOptions(block_size=8 * PIECE),
            pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            pacsv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())),
        )
        for batch in reader:
            for row in batch.to_pylist():
                try:
                    yield {name: None if value is None else value.decode() for name, value in row.items()}
                except UnicodeDecodeError:
                    counts["unreadable"] += 1
    except (pa.ArrowInvalid, csv.Error):
        counts["unreadable"] += 1


class _Again(io.RawIOBase):
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self.head, self.rest = io.BytesIO(head), rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.head.read(size) or self.rest.read(None if size < 0 else size)


def arrow_records(file: Any, counts: Counter) -> Iterator[dict[str, Any]]:
    """Records of an open Arrow file (IPC, Feather) or stream, as `datasets` saves it."""
    try:
        try:
            opened = pa.ipc.open_file(file)
            batches: Any = (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            batches = pa.ipc.open_stream(file)
        for batch in batches:
            yield from nested_records(batch, counts)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        counts["unreadable"] += 1


def json_values(file: Any, most: int, counts: Counter) -> Iterator[dict[str, Any]]:
    """Objects of a JSON array, or one after the other over any lines. What is no object is counted as `unreadable`;
    where the text breaks off, or an object is above MAX_RECORD_BYTES, reading ends."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    buffer, at, seen, ended = "", 0, 0, False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,[]":
            at += 1
        if at < len(buffer):
            try:
                value, at = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError):
                value = None
                if ended:
                    counts["unreadable"] += 1
                    return
                if len(buffer) - at > limits.MAX_RECORD_BYTES:
                    counts["oversized"] += 1
                    return
            if isinstance(value, dict):
                yield value
                continue
            if value is not None:
                counts["unreadable"] += 1
                continue
        elif ended:
            return
        buffer, at = buffer[at:], 0
        data = file.read(max(PIECE, len(buffer)))
        seen += len(data)
        if seen > most:
            counts["oversized"] += 1
            return
        ended = not data
        try:
            buffer += utf8.decode(data, ended)
        except UnicodeDecodeError:
            counts["unreadable"] += 1
            return

"""Read text columns of Parquet files that nobody vouches for: broken in places, or small files that stand for
gigabytes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align_ray.corpora import limits

BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for a file that is not Parquet, or not any more."""


def text_records(file: Any, columns: list[str], needed: list[str], counts: Counter) -> Iterator[dict[str, Any]]:
    """Yield the records (column -> value) of an open Parquet file, one row group after the other. `columns` may be
    nested (`outer.inner`); those that are not `needed` may be missing.

    Rows left out are counted: `unreadable` (of a broken row group, or not UTF-8; 1 for a file without a footer),
    `oversized` (a value above MAX_RECORD_BYTES; all rows of a row group that is a compression bomb) and
    `missing_column` (all rows, where a needed column is not there or neither of strings nor nested; one record with
    every column's name and None is still given). Raises OSError where the file system fails.
    """
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        schema = parquet.schema_arrow
    except BROKEN as error:
        counts[_counter(error)] += 1
        return
    there = {name: top for name in columns if (top := _top_level(schema, name)) is not None}
    if not all(name in there and (_is_text(schema, there[name]) or _is_nested(schema, there[name])) for name in needed):
        if rows := parquet.metadata.num_rows:
            counts["missing_column"] += rows - 1
            yield dict.fromkeys(schema.names)
        return
    read = sorted(set(there.values()))
    as_records = _records if all(_is_text(schema, name) for name in read) else nested_records
    leaves = [i for i in range(len(parquet.schema)) if parquet.schema.column(i).path.split(".")[0] in read]
    leaves += [i for i in range(len(parquet.schema)) if parquet.schema.column(i).path in read and i not in leaves]
    for group in range(parquet.num_row_groups):
        metadata, seen = parquet.metadata.row_group(group), 0
        try:
            # Opens the columns without reading a row: in a broken footer that is an error here, but where pyarrow is
            # asked for a column's metadata a C++ exception that ends the process.
            next(parquet.reader.iter_batches(0, row_groups=[group], column_indices=leaves), None)
            size = _rows_at_once([metadata.column(i) for i in leaves])
            if size == 0:
                counts["oversized"] += metadata.num_rows
                continue
            for batch in parquet.iter_batches(size, row_groups=[group], columns=read):
                yield from as_records(batch, counts)
                seen += len(batch)
        except BROKEN as error:  # the other row groups may be sound
            counts[_counter(error)] += max(1, metadata.num_rows - seen)


def first_rows(file: Any, count: int) -> list[dict[str, Any]]:
    """Up to `count` records with all columns, text or not; [] for a broken file."""
    try:
        return next(pq.ParquetFile(file).iter_batches(batch_size=count), pa.table({})).to_pylist()
    except BROKEN:
        return []


def _counter(error: Exception) -> str:
    """The counter for what pyarrow cannot parse; raises again what is no fault of the content (a system's error
    number)."""
    if getattr(error, "errno", None):
        raise error
    return "unreadable"


def _top_level(schema: pa.Schema, name: str) -> str | None:
    """The column of a file that holds a column or a nested one; None where it is not there, or twice."""
    return next((n for n in (name, name.partition(".")[0]) if schema.get_field_index(n) >= 0), None)


def _is_nested(schema: pa.Schema, name: str) -> bool:
    return pa.types.is_nested(schema.field(name).type)


def _is_text(schema: pa.Schema, name: str) -> bool:
    index = schema.get_field_index(name)
    if index < 0:  # not there, or twice
        return False
    kind = schema.field(index).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _rows_at_once(columns: list[Any]) -> int:
    """Rows of a row group to decode together, so that a batch stays below BATCH_BYTES; 0 for a compression bomb.
    `columns`: the metadata of those that are read."""
    rows = 1024
    for column in columns:
        if column.total_uncompressed_size > limits.most_inflated(column.total_compressed_size):
            return 0
        # no value is longer than all pages together
        if any("DICTIONARY" in e or "DELTA" in e for e in column.encodings):
            rows = min(rows, limits.BATCH_BYTES // max(1, column.total_uncompressed_size))
    return max(1, rows)


def _records(batch: pa.RecordBatch, counts: Counter) -> Iterator[dict[str, str | None]]:
    """The rows of a batch, made one at a time."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        columns[name] = plain.cast(pa.large_binary())
    lengths = [pc.fill_null(pc.binary_length(column), 0).to_pylist() for column in columns.values()]
    for row, sizes in enumerate(zip(*lengths, strict=True)):
        if max(sizes) > limits.MAX_RECORD_BYTES:
            counts["oversized"] += 1
            continue
        values = {name: column[row].as_py() for name, column in columns.items()}
        try:
            yield {name: None if value is None else value.decode() for name, value in values.items()}
        except UnicodeDecodeError:
            counts["unreadable"] += 1


def nested_records(batch: pa.RecordBatch, counts: Counter) -> Iterator[dict[str, Any]]:
    """The rows of a batch with any columns, lists and structs too; those that are not UTF-8 are `unreadable`."""
    for row in range(len(batch)):
        try:
            (record,) = batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError:
            counts["unreadable"] += 1
            continue
        yield record

"""Read corpora: from files, hub data sets or the installed default to one stream of documents.

A corpus is planned into fragments (a byte range of a JSONL file, the row groups of a Parquet file, a shard of a hub
data set), small enough to be read by one Ray Data task each and never whole into the driver. A record that cannot be
read is counted and left out; only a corpus without a single readable document is an error. docs/bad-data.md has every
case.
"""

import dataclasses
import io
import json
import lzma
import os
import string
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from align_ray.config_corpora import Corpus, is_hub_dataset
from align_ray.corpora import limits
from align_ray.corpora.files import (
    GONE,
    Fragment,
    compression_of,
    files_of,
    filesystem,
    fragments_of_files,
    open_file,
    refused,
    what_else,
)
from align_ray.corpora.installed import INSTALLED
from align_ray.corpora.parquet import first_rows, text_records
from align_ray.corpora.records import Unusable, columns_of, needed_columns, render, template_mistake, unmarked
from align_ray.corpora.rejects import keep, reading
from align_ray.corpora.tables import arrow_records, csv_records, json_values
from align_ray.errors import CorpusError, UserError, first_line
from align_ray.hub import not_answering


def plan_fragments(corpus: Corpus) -> list[Fragment]:
    """List what there is to read. Raises CorpusError where the source does not exist or holds nothing readable."""
    scheme, _, rest = corpus.sources[0].partition(":")
    if scheme == "installed":
        if rest not in INSTALLED:
            raise CorpusError(
                f"corpus '{corpus.name}': no installed corpus '{rest}'; choose one of {', '.join(INSTALLED)}."
            )
        return [Fragment("installed", rest, 0, 1, 0)]
    if is_hub_dataset(corpus.sources[0]):
        shards = _hub_dataset(corpus).num_shards if corpus.streaming else 1
        return [Fragment("hub", corpus.where, i, shards, 0) for i in range(shards)]
    return fragments_of_files(corpus)


def documents(corpus: Corpus, fragments: list[Fragment], counts: Counter) -> Iterator[str]:
    """Yield the texts of `fragments` in order, with marks where only a part counts (`records.py`), and count into
    `counts`.

    Counted: `documents` and `bytes` (UTF-8) read; left out `empty` (nothing but white space), `unreadable` (broken
    JSON, invalid UTF-8, a truncated Parquet or compressed file), `oversized` (above MAX_RECORD_BYTES, or a compression
    bomb), `missing_column` (a column of the text absent, null or not a text), `no_completion` (a record without one, or
    in which it is not found) and `vanished` (fragments
    whose file is gone, or shorter than when it was planned). Raises CorpusError where a file that is there cannot be
    read.
    """
    for fragment in fragments:
        reading(counts, fragment.path)
        for record in _records(corpus, fragment, counts):
            try:
                text = render(corpus, record)
            except Unusable as reason:
                counts[str(reason)] += 1
                keep(counts, str(reason), record)
                continue
            if not text.strip():
                counts["empty"] += 1
            else:
                counts["documents"] += 1
                counts["bytes"] += len(unmarked(text).encode("utf-8", errors="replace"))
                yield text


def check_corpus(corpus: Corpus) -> None:
    """Read the first records of a corpus; raise CorpusError if no document can come of them."""
    for field in ("template", "prompt", "completion"):
        given = getattr(corpus, field)
        if given is None or (field != "template" and "{" not in given):
            continue
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(given) if name is not None]
        except ValueError as error:
            raise CorpusError(f"corpus '{corpus.name}': field '{field}' is not a format string ({error}).") from None
        if not named or not all(part.isidentifier() for name in named for part in name.split(".")):
            raise CorpusError(
                f"corpus '{corpus.name}': field '{field}' must name columns in braces, such as '{{informal}}', and "
                "nothing else."
            )
    if corpus.chat_template is not None and (mistake := template_mistake(corpus.chat_template)):
        raise CorpusError(
            f"corpus '{corpus.name}': field 'chat_template' is no Jinja template ({mistake.rstrip('.')}); fix its "
            "syntax."
        )
    counts: Counter = Counter()
    columns: set[str] = set()
    fragments = plan_fragments(corpus)
    for fragment in fragments:
        if next(documents(corpus, [fragment], counts), None) is not None:
            return
        if counts["missing_column"]:
            columns |= set(next(HEADS.get(fragment.kind, _records)(corpus, fragment, Counter()), {}))
    if counts["missing_column"]:
        field = "chat" if corpus.chat else "prompt" if corpus.prompt else "template" if corpus.template else "column"
        there = lambda column: column in columns or column.partition(".")[0] in columns
        wanted = "a list of messages in its column" if corpus.chat else "a text in every column"
        missing = ", ".join(f"'{c}'" for c in needed_columns(corpus) if not there(c)) or wanted
        raise CorpusError(
            f"corpus '{corpus.name}': field '{field}' needs {missing}, but {corpus.where} has only the columns "
            f"{', '.join(sorted(columns)) or 'none'}; name one of these."
        )
    if odd := _odd(corpus, fragments):
        raise CorpusError(f"corpus '{corpus.name}': {odd.path} is {odd.note}.")
    if counts["no_completion"]:
        raise CorpusError(
            f"corpus '{corpus.name}': none of the records of {corpus.where} has a completion (what an assistant says) "
            "that can be found; check the fields 'chat', 'prompt' and 'completion'."
        )
    labels = {"unreadable": "unreadable records", "oversized": "oversized", "vanished": "vanished while being read"}
    detail = ", ".join(f"{counts[name]} {label}" for name, label in labels.items() if counts[name])
    detail = f" ({detail})" if detail else ""
    raise CorpusError(
        f"corpus '{corpus.name}': {corpus.where} is empty{detail}; give a source with at least one document."
    )


def _odd(corpus: Corpus, fragments: list[Fragment]) -> Fragment | None:
    """The first file that is something else than its name says."""
    for fragment in fragments:
        if fragment.kind in ("unusable", "json", "csv", "tsv", "text"):
            if fragment.note:
                return fragment
            try:
                with filesystem(corpus)[0].open_input_stream(fragment.path, compression=None) as file:
                    note = "" if compression_of(fragment.path) else what_else(file.read(64))
            except OSError:
                continue
            if note:
                return dataclasses.replace(fragment, note=note)
    return None


LOOKED_AT = 200
"""Records that tell what a corpus is."""


def first_records(corpus: Corpus, count: int = LOOKED_AT) -> list[dict[str, Any]]:
    """Up to `count` readable records with all their columns, whatever the corpus takes of them: the first ones of
    parts that are spread over all of it.

    Raises CorpusError where the source does not exist.
    """
    fragments = plan_fragments(corpus)
    parts = fragments[:: -(-len(fragments) // 8)] if fragments else []
    found: list[dict[str, Any]] = []
    for i, fragment in enumerate(parts, start=1):
        read = HEADS.get(fragment.kind, _records)
        found += islice(read(corpus, fragment, Counter()), count * i // len(parts) - len(found))
    return found


def whole_records(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """All readable records with all their columns, whatever the corpus takes of them; read here, not by tasks. Raises
    CorpusError where the source does not exist."""
    for fragment in plan_fragments(corpus):
        if fragment.kind == "parquet":
            with filesystem(corpus)[0].open_input_file(fragment.path) as file:
                yield from first_rows(file, sys.maxsize)
        else:
            yield from HEADS.get(fragment.kind, _records)(corpus, fragment, Counter())


def files_seen(corpus: Corpus) -> tuple[tuple[str, int, int | None], ...]:
    """Path, size and time of change of every file, by which a changed one is known without reading it; none of what
    is no file."""
    source = corpus.sources[0]
    if source.startswith("installed:") or is_hub_dataset(source):
        return ()
    return tuple((info.path, info.size, info.mtime_ns) for info in files_of(corpus))


# --- records of files ------------------------------------------------------------------------------------------------


def _records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    """Raw records (column -> value) of one fragment."""
    try:
        if fragment.kind == "installed":
            yield from ({corpus.column: text} for text in INSTALLED[fragment.path]())
        elif fragment.kind == "hub":
            yield from _hub_records(corpus, fragment)
        elif fragment.kind == "unusable":
            counts["unreadable"] += 1
        else:
            yield from READERS[fragment.kind](corpus, fragment, counts)
    except OSError as error:
        if error.errno not in GONE:
            raise refused(corpus, fragment.path, error) from None
        counts["vanished"] += 1


def _lines(corpus: Corpus, fragment: Fragment) -> Iterator[bytes | str]:
    """Lines that begin within the fragment's byte range; a compressed file is one fragment.

    In place of a line above MAX_RECORD_BYTES, or of the rest of a file that breaks off, inflates without end or has
    become shorter, the name of the counter for it.
    """
    compression = compression_of(fragment.path)
    most = limits.most_inflated(fragment.bytes)
    source = open_file(corpus, fragment)
    with source:
        position = fragment.start
        skipping = position > 0  # a line is read by the fragment in which it begins
        if skipping:
            position -= 1
            source.seek(position)
        stream = io.BufferedReader(source, 2**20)
        while compression or position < fragment.stop:
            try:
                line = stream.readline(limits.MAX_RECORD_BYTES)
            except (OSError, EOFError, lzma.LZMAError) as error:
                if not compression or getattr(error, "errno", None):
                    raise
                yield "unreadable"  # the compressed file is truncated or broken
                return
            position += len(line)
            if not line:
                if not compression:
                    yield "vanished"
                return
            if compression and position > most:
                yield "oversized"
                return
            if skipping:
                skipping = not line.endswith(b"\n")
            elif len(line) == limits.MAX_RECORD_BYTES and not line.endswith(b"\n"):
                yield "oversized"
                skipping = True
            else:
                yield line


def _json_records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    if _is_document(corpus, fragment):
        if fragment.start == 0:
            with open_file(corpus, fragment) as file:
                yield from json_values(file, limits.most_inflated(fragment.bytes), counts)
        return
    for line in _lines(corpus, fragment):
        if isinstance(line, str):
            counts[line] += 1
        elif line.strip():
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                record = None
            if isinstance(record, dict):
                yield record
            else:
                counts["unreadable"] += 1
                keep(counts, "unreadable", line)


def _is_document(corpus: Corpus, fragment: Fragment) -> bool:
    """Whether a `.json` file is one array, or objects over several lines, instead of an object a line."""
    if ".json" not in [suffix.lower() for suffix in Path(fragment.path).suffixes[-2:]]:
        return False
    try:
        with open_file(corpus, fragment) as file:
            head = file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, lzma.LZMAError):
        return False  # reading it says why
    if head.startswith(b"["):
        return True
    first, newline, _ = head.partition(b"\n")
    return bool(newline) and head.startswith(b"{") and not first.rstrip().endswith(b"}")


def _table_records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with open_file(corpus, fragment) as file:
        yield from csv_records(file, "\t" if fragment.kind == "tsv" else ",", columns_of(corpus), counts)


def _arrow_records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with open_file(corpus, fragment) as file:
        yield from arrow_records(file, counts)


def _text_records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    lines = _lines(corpus, fragment)
    for raw in lines if corpus.sample_by == "line" else _joined(lines, corpus.sample_by == "paragraph"):
        if isinstance(raw, str):
            counts[raw] += 1
        else:
            try:
                yield {corpus.column: raw.decode("utf-8-sig")}
            except UnicodeDecodeError:
                counts["unreadable"] += 1


def _joined(lines: Iterator[bytes | str], paragraphs: bool) -> Iterator[bytes | str]:
    """All lines as one document, or the paragraphs; the name of a counter where a part of one is left out or it is
    too long."""
    text, left_out = bytearray(), ""
    for line in lines:
        if isinstance(line, str):
            left_out = left_out or line
        elif paragraphs and not line.strip():
            if left_out or text:
                yield left_out or bytes(text)
            text, left_out = bytearray(), ""
        elif not left_out:
            text += line
        if left_out or len(text) > limits.MAX_RECORD_BYTES:
            text, left_out = bytearray(), left_out or "oversized"
    if left_out or text:
        yield left_out or bytes(text)


def _parquet_records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with filesystem(corpus)[0].open_input_file(fragment.path) as file:
        yield from text_records(file, columns_of(corpus), needed_columns(corpus), counts)


def _parquet_head(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with filesystem(corpus)[0].open_input_file(fragment.path) as file:
        yield from first_rows(file, LOOKED_AT)


def _table_head(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with open_file(corpus, fragment) as file:
        yield from csv_records(file, "\t" if fragment.kind == "tsv" else ",", None, counts)


READERS = {
    "json": _json_records, "text": _text_records, "parquet": _parquet_records, "csv": _table_records,
    "tsv": _table_records, "arrow": _arrow_records,
}  # fmt: skip
HEADS = {"parquet": _parquet_head, "csv": _table_head, "tsv": _table_head}
"""Readers that give all columns, where the others give those that are needed."""


def _hub_records(corpus: Corpus, fragment: Fragment) -> Iterator[dict[str, Any]]:
    dataset = _hub_dataset(corpus)
    try:
        yield from dataset.shard(num_shards=fragment.stop, index=fragment.start) if corpus.streaming else dataset
    except Exception as error:  # a broken file or a lost connection, each a class of its own
        raise CorpusError(
            f"corpus '{corpus.name}': cannot read {corpus.where} ({first_line(error)}); fix that and run it again."
        ) from None


def _hub_dataset(corpus: Corpus) -> Any:
    import datasets

    name = corpus.where.removeprefix("hf://")
    if not os.path.isdir(name) and (silent := not_answering()):
        raise CorpusError(f"corpus '{corpus.name}': {silent}.")
    try:
        return datasets.load_dataset(name, corpus.subset, split=corpus.split, streaming=corpus.streaming)
    except UserError:
        raise
    except Exception as error:  # the hub client raises a different class for each reason, all meant for the reader
        raise CorpusError(
            f"corpus '{corpus.name}': cannot open the data set {name}, split '{corpus.split}' ({first_line(error)}); "
            "check 'source', 'subset' and 'split', and that the hub can be reached."
        ) from None

"""Read corpora: from files, hub data sets or the installed default to one stream of documents.

A corpus is planned into fragments (a byte range of a JSONL file, the row groups of a Parquet file, a shard of a hub data
set), small enough to be read by one Ray Data task each and never whole into the driver. A record that cannot be read is
counted and left out; only a corpus without a single readable document is an error.
"""

import dataclasses
import io
import json
import re
import string
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from align_ray.config import Corpus
from align_ray.errors import CorpusError, UserError
from align_ray.installed import INSTALLED

FRAGMENT_BYTES = 64 * 2**20
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
JSON_LINES = {".jsonl", ".ndjson", ".json"}
MAX_LINE_BYTES = 64 * 2**20
"""A longer line is counted as unreadable and skipped: it is a broken file, not a document."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A part of a corpus that one task reads: [start, stop) in bytes, row groups or shards, by kind."""

    kind: str  # "json", "text", "parquet", "hub" or "installed"
    path: str
    start: int
    stop: int
    bytes: int
    """Size on disk, for balancing; 0 where unknown."""


def plan_fragments(corpus: Corpus) -> list[Fragment]:
    """List what there is to read. Raises CorpusError where the source does not exist or holds nothing readable."""
    scheme, _, rest = corpus.source.partition(":")
    if scheme == "installed":
        if rest not in INSTALLED:
            raise CorpusError(f"corpus '{corpus.name}': no installed corpus '{rest}'; choose one of {', '.join(INSTALLED)}.")
        return [Fragment("installed", rest, 0, 1, 0)]
    if corpus.source.startswith("hf://"):
        shards = _hub_dataset(corpus).num_shards if corpus.streaming else 1
        return [Fragment("hub", corpus.source, i, shards, 0) for i in range(shards)]
    return [fragment for info in _files(corpus) for fragment in _file_fragments(corpus, info)]


def documents(corpus: Corpus, fragments: list[Fragment], counts: Counter) -> Iterator[str]:
    """Yield the texts of `fragments` in order and count into `counts`.

    Counted: `documents` and `bytes` (UTF-8) read; `empty` (nothing but white space), `unreadable` (broken JSON, invalid
    UTF-8, an over-long line, a truncated Parquet or compressed file) and `missing_column` (a column of the text or
    template absent, null or not a string) left out.
    """
    for fragment in fragments:
        for record in _records(corpus, fragment, counts):
            text = _render(corpus, record)
            if text is None:
                counts["missing_column"] += 1
            elif not text.strip():
                counts["empty"] += 1
            else:
                counts["documents"] += 1
                counts["bytes"] += len(text.encode("utf-8", errors="replace"))
                yield text


def check_corpus(corpus: Corpus) -> None:
    """Read the first records of a corpus; raise CorpusError if no document can come of them."""
    if corpus.template is not None:
        try:
            named = [field for _, field, _, _ in string.Formatter().parse(corpus.template) if field is not None]
        except ValueError as error:
            raise CorpusError(f"corpus '{corpus.name}': field 'template' is not a format string ({error}).") from None
        if not named or not all(name.isidentifier() for name in named):
            raise CorpusError(
                f"corpus '{corpus.name}': field 'template' must name columns in braces, such as '{{informal}}', and nothing "
                "else."
            )
    counts: Counter = Counter()
    columns: set[str] = set()
    for fragment in plan_fragments(corpus):
        if next(documents(corpus, [fragment], counts), None) is not None:
            return
        if counts["missing_column"]:
            columns |= set(next(_records(corpus, fragment, Counter()), {}))
    if counts["missing_column"]:
        field = "template" if corpus.template else "column"
        missing = ", ".join(f"'{c}'" for c in _columns(corpus) if c not in columns) or "a string in every column"
        raise CorpusError(
            f"corpus '{corpus.name}': field '{field}' needs {missing}, but {corpus.source} has only the columns "
            f"{', '.join(sorted(columns)) or 'none'}; name one of these."
        )
    detail = f" ({counts['unreadable']} unreadable records)" if counts["unreadable"] else ""
    raise CorpusError(f"corpus '{corpus.name}': {corpus.source} is empty{detail}; give a source with at least one document.")


def first_records(corpus: Corpus, count: int = 20) -> list[dict[str, Any]]:
    """Up to `count` readable records with all their columns, whatever the corpus takes of them.

    Raises CorpusError where the source does not exist.
    """
    found: list[dict[str, Any]] = []
    for fragment in plan_fragments(corpus):
        read = partial(_parquet_records, whole=True) if fragment.kind == "parquet" else _records
        found += islice(read(corpus, fragment, Counter()), count - len(found))
        if len(found) == count:
            break
    return found


def _columns(corpus: Corpus) -> list[str]:
    if corpus.template is None:
        return [corpus.column]
    return [field for _, field, _, _ in string.Formatter().parse(corpus.template) if field]


def _render(corpus: Corpus, record: dict[str, Any]) -> str | None:
    values = {column: record.get(column) for column in _columns(corpus)}
    if not all(isinstance(value, str) for value in values.values()):
        return None
    text = corpus.template.format(**values) if corpus.template is not None else values[corpus.column]
    # NUL and lone surrogates are legal in JSON; a tokenizer and Arrow take neither
    return text.replace("\x00", "").encode("utf-8", errors="replace").decode()


# --- files ------------------------------------------------------------------------------------------------------------


def _filesystem(corpus: Corpus) -> tuple[pafs.FileSystem, str]:
    """The file system of a corpus and its source as a path (or glob) there."""
    if "://" in corpus.source:
        try:
            return pafs.FileSystem.from_uri(corpus.source)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"corpus '{corpus.name}': cannot open {corpus.source} ({error}); check the URI.") from None
    return pafs.LocalFileSystem(), str(Path(corpus.source).expanduser().resolve())


def _files(corpus: Corpus) -> list[pafs.FileInfo]:
    """Files of a path, folder or glob, sorted by path."""
    fs, path = _filesystem(corpus)
    root = path
    if "*" in path:
        root = path.partition("*")[0].rpartition("/")[0] or "/"
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        expression = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
        pattern = "".join(expression.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*)", path))
        infos = [i for i in infos if re.fullmatch(pattern, i.path, re.DOTALL)]
    else:
        info = fs.get_file_info(path)
        is_folder = info.type == pafs.FileType.Directory
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True)) if is_folder else [info]
    hidden = (".", "_")  # names below the root that are no data: .cache, _SUCCESS
    infos = [i for i in infos if i.is_file and not any(p.startswith(hidden) for p in Path(i.path).relative_to(root).parts)]
    if not infos:
        raise CorpusError(f"corpus '{corpus.name}': no file at {corpus.source}; check the field 'source'.")
    return sorted(infos, key=lambda i: i.path)


def _file_fragments(corpus: Corpus, info: pafs.FileInfo) -> list[Fragment]:
    suffixes = Path(info.path).suffixes
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    suffix = suffixes[-1 - compressed] if len(suffixes) > compressed else ""
    if info.size == 0:
        return []
    if suffix == ".parquet":
        return [Fragment("parquet", info.path, 0, -1, info.size)]
    kind = "json" if suffix in JSON_LINES else "text"
    splittable = not compressed and (kind == "json" or corpus.sample_by == "line")
    step = FRAGMENT_BYTES if splittable else info.size
    starts = range(0, info.size, step)
    return [Fragment(kind, info.path, s, min(s + step, info.size), min(step, info.size - s)) for s in starts]


def _lines(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[bytes]:
    """Lines that begin within the fragment's byte range; a compressed file is one fragment."""
    fs, _ = _filesystem(corpus)
    path = fragment.path
    compression = COMPRESSED.get(Path(path).suffix)
    source: Any = fs.open_input_stream(path, compression=compression) if compression else fs.open_input_file(path)
    with source:
        position = fragment.start
        skipping = position > 0  # a line is read by the fragment in which it begins
        if skipping:
            position -= 1
            source.seek(position)
        stream = io.BufferedReader(source, 2**20)
        while compression or position < fragment.stop:
            try:
                line = stream.readline(MAX_LINE_BYTES)
            except OSError:
                if not compression:
                    raise
                counts["unreadable"] += 1  # the compressed file is truncated or broken
                return
            if not line:
                return
            position += len(line)
            if skipping:
                skipping = not line.endswith(b"\n")
            elif len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                counts["unreadable"] += 1
                skipping = True
            else:
                yield line


def _records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    """Raw records (column -> value) of one fragment."""
    if fragment.kind == "installed":
        yield from ({corpus.column: text} for text in INSTALLED[fragment.path]())
    elif fragment.kind == "hub":
        dataset = _hub_dataset(corpus)
        yield from dataset.shard(num_shards=fragment.stop, index=fragment.start) if corpus.streaming else dataset
    elif fragment.kind == "parquet":
        yield from _parquet_records(corpus, fragment, counts)
    elif fragment.kind == "json":
        for line in _lines(corpus, fragment, counts):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                    record = None
                if isinstance(record, dict):
                    yield record
                else:
                    counts["unreadable"] += 1
    else:
        for raw in _plain_text(corpus, fragment, counts):
            try:
                yield {corpus.column: raw.decode("utf-8")}
            except UnicodeDecodeError:
                counts["unreadable"] += 1


def _plain_text(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[bytes]:
    lines = _lines(corpus, fragment, counts)
    if corpus.sample_by == "line":
        yield from lines
    elif corpus.sample_by == "document":
        yield b"".join(lines)
    else:
        paragraph: list[bytes] = []
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield b"".join(paragraph)
                paragraph = []
        if paragraph:
            yield b"".join(paragraph)


def _parquet_records(corpus: Corpus, fragment: Fragment, counts: Counter, whole: bool = False) -> Iterator[dict[str, Any]]:
    fs, _ = _filesystem(corpus)
    try:
        with fs.open_input_file(fragment.path) as file:
            parquet = pq.ParquetFile(file)
            known = parquet.schema_arrow.names
            wanted = known if whole else [c for c in _columns(corpus) if c in known]
            if not wanted:  # nothing usable: show the columns once, for the error message
                counts["missing_column"] += max(0, parquet.metadata.num_rows - 1)
                yield dict.fromkeys(known)
                return
            columns = wanted if len(wanted) == len(_columns(corpus)) else None
            for batch in parquet.iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError):
        counts["unreadable"] += 1


def _hub_dataset(corpus: Corpus) -> Any:
    import datasets

    name = corpus.source.removeprefix("hf://")
    try:
        return datasets.load_dataset(name, corpus.subset, split=corpus.split, streaming=corpus.streaming)
    except UserError:
        raise
    except Exception as error:  # the hub client raises a different class for each reason, all meant for the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"corpus '{corpus.name}': cannot open the data set {name}, split '{corpus.split}' ({reason}); "
            "check 'source', 'subset' and 'split', and that the hub can be reached."
        ) from None

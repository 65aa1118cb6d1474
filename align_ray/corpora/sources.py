"""Read corpora: from files, hub data sets or the installed default to one stream of documents.

A corpus is planned into fragments (a byte range of a JSONL file, the row groups of a Parquet file, a shard of a hub
data set), small enough to be read by one Ray Data task each and never whole into the driver. A record that cannot be
read is counted and left out; only a corpus without a single readable document is an error. docs/bad-data.md has every
case.
"""

import dataclasses
import errno
import io
import json
import os
import re
import string
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.utils import glob_translate

from align_ray.config import Corpus
from align_ray.corpora import limits
from align_ray.corpora.installed import INSTALLED
from align_ray.corpora.parquet import first_rows, text_records
from align_ray.corpora.records import Unusable, columns_of, needed_columns, render, unmarked
from align_ray.errors import CorpusError, UserError

FRAGMENT_BYTES = 64 * 2**20
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
JSON_LINES = {".jsonl", ".ndjson", ".json"}
ARCHIVES = {".tar", ".tgz", ".zip", ".7z", ".rar", ".xz"}
WILD = {*"*?["}
"""What makes a path a glob."""
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A part of a corpus that one task reads: [start, stop) in bytes, row groups or shards, by kind."""

    kind: str  # "json", "text", "parquet", "archive", "hub" or "installed"
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
            raise CorpusError(
                f"corpus '{corpus.name}': no installed corpus '{rest}'; choose one of {', '.join(INSTALLED)}."
            )
        return [Fragment("installed", rest, 0, 1, 0)]
    if corpus.source.startswith("hf://"):
        shards = _hub_dataset(corpus).num_shards if corpus.streaming else 1
        return [Fragment("hub", corpus.source, i, shards, 0) for i in range(shards)]
    return [fragment for info in _files(corpus) for fragment in _file_fragments(corpus, info)]


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
        for record in _records(corpus, fragment, counts):
            try:
                text = render(corpus, record)
            except Unusable as reason:
                counts[str(reason)] += 1
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
    counts: Counter = Counter()
    columns: set[str] = set()
    fragments = plan_fragments(corpus)
    for fragment in fragments:
        if next(documents(corpus, [fragment], counts), None) is not None:
            return
        if counts["missing_column"]:
            columns |= set(next(_records(corpus, fragment, Counter()), {}))
    if counts["missing_column"]:
        field = "chat" if corpus.chat else "prompt" if corpus.prompt else "template" if corpus.template else "column"
        there = lambda column: column in columns or column.partition(".")[0] in columns
        wanted = "a list of messages in its column" if corpus.chat else "a text in every column"
        missing = ", ".join(f"'{c}'" for c in needed_columns(corpus) if not there(c)) or wanted
        raise CorpusError(
            f"corpus '{corpus.name}': field '{field}' needs {missing}, but {corpus.source} has only the columns "
            f"{', '.join(sorted(columns)) or 'none'}; name one of these."
        )
    if array := next((f.path for f in fragments if f.kind == "json" and _holds_array(corpus, f)), None):
        raise CorpusError(f"corpus '{corpus.name}': {array} is one JSON array; give JSON Lines, one object a line.")
    if counts["no_completion"]:
        raise CorpusError(
            f"corpus '{corpus.name}': none of the records of {corpus.source} has a completion (what an assistant says) "
            "that can be found; check the fields 'chat', 'prompt' and 'completion'."
        )
    labels = {"unreadable": "unreadable records", "oversized": "oversized", "vanished": "vanished while being read"}
    detail = ", ".join(f"{counts[name]} {label}" for name, label in labels.items() if counts[name])
    detail = f" ({detail})" if detail else ""
    raise CorpusError(
        f"corpus '{corpus.name}': {corpus.source} is empty{detail}; give a source with at least one document."
    )


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
        read = _parquet_head if fragment.kind == "parquet" else _records
        found += islice(read(corpus, fragment, Counter()), count * i // len(parts) - len(found))
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def _filesystem(corpus: Corpus) -> tuple[pafs.FileSystem, str]:
    """The file system of a corpus and its source as a path (or glob) there."""
    if "://" in corpus.source:
        try:
            return pafs.FileSystem.from_uri(corpus.source)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(
                f"corpus '{corpus.name}': cannot open {corpus.source} ({error}); check the URI."
            ) from None
    try:
        return pafs.LocalFileSystem(), str(Path(os.path.expanduser(corpus.source)).resolve())
    except (RuntimeError, ValueError) as error:  # an unknown user's home, a NUL
        raise CorpusError(
            f"corpus '{corpus.name}': {corpus.source!r} is no path ({error}); check the field 'source'."
        ) from None


def _files(corpus: Corpus) -> list[pafs.FileInfo]:
    """Files of a path, folder or glob, sorted by path."""
    try:
        return _listed(corpus)
    except OSError as error:
        raise _refused(corpus, corpus.source, error) from None


def _refused(corpus: Corpus, path: str, error: OSError) -> CorpusError:
    reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
    return CorpusError(f"corpus '{corpus.name}': cannot read {path} ({reason}); fix that and run it again.")


def _listed(corpus: Corpus) -> list[pafs.FileInfo]:
    fs, path = _filesystem(corpus)

    def literal(path: str) -> bool:
        """Whether a path stands for itself: a name may hold `?` and `[`."""
        return not WILD & set(path) or fs.get_file_info(path).type != pafs.FileType.NotFound

    root = path
    if "*" in path or not literal(path):
        root = next(parent for parent in map(str, PurePosixPath(path).parents) if literal(parent))
        try:
            pattern = re.compile(glob_translate(str(PurePosixPath(path).relative_to(root))))
        except ValueError:
            raise CorpusError(
                f"corpus '{corpus.name}': '**' stands for whole folders, not for a part of a name as in "
                f"{corpus.source}; write **/* in the field 'source'."
            ) from None
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        infos = [i for i in infos if pattern.match(str(PurePosixPath(i.path).relative_to(root)))]
    else:
        info = fs.get_file_info(path)
        is_folder = info.type == pafs.FileType.Directory
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True)) if is_folder else [info]
    hidden = (".", "_")  # names below the root that are no data: .cache, _SUCCESS
    infos = [
        i for i in infos if i.is_file and not any(p.startswith(hidden) for p in Path(i.path).relative_to(root).parts)
    ]
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
    if ARCHIVES & {suffix, *suffixes[-1:]}:
        return [Fragment("archive", info.path, 0, -1, info.size)]
    kind = "json" if suffix in JSON_LINES else "text"
    splittable = not compressed and (kind == "json" or corpus.sample_by == "line")
    step = FRAGMENT_BYTES if splittable else info.size
    starts = range(0, info.size, step)
    return [Fragment(kind, info.path, s, min(s + step, info.size), min(step, info.size - s)) for s in starts]


def _records(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    """Raw records (column -> value) of one fragment."""
    try:
        if fragment.kind == "installed":
            yield from ({corpus.column: text} for text in INSTALLED[fragment.path]())
        elif fragment.kind == "hub":
            yield from _hub_records(corpus, fragment)
        elif fragment.kind == "parquet":
            yield from _parquet_records(corpus, fragment, counts)
        elif fragment.kind == "json":
            yield from _json_records(corpus, fragment, counts)
        elif fragment.kind == "text":
            yield from _text_records(corpus, fragment, counts)
        else:
            counts["unreadable"] += 1
    except OSError as error:
        if error.errno not in GONE:
            raise _refused(corpus, fragment.path, error) from None
        counts["vanished"] += 1


def _lines(corpus: Corpus, fragment: Fragment) -> Iterator[bytes | str]:
    """Lines that begin within the fragment's byte range; a compressed file is one fragment.

    In place of a line above MAX_RECORD_BYTES, or of the rest of a file that breaks off, inflates without end or has
    become shorter, the name of the counter for it.
    """
    fs, _ = _filesystem(corpus)
    path = fragment.path
    compression = COMPRESSED.get(Path(path).suffix)
    most = limits.most_inflated(fragment.bytes)
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
                line = stream.readline(limits.MAX_RECORD_BYTES)
            except OSError as error:
                if not compression or error.errno:
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
    if _holds_array(corpus, fragment):
        counts["unreadable"] += 1
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


def _holds_array(corpus: Corpus, fragment: Fragment) -> bool:
    """Whether a `.json` file is one array instead of lines."""
    if ".json" not in Path(fragment.path).suffixes[-2:]:
        return False
    try:
        compression = COMPRESSED.get(Path(fragment.path).suffix)
        with _filesystem(corpus)[0].open_input_stream(fragment.path, compression=compression) as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError:
        return False  # reading it says why


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
    with _filesystem(corpus)[0].open_input_file(fragment.path) as file:
        yield from text_records(file, columns_of(corpus), needed_columns(corpus), counts)


def _parquet_head(corpus: Corpus, fragment: Fragment, counts: Counter) -> Iterator[dict[str, Any]]:
    with _filesystem(corpus)[0].open_input_file(fragment.path) as file:
        yield from first_rows(file, LOOKED_AT)


def _hub_records(corpus: Corpus, fragment: Fragment) -> Iterator[dict[str, Any]]:
    dataset = _hub_dataset(corpus)
    try:
        yield from dataset.shard(num_shards=fragment.stop, index=fragment.start) if corpus.streaming else dataset
    except Exception as error:  # a broken file or a lost connection, each a class of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"corpus '{corpus.name}': cannot read {corpus.source} ({reason}); fix that and run it again."
        ) from None


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

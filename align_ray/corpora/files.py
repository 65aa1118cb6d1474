"""The files of a corpus: found by a path, folder or glob on any pyarrow file system, told by their names and, where
those do not tell, by their first bytes.

Reading is our own where a corpus must be read in parts by many tasks and a broken record may cost itself alone; pyarrow
opens, decompresses and parses what it can.
"""

import dataclasses
import errno
import lzma
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.utils import glob_translate

from align_ray.config_corpora import Corpus
from align_ray.errors import CorpusError
from align_ray.hub import not_answering

FRAGMENT_BYTES = 64 * 2**20
COMPRESSED = {
    ".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4", ".xz": "xz",
}  # fmt: skip
KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv",
    ".tsv": "tsv", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
TEXT = {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".js", ".ts",
        ".java", ".go", ".rs", ".rb", ".sh", ".lean", ".log"}  # fmt: skip
"""Suffixes of plain text; what has another one, or none, is told by its first bytes."""
ARCHIVES = {".tar", ".tgz", ".zip", ".7z", ".rar"}
NO_DATA = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"}
"""Written by `datasets` beside its files."""
POINTER = b"version https://git-lfs.github.com"
WILD = {*"*?["}
"""What makes a path a glob."""
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A part of a corpus that one task reads: [start, stop) in bytes, row groups or shards, by kind."""

    kind: str  # "json", "text", "parquet", "csv", "tsv", "arrow", "unusable", "hub" or "installed"
    path: str
    start: int
    stop: int
    bytes: int
    """Size on disk, for balancing; 0 where unknown."""
    note: str = ""
    """What an unusable file is, and what to do."""


def fragments_of_files(corpus: Corpus) -> list[Fragment]:
    """All files in parts. Beside data files (JSON, Parquet, tables) plain text is no data, and in a folder of texts
    neither is a README or a licence, unless there is nothing else."""
    return _data_and_rest(corpus)[0]


def files_left_out(corpus: Corpus) -> list[str]:
    """Names of the files of a source that are no data (see `fragments_of_files`)."""
    return sorted({PurePosixPath(f.path).name for f in _data_and_rest(corpus)[1]})


ABOUT_DATA = re.compile(r"(readme|licen[cs]e|copying)([-._]\w+)*", re.IGNORECASE)
"""Names of files about a folder's texts."""


def _data_and_rest(corpus: Corpus) -> tuple[list[Fragment], list[Fragment]]:
    found = [fragment for info in files_of(corpus) for fragment in _file_fragments(corpus, info)]
    if any(f.kind not in ("text", "unusable") for f in found):
        rest = [f for f in found if f.kind == "text"]
    else:
        named = {filesystem(corpus, source)[1] for source in corpus.sources}
        rest = [f for f in found if ABOUT_DATA.fullmatch(PurePosixPath(f.path).name) and f.path not in named]
        if len(rest) == len(found) or any(WILD & set(source) for source in corpus.sources):
            rest = []
    return [f for f in found if f not in rest], rest


def filesystem(corpus: Corpus, source: str | None = None) -> tuple[pafs.FileSystem, str]:
    """The file system of a corpus and its source as a path (or glob) there."""
    source = source or corpus.sources[0]
    if source.startswith("hf://datasets/"):
        import fsspec

        if silent := not_answering():
            raise CorpusError(f"corpus '{corpus.name}': {silent}.")

        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("hf"))), source.removeprefix("hf://")
    if source.startswith("s3://") and "anonymous=true" in source:
        parts = urlsplit(source)
        given = {name: values[0] for name, values in parse_qs(parts.query).items() if name != "anonymous"}
        try:
            return pafs.S3FileSystem(anonymous=True, **given), parts.netloc + parts.path
        except (TypeError, pa.ArrowException, OSError) as error:  # an option that is not known, or its value
            raise CorpusError(f"corpus '{corpus.name}': cannot open {source} ({error}); check the URI.") from None
    if "://" in source:
        try:
            return pafs.FileSystem.from_uri(source)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"corpus '{corpus.name}': cannot open {source} ({error}); check the URI.") from None
    try:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(source))
    except (RuntimeError, ValueError) as error:  # an unknown user's home, a NUL
        raise CorpusError(
            f"corpus '{corpus.name}': {source!r} is no path ({error}); check the field 'source'."
        ) from None


def open_file(corpus: Corpus, fragment: Fragment) -> Any:
    """The file's bytes, decompressed as its name says: a stream of a compressed file, else an open file."""
    fs, _ = filesystem(corpus)
    compression = compression_of(fragment.path)
    if compression == "xz":
        return lzma.open(fs.open_input_stream(fragment.path, compression=None))
    return (
        fs.open_input_stream(fragment.path, compression=compression)
        if compression
        else fs.open_input_file(fragment.path)
    )


def compression_of(path: str) -> str | None:
    return COMPRESSED.get(Path(path).suffix.lower())


def files_of(corpus: Corpus) -> list[pafs.FileInfo]:
    """Files of a path, folder or glob, sorted by path; each once, however many links lead to it."""
    try:
        found: dict[str, pafs.FileInfo] = {}
        for given in corpus.sources:
            below = {info.path: info for source in alternatives(given) for info in _listed(corpus, source)}
            if not below:
                raise CorpusError(f"corpus '{corpus.name}': no file at {given}; check the field 'source'.")
            found |= below
    except OSError as error:
        raise refused(corpus, corpus.where, error) from None
    seen: set[str] = set()
    kept = []
    local = isinstance(filesystem(corpus)[0], pafs.LocalFileSystem)
    for path in sorted(found, key=lambda path: (path.count("/"), path)):
        real = os.path.realpath(path) if local else path
        if real not in seen:
            kept.append(found[path])
        seen.add(real)
    return sorted(kept, key=lambda info: info.path)


def alternatives(source: str) -> list[str]:
    """Globs without braces: `{a,b}` stands for either."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", source)
    if not match or not WILD & set(source) and os.path.exists(source):
        return [source]
    head, tail = source[: match.start()], source[match.end() :]
    return [found for part in match[1].split(",") for found in alternatives(head + part + tail)]


def refused(corpus: Corpus, path: str, error: OSError) -> CorpusError:
    """The sentence for a file that is there but cannot be read."""
    reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
    return CorpusError(f"corpus '{corpus.name}': cannot read {path} ({reason}); fix that and run it again.")


def _listed(corpus: Corpus, source: str) -> list[pafs.FileInfo]:
    fs, path = filesystem(corpus, source)

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
                f"{source}; write **/* in the field 'source'."
            ) from None
        infos = _below(fs, root)
        infos = [i for i in infos if pattern.match(str(PurePosixPath(i.path).relative_to(root)))]
    else:
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            root = path = _split_folder(corpus, fs, path)
        infos = _below(fs, path) if info.type == pafs.FileType.Directory else [info]
    hidden = (".", "_")  # names below the root that are no data: .cache, _SUCCESS
    return [
        i for i in infos if i.is_file and not any(p.startswith(hidden) for p in Path(i.path).relative_to(root).parts)
    ]


def _below(fs: pafs.FileSystem, root: str) -> list[pafs.FileInfo]:
    """All files below a folder; of a local one links to folders that hold them are followed once."""
    if not isinstance(fs, pafs.LocalFileSystem):
        return fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    paths: list[str] = []
    entered: set[str] = set()
    roots = [root]
    while roots:  # folders themselves before links to them
        for folder, inner, names in os.walk(roots.pop(0)):
            real = os.path.realpath(folder)
            if real in entered:
                inner.clear()
                continue
            entered.add(real)
            paths += [os.path.join(folder, name) for name in names]
            roots += [place for name in inner if os.path.islink(place := os.path.join(folder, name))]
    return fs.get_file_info(paths) if paths else []


def _split_folder(corpus: Corpus, fs: pafs.FileSystem, path: str) -> str:
    """Of a DatasetDict that `datasets` has saved, the folder of the split."""
    if fs.get_file_info(f"{path}/dataset_dict.json").type != pafs.FileType.File:
        return path
    below = fs.get_file_info(pafs.FileSelector(path))
    splits = sorted(i.base_name for i in below if i.type == pafs.FileType.Directory)
    if corpus.split not in splits:
        raise CorpusError(
            f"corpus '{corpus.name}': {path} holds the splits {', '.join(splits)}; set the field 'split' to one."
        )
    return f"{path}/{corpus.split}"


def _file_fragments(corpus: Corpus, info: pafs.FileInfo) -> list[Fragment]:
    suffixes = [suffix.lower() for suffix in Path(info.path).suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    suffix = suffixes[-1 - compressed] if len(suffixes) > compressed else ""
    if info.size == 0 or Path(info.path).name in NO_DATA:
        return []
    kind = KINDS.get(suffix) or ("text" if suffix in TEXT else "")
    note = ""
    if ARCHIVES & {suffix, *suffixes[-1:]}:
        kind, note = "unusable", "an archive; unpack it"
    elif suffix == ".dvc":
        kind, note = "unusable", "a pointer of DVC; fetch the data with dvc pull"
    elif (kind in KINDS.values() and 100 <= info.size <= 300) or not (kind or compressed):
        kind, note = _by_content(corpus, info, kind, compressed)
    kind = kind or "text"
    splittable = not compressed and (kind == "json" or (kind == "text" and corpus.sample_by == "line"))
    if kind in ("parquet", "unusable"):
        return [Fragment(kind, info.path, 0, -1, info.size, note)]
    step = FRAGMENT_BYTES if splittable else info.size
    starts = range(0, info.size, step)
    return [Fragment(kind, info.path, s, min(s + step, info.size), min(step, info.size - s)) for s in starts]


def _by_content(corpus: Corpus, info: pafs.FileInfo, kind: str, compressed: bool) -> tuple[str, str]:
    """Kind and note of a file whose name does not tell, or that may be a pointer."""
    try:
        with filesystem(corpus)[0].open_input_stream(info.path, compression=None) as file:
            head = file.read(4096)
    except OSError:
        return kind or "text", ""  # reading it says why
    note = what_else(head)
    if note and (head.startswith(POINTER) or not (compressed or kind)):
        return "unusable", note
    if kind:
        return kind, ""
    if head.startswith(b"PAR1"):
        return "parquet", ""
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow", ""
    line = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return ("json" if re.match(rb'\{\s*"', line) else "text"), ""


def what_else(head: bytes) -> str:
    """What a file that begins so is instead of data, and what to do; "" where nothing speaks against it."""
    if head.startswith(POINTER):
        return "a pointer of Git LFS; fetch the data with git lfs pull"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16; convert it with iconv -f UTF-16 -t UTF-8"
    names = {b"\x1f\x8b": "gzip (.gz)", b"\x28\xb5\x2f\xfd": "Zstandard (.zst)", b"BZh": "bzip2 (.bz2)",
             b"\xfd7zXZ": "xz (.xz)", b"PK\x03\x04": "a ZIP archive"}  # fmt: skip
    found = next((name for magic, name in names.items() if head.startswith(magic)), "")
    if found.startswith("a "):
        return f"{found}; unpack it"
    return f"compressed by {found}; give it that suffix" if found else ""

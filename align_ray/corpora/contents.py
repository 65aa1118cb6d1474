"""What a source holds, for people before a run: files, records, bytes, what is left out, and splits that are mixed."""

import dataclasses
import re
from collections import Counter
from pathlib import PurePosixPath

from align_ray.config_corpora import Corpus, is_hub_dataset
from align_ray.corpora.files import compression_of, files_left_out
from align_ray.corpora.sources import documents, plan_fragments

MOST_RECORDS, MOST_BYTES = 10_000, 2**24
"""So much of a source is read to count it; of a larger one is said that there is more."""
INFLATED = 3.0
"""Bytes of text in one of a compressed file or of Parquet, about."""
SPLIT = re.compile(r"(?:^|[^a-z])(train|test|valid|validation|val|dev|eval)(?:[^a-z]|$)")


@dataclasses.dataclass(frozen=True)
class Contents:
    """`records` and `text_bytes` are all of them where `whole`, else of the part that was read; `bytes` of the files,
    None where the source does not tell."""

    files: int
    records: int
    whole: bool
    bytes: int | None
    text_bytes: int
    left_out: tuple[str, ...]
    """Names of files that are no data."""
    splits: tuple[str, ...]
    """Words for splits in the names of the files, where there are several: `test`, `train`."""

    def __str__(self) -> str:
        files = f"{self.files:,} file{'s' * (self.files != 1)}, " if self.files else ""
        size = "" if self.bytes is None else f", {size_of(self.bytes)}"
        left = f"; left out: {_few(self.left_out)}" if self.left_out else ""
        return f"{files}{'' if self.whole else 'more than '}{self.records:,} records{size}{left}"

    def mixed(self) -> str:
        """A sentence where files of several splits are in one source; "" where not."""
        if not self.splits:
            return ""
        return f"files of several splits are read as one corpus ({' and '.join(self.splits)}); name those of one alone"


def contents(corpus: Corpus) -> Contents:
    """Look through a source, MOST_RECORDS or MOST_BYTES of it. Raises CorpusError where it cannot be read."""
    fragments, counts = plan_fragments(corpus), Counter[str]()
    records = read = 0
    whole = True
    for document in documents(corpus, fragments, counts):
        records, read = records + 1, read + len(document.encode())
        if records >= MOST_RECORDS or read >= MOST_BYTES:
            whole = False
            break
    on_disk = not is_hub_dataset(corpus.sources[0]) and fragments[0].kind != "installed"
    sizes = dict.fromkeys((f.path for f in fragments), 0)
    for fragment in fragments:
        sizes[fragment.path] += fragment.bytes
    text = read if whole else sum(round(size * _inflated(path)) for path, size in sizes.items())
    return Contents(
        len(sizes) if on_disk else 0,
        records,
        whole,
        sum(sizes.values()) if on_disk else None,
        text if on_disk or whole else 0,
        tuple(files_left_out(corpus)) if on_disk else (),
        splits_of(list(sizes)) if on_disk else (),
    )


def _inflated(path: str) -> float:
    return INFLATED if compression_of(path) or path.endswith((".parquet", ".pq")) else 1.0


def splits_of(paths: list[str]) -> tuple[str, ...]:
    """The words for splits in names of files and of their folders, where not all files are of one."""
    short = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}
    found = set()
    for path in paths:
        words = SPLIT.findall("/".join(PurePosixPath(path.lower()).parts[-2:]))
        found |= {short.get(word, word) for word in words[-1:]}
    return tuple(sorted(found)) if len(found) > 1 else ()


def size_of(count: float) -> str:
    """Bytes as people write them: 812 B, 1.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

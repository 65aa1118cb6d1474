"""Records that are left out, kept aside: where each was, why, and how it begins."""

import json
from collections import Counter
from typing import Any

import pyarrow as pa

MOST = 100
"""Rejects that a task keeps; all are counted."""
BEGINNING = 200
"""Characters of a rejected record that are kept."""
SCHEMA = pa.schema({"corpus": pa.string(), "file": pa.string(), "reason": pa.string(), "begins": pa.string()})


class Counts(Counter):
    """A Counter of what is met while reading, with the first MOST records that were left out."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.file = ""
        self.rejects: list[dict[str, str]] = []


def reading(counts: Counter, file: str) -> None:
    """From here on what is left out is of this file."""
    if isinstance(counts, Counts):
        counts.file = file


def keep(counts: Counter, reason: str, record: Any) -> None:
    """Keep a record aside, where the counter takes it."""
    if isinstance(counts, Counts) and len(counts.rejects) < MOST:
        if isinstance(record, bytes):
            text = record[: 4 * BEGINNING].decode("utf-8", errors="replace")
        else:
            text = json.dumps(record, ensure_ascii=False, default=repr)
        text = text[:BEGINNING].encode("utf-8", errors="replace").decode()
        counts.rejects.append({"file": counts.file, "reason": reason, "begins": text})


def rejects_table(rejects: list[dict[str, str]], with_text: bool) -> pa.Table:
    """The rejects of all corpora as SCHEMA; `with_text`: how each begins."""
    rows = rejects if with_text else [{**reject, "begins": ""} for reject in rejects]
    return pa.Table.from_pylist(rows, SCHEMA)

"""A row: T tokens to train on or to measure a loss on, with where each is from and which of them count."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from align_ray.fisher.tokens import as_context, plain_ids

FILLED = -1
"""The document of what fills a row up."""


def firsts(documents: np.ndarray) -> np.ndarray:
    """Where a document's part in a row begins, bool [n, T], from the documents of all tokens."""
    first = np.ones(documents.shape, dtype=bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first


@dataclasses.dataclass(frozen=True)
class Rows:
    """n rows of T tokens each. A row is a window of one document, or short documents and ends of documents one after
    the other; those do not see each other (`positions`)."""

    ids: np.ndarray
    """int32 [n, T]."""
    documents: np.ndarray
    """int64 [n, T]: the first eight bytes of the key of each token's document."""
    places: np.ndarray
    """int32 [n, T]: each token's number in (the excerpt of) its document, from 0."""
    scored: np.ndarray
    """bool [n, T]: the tokens whose loss counts. Never the first one of a document's part in a row, which nothing of
    the document predicts."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: Any) -> Self:
        """The rows with these numbers (a slice or an int array)."""
        return type(self)(*(array[which] for array in self._arrays()))

    @property
    def tokens(self) -> int:
        """Tokens in all rows together."""
        return self.ids.size

    @property
    def encoded(self) -> np.ndarray:
        """int32 [n, T]: token ids that say which count (see `fisher/tokens.py`)."""
        return np.where(self.scored, self.ids, as_context(self.ids))

    @property
    def positions(self) -> np.ndarray:
        """int64 [n, T], what a model is given as position ids: they begin at 0 again where another document does."""
        number = np.arange(self.ids.shape[1])
        return number - np.maximum.accumulate(np.where(firsts(self.documents), number, 0), axis=1)

    def _arrays(self) -> list[np.ndarray]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def digest(self) -> str:
        """Digest of all that a training on the rows depends on."""
        total = hashlib.sha256(f"{self.ids.shape}".encode())
        for array, dtype in ((self.ids, "<i4"), (self.positions, "<i4"), (self.scored, "u1")):
            total.update(np.ascontiguousarray(array, dtype).tobytes())
        return total.hexdigest()[:16]

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> Self:
        """Rows of several parts one after the other; at least one part."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(part._arrays() for part in parts), strict=True)))

    @classmethod
    def ending(cls, lines: Sequence[Sequence[int]], counted: Sequence[int]) -> Self:
        """Token ids of documents of any length, filled up to the longest one's; of each the last `counted` count."""
        length = max(map(len, lines))
        ids, documents = np.zeros((len(lines), length), np.int32), np.full((len(lines), length), FILLED, np.int64)
        scored, places = np.zeros(ids.shape, bool), np.zeros(ids.shape, np.int32)
        for r, (line, count) in enumerate(zip(lines, counted, strict=True)):
            ids[r, : len(line)], documents[r, : len(line)] = line, r
            scored[r, len(line) - count : len(line)] = True
            places[r, : len(line)] = np.arange(len(line))
        return cls(ids, documents, places, scored)

    @classmethod
    def plain(cls, ids: np.ndarray) -> Self:
        """Rows [n, T] of which nothing else is known: each one document, every token but the first counts."""
        number = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        documents = np.broadcast_to(np.arange(len(ids), dtype=np.int64)[:, None], ids.shape)
        return cls(ids.astype(np.int32), documents, number, number > 0)

    @classmethod
    def encoded_as(cls, ids: np.ndarray) -> Self:
        """Rows [n, T] of ids that say which tokens count (see `fisher/tokens.py`), each one document."""
        rows = cls.plain(plain_ids(ids))
        return dataclasses.replace(rows, scored=rows.scored & (ids >= 0))


def validation_half(values: Any) -> Any:
    """The first half of held-out rows, or of anything that goes with them (an array's axis 0): for whatever chooses by
    its loss."""
    return values[: max(1, len(values) // 2)]


def report_half(values: Any) -> Any:
    """The second half, for what is reported; all of a single row."""
    return values[len(values) // 2 :]

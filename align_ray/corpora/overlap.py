"""How much of a corpus is in another one: from sketches of their documents, made while they are read.

A document's fingerprint is a hash of its words without case, punctuation and spaces; a corpus' sketch its smallest
fingerprints (bottom-k, Broder 1997). Below the smaller of two sketches' largest fingerprints both corpora are known
whole, so that the share of one's fingerprints there that the other has as well estimates the share of its documents.
"""

import dataclasses
import hashlib
import re

import numpy as np

KEPT = 1024
"""Fingerprints of a sketch: the standard error of a share is at most 1.6 points."""
LOOKED_AT = 20_000
"""Characters of a document that its fingerprint is of."""
WORD = re.compile(r"\w+")


@dataclasses.dataclass
class Sketch:
    """The KEPT smallest fingerprints of what was added, uint64, sorted and distinct."""

    smallest: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    pending: list[int] = dataclasses.field(default_factory=list)

    def add(self, text: str) -> None:
        """Take in a document."""
        words = " ".join(WORD.findall(text[:LOOKED_AT].lower()))
        self.pending.append(int.from_bytes(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest()))
        if len(self.pending) > 8 * KEPT:
            self.settle()

    def settle(self, more: np.ndarray | None = None) -> np.ndarray:
        """The sketch, `more` (of another part of the corpus) taken in as well."""
        parts = [self.smallest, np.array(self.pending, dtype=np.uint64), *([] if more is None else [more])]
        self.smallest, self.pending = np.unique(np.concatenate(parts))[:KEPT], []
        return self.smallest


def share_in(one: np.ndarray, other: np.ndarray) -> float:
    """The share of one's documents that the other has as well, from their sketches."""
    known = [sketch[-1] for sketch in (one, other) if len(sketch) == KEPT]
    part = one if not known else one[one <= min(known)]
    return float(np.isin(part, other).mean()) if len(part) else 0.0

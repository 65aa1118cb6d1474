"""How much of a corpus is in another one: from sketches of their documents, made while they are read.

A document's fingerprint is the smallest hash of its runs of RUN words, without case, punctuation and spaces (MinHash):
two documents have the same one with the probability that is the share of runs that they have in common (Jaccard), so
near copies count by how near they are. A corpus' sketch is its smallest fingerprints (bottom-k; Broder 1997), hashed
once more, so that a document's length plays no part. Below the smaller of two sketches' largest fingerprints both
corpora are known whole, so that the share of one's fingerprints there that the other has as well estimates the share of
its documents.
"""

import dataclasses
import re

import numpy as np

KEPT = 1024
"""Fingerprints of a sketch: the standard error of a share is at most 1.6 points."""
LOOKED_AT = 20_000
"""Characters of a document that its fingerprint is of."""
SHARED = 0.02
"""Share of a corpus in another one from which on it is said; files of one program share up to a hundredth."""
RUN = 5
"""Words that are hashed together; a shorter document is one run."""
UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
)
"""Scripts without spaces between words: Han, Hiragana, Katakana; Thai, Lao, Myanmar, Khmer. Each of their characters
counts as a word: what `\\w+` finds there is a sentence."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
IN_WORDS = np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])
"""By byte of UTF-8, whether a word goes on."""
BASE = 0x9E3779B97F4A7C15
POWERS, INVERSES = (
    np.cumprod(np.r_[np.uint64(1), np.full(4 * LOOKED_AT, base, np.uint64)], dtype=np.uint64)
    for base in (BASE, pow(BASE, -1, 2**64))
)


def fingerprint(text: str) -> int:
    """64 bits, the same in every process; of a text without words that of all such texts."""
    text = text[:LOOKED_AT].lower()
    if not text.isascii():
        text = " ".join(WORD.findall(text))
    words = _words(text.encode("utf-8", "replace"))
    length = min(RUN, len(words))
    runs = np.zeros(len(words) - length + 1, np.uint64)
    for place in range(length):
        runs = _mixed(runs + words[place : place + len(runs)])
    return int(_mixed(runs.min(keepdims=True))[0])


def _words(text: bytes) -> np.ndarray:
    """A hash of every word, uint64: a polynomial of its bytes modulo 2^64, all at once as differences of running
    sums."""
    data = np.frombuffer(text, np.uint8)[: 4 * LOOKED_AT]
    inside = np.r_[False, IN_WORDS[data], False]
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    sums = np.r_[np.uint64(0), np.cumsum((data + np.uint64(1)) * POWERS[: len(data)], dtype=np.uint64)]
    return (sums[ends] - sums[starts]) * INVERSES[starts]


def _mixed(values: np.ndarray) -> np.ndarray:
    """A permutation of uint64 in which every bit depends on every other (splitmix64, Steele et al. 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclasses.dataclass
class Sketch:
    """The KEPT smallest fingerprints of what was added, uint64, sorted and distinct."""

    smallest: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    pending: list[int] = dataclasses.field(default_factory=list)

    def add(self, text: str) -> None:
        """Take in a document."""
        self.pending.append(fingerprint(text))
        if len(self.pending) > 8 * KEPT:
            self.settle()

    def settle(self, more: np.ndarray | None = None) -> np.ndarray:
        """The sketch, `more` (of another part of the corpus) taken in as well."""
        parts = [self.smallest, np.array(self.pending, dtype=np.uint64), *([] if more is None else [more])]
        self.smallest, self.pending = np.unique(np.concatenate(parts))[:KEPT], []
        return self.smallest


def share_in(one: np.ndarray, other: np.ndarray) -> float:
    """The share of one's documents that the other has as well, near copies by how near they are, from their
    sketches."""
    known = [sketch[-1] for sketch in (one, other) if len(sketch) == KEPT]
    part = one if not known else one[one <= min(known)]
    return float(np.isin(part, other).mean()) if len(part) else 0.0

"""Many pairs of corpora by the margins of their batches' matrices: means of rows and columns, never all of a pair's
numbers at once.

The mean of a matrix [n, m] and its interval over batches need its row means and its column means alone. So corpora are
joined to chunks of about CHUNK batches, the matrix of two chunks is computed whole, and of every pair of corpora in it
the margins are kept: K x T pairs take K T numbers for each of four statistics, and for rankings the column means, 8 K m
bytes a target. Equal to `intervals.two_sample_mean` of every pair's matrix but for the order of sums.
"""

import dataclasses
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from align_ray.alignment.intervals import Estimate

CHUNK = 1024
"""Batches compared at once with as many others: a matrix of 8 MB."""
CHUNK_BYTES = 64 * 2**20
"""Of their embeddings; a corpus that holds more is a chunk of its own."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some corpora's batches one after the other."""

    first: int
    """The first corpus' number among all."""
    rows: np.ndarray
    """float32 [1 + R, n, D]: see `coefficients.Reduced`."""
    counts: np.ndarray
    """int [k], batches of each corpus, at least 2."""

    @property
    def starts(self) -> np.ndarray:
        return np.r_[0, np.cumsum(self.counts)[:-1]]

    @property
    def of(self) -> slice:
        """Of all corpora, those in here."""
        return slice(self.first, self.first + len(self.counts))


def chunks(rows: Sequence[np.ndarray], draws: bool, most: int | None = None) -> Iterator[Chunk]:
    """Corpora with embeddings [1 + R, n_k, D] in chunks, in their order. `draws`: with those of all draws but one;
    `most`: of each corpus so many batches, the first, alone. What is mapped from a file is copied and let go."""
    start = 0
    while start < len(rows):
        end, units, size = start, 0, 0
        while end < len(rows):
            of_corpus = rows[end][: None if draws else 1, :most]
            if end > start and (units + of_corpus.shape[1] > CHUNK or size + of_corpus.nbytes > CHUNK_BYTES):
                break
            end, units, size = end + 1, units + of_corpus.shape[1], size + of_corpus.nbytes
        parts = [r[: None if draws else 1, :most] for r in rows[start:end]]
        yield Chunk(start, np.concatenate(parts, axis=1), np.array([p.shape[1] for p in parts]))
        for part in rows[start:end]:
            let_go(part)
        start = end


def let_go(array: np.ndarray) -> None:
    """Pages of a mapped file that were read are given back: else a thousand corpora would stay in memory one by one."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and getattr(array, "mode", "") == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Means over pairs of batches of A corpora with B others."""

    mean: np.ndarray
    """float64 [A, B]."""
    own: np.ndarray
    """float64 [A, B], variance of the mean that A's batches give, and `other`, B's."""
    other: np.ndarray
    batches: np.ndarray
    """int [A], of each of A; `of_other` [B]."""
    of_other: np.ndarray

    @classmethod
    def empty(cls, batches: np.ndarray, of_other: np.ndarray) -> "Pairs":
        mean, own, other = np.zeros((3, len(batches), len(of_other)))
        return cls(mean, own, other, batches, of_other)

    def put(self, a: Chunk, b: Chunk, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the pairs of two chunks from the matrix of all their batches; returns its row means by corpus of b,
        [n, B], and its column means by corpus of a, [A, m]."""
        rows = np.add.reduceat(values, b.starts, axis=1) / b.counts
        columns = np.add.reduceat(values, a.starts, axis=0) / a.counts[:, None]
        self.mean[a.of, b.of] = mean = np.add.reduceat(rows, a.starts, axis=0) / a.counts[:, None]
        self.own[a.of, b.of] = _variances(rows, mean, a)
        self.other[a.of, b.of] = _variances(columns.T, mean.T, b).T
        return rows, columns

    def mirrored(self) -> "Pairs":
        """Of all pairs of A = B corpora, from those above the diagonal."""
        mean, own, other = (np.triu(x, 1) for x in (self.mean, self.own, self.other))
        return dataclasses.replace(self, mean=mean + mean.T, own=own + other.T, other=other + own.T)

    def estimates(self) -> np.ndarray:
        """Value, error, low and high of every pair, [A, B, 4]: `two_sample_mean`."""
        n, m = self.batches[:, None], self.of_other[None, :]
        return estimated(self.mean, self.own, self.other, n - 1, m - 1)


def _variances(means: np.ndarray, of_corpus: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Variance of the mean by corpus, from the batches' means [n, B] around the corpora's [k, B]."""
    off = means - np.repeat(of_corpus, chunk.counts, axis=0)
    n = chunk.counts[:, None]
    return np.add.reduceat(off * off, chunk.starts, axis=0) / (n - 1) / n


def estimated(
    value: np.ndarray, own: np.ndarray, other: np.ndarray, own_freedom: np.ndarray, other_freedom: np.ndarray
) -> np.ndarray:
    """95% t intervals of values with two independent parts of their variance (Satterthwaite), each of any shape;
    value, error, low, high in a last axis."""
    total = own + other
    freedom = total**2 / np.maximum(own**2 / own_freedom + other**2 / other_freedom, 1e-300)
    error = np.sqrt(total)
    half = stats.t.ppf(0.975, np.maximum(freedom, 1.0)) * error
    return np.stack([value, error, value - half, value + half], axis=-1)


def estimate(row: np.ndarray) -> Estimate:
    """From one of these, [4]."""
    return Estimate(*row.tolist())


@dataclasses.dataclass(frozen=True)
class Margins:
    """What the matrices [n_k, m] of K corpora's batches with one target's come to."""

    mean: np.ndarray
    """float64 [K]."""
    own: np.ndarray
    """float64 [K], variance of the mean that the corpus' own batches give."""
    by_target: np.ndarray
    """float64 [K, m], means over the corpus' batches."""
    batches: np.ndarray
    """int [K], of each corpus."""

    @classmethod
    def of(cls, values: Sequence[np.ndarray]) -> "Margins":
        """From the matrices themselves, n_k and m at least 2."""
        return cls(
            np.array([v.mean() for v in values]),
            np.array([v.mean(1).var(ddof=1) / len(v) for v in values]),
            np.stack([v.mean(0) for v in values]),
            np.array([len(v) for v in values]),
        )

    def negative(self) -> "Margins":
        return dataclasses.replace(self, mean=-self.mean, by_target=-self.by_target)

    def part(self, some: Sequence[int]) -> "Margins":
        """Of some of the corpora."""
        return Margins(*(getattr(self, field.name)[list(some)] for field in dataclasses.fields(self)))

    def estimates(self) -> np.ndarray:
        """Value, error, low and high of every corpus, [K, 4]: `two_sample_mean`."""
        m = self.by_target.shape[1]
        return estimated(
            self.mean, self.own, self.by_target.var(1, ddof=1) / m, self.batches - 1, np.full(len(self.mean), m - 1)
        )

"""Alignment and diversity coefficients with intervals over batches.

align(S, T) = 1 - E[d(f_Bs, f_Bt)] over pairs of batches, div(S) = E[d] over distinct batches of S (arXiv 2501.08496,
section 2 there; method A.4). The n * m distances come from n + m batches, so that batches are the independent units:
intervals are t intervals with the jackknife variance of the two-sample (or one-sample) U-statistic.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from align_ray.alignment.comparison import ranking
from align_ray.alignment.distance import distance_matrix, scaled_cosine_distance
from align_ray.alignment.intervals import Estimate, interval, one_sample_mean, two_sample_mean
from align_ray.alignment.noise import LabelNoise, corrected_distances, described_noise, relative_variance
from align_ray.fisher.unit import Unit


def pooled_alignment(source: np.ndarray, target: np.ndarray, absolute: float | None = None) -> Estimate:
    """1 - d of the mean embeddings (pooled form), from batch embeddings [n, D] and [m, D], n, m >= 2.

    Noise of the means, from labels and from the choice of text alike, makes d too large: by about c / n + c' / m on the
    scale v = d / (1 - d). The jackknife over batches removes that and gives the variance, both sides apart. What is
    estimated is the alignment of the corpora's expected embeddings: 1 for a corpus with itself (single estimates may
    lie above).
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    whole = relative_variance(scaled_cosine_distance(source.mean(0), target.mean(0), absolute))
    v, parts, freedom = whole, [], []
    for mine, other in ((source, target), (target, source)):
        n = len(mine)
        without = relative_variance(scaled_cosine_distance((mine.sum(0) - mine) / (n - 1), other.mean(0), absolute))
        v -= (n - 1) * (without.mean() - whole)
        parts.append((n - 1) / n * ((without - without.mean()) ** 2).sum())
        freedom.append(n - 1)
    total = sum(parts)
    satterthwaite = total**2 / max(sum(p**2 / f for p, f in zip(parts, freedom, strict=True)), 1e-300)
    on_v = interval(float(v), total, satterthwaite)
    value, low, high = (1 / (1 + x) for x in (on_v.value, on_v.high, max(on_v.low, -0.5)))
    return Estimate(value, on_v.error * value**2, low, high)


def block_sets(units: list[Unit]) -> dict[str, tuple[str, ...]]:
    """The blocks behind each coefficient that these embeddings give, the main one first: trunk rows before head
    rows; of the reference procedure all rows as published, then trunk and vocabulary apart."""
    blocks = tuple(units[0].blocks)
    apart: dict[str, tuple[str, ...]] = {name: (name,) for name in sorted(blocks, key=lambda name: name != "trunk")}
    return {"published": blocks, **apart} if "vocabulary" in blocks else apart


def main_blocks(units: list[Unit]) -> tuple[str, ...]:
    """The blocks of the main measure (see `block_sets`)."""
    return next(iter(block_sets(units).values()))


def batch_matrix(units: list[Unit], blocks: tuple[str, ...]) -> np.ndarray:
    """Batch embeddings, float32 [n, D]: means over the label draws, blocks joined."""
    return np.stack([np.concatenate([u.blocks[b].mean(0, dtype=np.float64) for b in blocks]) for u in units]).astype(
        np.float32
    )


def draws_left_out(units: list[Unit], blocks: tuple[str, ...]) -> list[np.ndarray]:
    """Batch embeddings as `batch_matrix` gives them, once for every label draw left out; [] for a single draw. Blocks
    without label noise stay whole."""
    draws = max(len(units[0].blocks[b]) for b in blocks)

    def without(values: np.ndarray, r: int) -> np.ndarray:
        return np.delete(values, r, axis=0) if len(values) > 1 else values

    left = range(draws if draws > 1 else 0)
    parts = [[dataclasses.replace(u, blocks={b: without(u.blocks[b], r) for b in blocks}) for u in units] for r in left]
    return [batch_matrix(part, blocks) for part in parts]


@dataclasses.dataclass(frozen=True)
class Reduced:
    """What of a corpus' n units alignment is computed from."""

    rows: dict[str, np.ndarray]
    """By measure: float32 [1 + R, n, D], batch embeddings of all draws and of all but one, or [1, n, D]."""
    noise: LabelNoise
    """By the main measure."""
    losses: list[float]
    skipped: list[list[int]]
    """[batch, sequence] of those left out because their embedding is not finite."""

    @classmethod
    def of(cls, units: list[Unit], absolute: float | None = None) -> "Reduced":
        kinds = block_sets(units)
        rows = {
            k: np.stack([batch_matrix(units, blocks), *draws_left_out(units, blocks)]) for k, blocks in kinds.items()
        }
        skipped = [[i, at] for i, u in enumerate(units) for at in u.skipped]
        return cls(rows, LabelNoise.of(units, main_blocks(units), absolute), [u.loss for u in units], skipped)

    @property
    def main(self) -> np.ndarray:
        """float32 [n, D] of the main measure."""
        return next(iter(self.rows.values()))[0]


def align_corpora(embeddings: Mapping[str, list[Unit]], targets: list[str], absolute: float | None = None) -> dict:
    """`align_reduced` of units."""
    return align_reduced({name: Reduced.of(units, absolute) for name, units in embeddings.items()}, targets, absolute)


def align_reduced(corpora: Mapping[str, Reduced], targets: list[str], absolute: float | None = None) -> dict:
    """Everything the report shows of alignment, as a JSON value. `absolute`: epsilon of the distance, default relative.

    `measure`: the main one; of it, `matrix[a][b]`: Estimate for all pairs of corpora, 1 - div on the diagonal;
    `ranking[target]`: candidates from most to least aligned (see `comparison.ranking`); `diversity` by corpus, also
    `corrected` for label noise; `ceiling[target]`: 1 - div(T), what a candidate of the target's very distribution
    reaches. `others`: the same of the other measures. `noise` by corpus (see `corpus_noise`); `loss`: the probe's nats
    per token; `skipped`: [batch, sequence] of those left out because their embedding is not finite.

    The rows may lie on disk (`embedding/evidence.py`): a corpus' are read when it is compared. Held are the distances
    of candidates and targets, 8 n m bytes a pair.
    """
    kinds = list(next(iter(corpora.values())).rows)
    results = {kind: _align(corpora, kind, targets, absolute) for kind in kinds}
    main = kinds[0]
    div = results[main]["diversity"]
    return {
        "targets": targets,
        "candidates": [n for n in corpora if n not in targets],
        "measure": main,
        **results.pop(main),
        "others": results,
        "noise": {n: described_noise(c.noise, div[n]["value"]) for n, c in corpora.items()},
        "loss": {n: float(np.mean(c.losses)) for n, c in corpora.items()},
        "skipped": {n: c.skipped for n, c in corpora.items()},
    }


def _align(corpora: Mapping[str, Reduced], kind: str, targets: list[str], absolute: float | None) -> dict:
    """`matrix`, `ranking`, `diversity` and `ceiling` of one measure."""
    names = list(corpora)
    rows = {name: corpora[name].rows[kind] for name in names}

    def corrected(a: str, b: str, raw: np.ndarray) -> np.ndarray | None:
        pairs = zip(rows[a][1:], rows[b][1:], strict=True)
        without = [distance_matrix(x, y, absolute) for x, y in pairs]
        return corrected_distances(raw, without) if without else None

    matrix: dict[str, dict[str, dict]] = {n: {} for n in names}
    diversity: dict[str, dict] = {}
    kept: dict[tuple[str, str], np.ndarray] = {}  # distances of a candidate's and a target's batches
    for i, a in enumerate(names):
        for b in names[i:]:
            raw = distance_matrix(rows[a][0], rows[b][0], absolute)
            if a == b:
                own, free = one_sample_mean(raw), corrected(a, a, raw)
                diversity[a] = {
                    **dataclasses.asdict(own),
                    "corrected": _json(None if free is None else one_sample_mean(free)),
                }
                matrix[a][a] = dataclasses.asdict(complement(own))
                continue
            matrix[a][b] = dataclasses.asdict(two_sample_mean(1 - raw))
            matrix[b][a] = dataclasses.asdict(two_sample_mean(1 - raw.T))
            if (a in targets) != (b in targets):
                kept[(a, b) if b in targets else (b, a)] = raw if b in targets else raw.T
    candidates = [n for n in names if n not in targets]
    rankings = {}
    for target in targets:
        ranked = ranking({c: 1 - kept[c, target] for c in candidates})
        for row in ranked:
            name = row["candidate"]
            free = corrected(name, target, kept[name, target])
            row["corrected"] = _json(None if free is None else two_sample_mean(1 - free))
            row["pooled"] = _json(pooled_alignment(rows[name][0], rows[target][0], absolute))
        rankings[target] = ranked
    return {
        "matrix": matrix,
        "ranking": rankings,
        "diversity": diversity,
        "ceiling": {t: matrix[t][t] for t in targets},
    }


def complement(estimate: Estimate) -> Estimate:
    """1 - the value, with its interval."""
    return Estimate(1 - estimate.value, estimate.error, 1 - estimate.high, 1 - estimate.low)


def _json(estimate: Estimate | None) -> dict | None:
    return None if estimate is None else dataclasses.asdict(estimate)

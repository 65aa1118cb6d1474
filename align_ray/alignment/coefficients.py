"""Alignment and diversity coefficients with intervals over batches.

align(S, T) = 1 - E[d(f_Bs, f_Bt)] over pairs of batches, div(S) = E[d] over distinct batches of S (arXiv 2501.08496,
section 2 there; method A.4). The n * m distances come from n + m batches, so that batches are the independent units:
intervals are t intervals with the jackknife variance of the two-sample (or one-sample) U-statistic.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from align_ray.alignment.comparison import ranking
from align_ray.alignment.distance import distance_matrix, exact_distance_matrix, scaled_cosine_distance
from align_ray.alignment.intervals import Estimate, interval, one_sample_mean
from align_ray.alignment.margins import Margins, Pairs, chunks, estimate, estimated, let_go
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

    Of more than EVERY_PAIR corpora an interval is given where it serves a target: `matrix` has the rows of the targets
    and the diagonal, and `alike` [K][K], for the main measure, what candidates have with each other, from at most FEW
    batches of each and without intervals.

    The rows may lie on disk (`embedding/evidence.py`): they are read chunk by chunk (`margins`). Held are the means of
    all candidates over each target's batches, 8 K m bytes a target.
    """
    kinds, names = list(next(iter(corpora.values())).rows), list(corpora)
    few = len(names) <= EVERY_PAIR
    results = {kind: _align({n: corpora[n].rows[kind] for n in names}, targets, absolute, few) for kind in kinds}
    main, candidates = kinds[0], [n for n in names if n not in targets]
    div = results[main]["diversity"]
    found = {"targets": targets, "candidates": candidates, "measure": main, **results.pop(main), "others": results}
    if not few:
        own = np.array([1 - div[n]["value"] for n in candidates])
        found["alike"] = alike([corpora[n].rows[main] for n in candidates], own, absolute).tolist()
    return found | {
        "noise": {n: described_noise(c.noise, div[n]["value"]) for n, c in corpora.items()},
        "loss": {n: float(np.mean(c.losses)) for n, c in corpora.items()},
        "skipped": {n: c.skipped for n, c in corpora.items()},
    }


EVERY_PAIR = 64
"""Corpora up to which all pairs of them have an interval."""
FEW = 16
"""Batches of a candidate that are compared with those of other candidates where there are more corpora."""
DIGITS = 5
"""Of `alike`."""


def _align(rows: dict[str, np.ndarray], targets: list[str], absolute: float | None, few: bool) -> dict:
    """`matrix`, `ranking`, `diversity` and `ceiling` of one measure; rows: float32 [1 + R, n, D] by corpus."""
    names, candidates = list(rows), [n for n in rows if n not in targets]
    count = {n: r.shape[1] for n, r in rows.items()}
    diversity = {n: _diversity(rows[n], absolute) for n in names}
    matrix: dict[str, dict[str, dict]] = {n: {} for n in names}
    for n in names:
        own = Estimate(*(diversity[n][key] for key in ("value", "error", "low", "high")))
        matrix[n][n] = dataclasses.asdict(complement(own))
    with_targets, free, by_target = _with_targets(rows, candidates, targets, absolute)
    pooled = _pooled(rows, candidates, targets, absolute)
    rankings, place = {}, {c: k for k, c in enumerate(candidates)}
    for t, target in enumerate(targets):
        margins = Margins(with_targets.mean[:, t], with_targets.own[:, t], by_target[t], with_targets.batches)
        rankings[target] = ranking(candidates, margins)
        for row in rankings[target]:
            k = place[row["candidate"]]
            row["corrected"] = _json(None if free is None else estimate(free[k, t]))
            row["pooled"] = _json(estimate(pooled[k, t]))

    def fill(some: list[str], others: list[str], found: np.ndarray, both: bool) -> None:
        for i, a in enumerate(some):
            for j, b in enumerate(others):
                if a != b:
                    matrix[a][b] = dict(zip(("value", "error", "low", "high"), found[i, j].tolist(), strict=True))
                    if both:
                        matrix[b][a] = dict(matrix[a][b])

    fill(targets, candidates, with_targets.estimates().swapaxes(0, 1), few)
    fill(targets, targets, _among(rows, targets, count, absolute).estimates(), False)
    if few:
        fill(candidates, candidates, _among(rows, candidates, count, absolute).estimates(), False)
    return {
        "matrix": {a: {b: matrix[a][b] for b in names if b in matrix[a]} for a in names},
        "ranking": rankings,
        "diversity": diversity,
        "ceiling": {t: matrix[t][t] for t in targets},
    }


def _diversity(rows: np.ndarray, absolute: float | None) -> dict:
    """Of one corpus, with `corrected`; rows: float32 [1 + R, n, D]."""
    raw = distance_matrix(rows[0], rows[0], absolute)
    without = [distance_matrix(r, r, absolute) for r in rows[1:]]
    let_go(rows)
    free = one_sample_mean(corrected_distances(raw, without)) if without else None
    return {**dataclasses.asdict(one_sample_mean(raw)), "corrected": _json(free)}


def _with_targets(
    rows: dict[str, np.ndarray], candidates: list[str], targets: list[str], absolute: float | None
) -> tuple[Pairs, np.ndarray | None, list[np.ndarray]]:
    """Of K candidates and T targets: the pairs, the estimates without label noise [K, T, 4] (None for one draw), and by
    target the means over every candidate's batches [K, m]."""
    n, m = (np.array([rows[name].shape[1] for name in some]) for some in (candidates, targets))
    found, free = Pairs.empty(n, m), Pairs.empty(n, m)
    by_target = [np.empty((len(candidates), size)) for size in m]
    draws = len(rows[targets[0]]) > 1
    for a in chunks([rows[name] for name in candidates], draws=True):
        for b in chunks([rows[name] for name in targets], draws=True):
            raw = distance_matrix(b.rows[0], a.rows[0], absolute).T
            _, columns = found.put(a, b, 1 - raw)
            for t, start, size in zip(range(len(targets))[b.of], b.starts, b.counts, strict=True):
                by_target[t][a.of] = columns[:, start : start + size]
            if draws:
                without = [distance_matrix(x, y, absolute) for x, y in zip(a.rows[1:], b.rows[1:], strict=True)]
                free.put(a, b, 1 - corrected_distances(raw, without))
    return found, free.estimates() if draws else None, by_target


def _among(rows: dict[str, np.ndarray], names: list[str], count: dict[str, int], absolute: float | None) -> Pairs:
    """All pairs of some corpora; of a corpus with itself it means nothing."""
    n = np.array([count[name] for name in names])
    found, kept = Pairs.empty(n, n), [rows[name] for name in names]
    for a in chunks(kept, draws=False):
        for b in chunks(kept, draws=False):
            if a.first <= b.first:
                found.put(a, b, 1 - distance_matrix(a.rows[0], b.rows[0], absolute))
    return found.mirrored()


def alike(rows: Sequence[np.ndarray], own: np.ndarray, absolute: float | None = None) -> np.ndarray:
    """Mean alignment of the first FEW batches of every two corpora, [K, K], to DIGITS digits; `own` [K] on the
    diagonal. rows: float32 [1 + R, n, D] each."""
    result = np.diag(own)
    for a in chunks(rows, draws=False, most=FEW):
        for b in chunks(rows, draws=False, most=FEW):
            if a.first <= b.first:
                values = 1 - distance_matrix(a.rows[0], b.rows[0], absolute)
                sums = np.add.reduceat(np.add.reduceat(values, a.starts, axis=0), b.starts, axis=1)
                result[a.of, b.of] = means = sums / np.multiply.outer(a.counts, b.counts)
                result[b.of, a.of] = means.T
    np.fill_diagonal(result, own)
    return result.round(DIGITS)


def _pooled(
    rows: dict[str, np.ndarray], candidates: list[str], targets: list[str], absolute: float | None
) -> np.ndarray:
    """`pooled_alignment` of K candidates and T targets, [K, T, 4]."""
    n, m = (np.array([rows[name].shape[1] for name in some]) for some in (candidates, targets))
    means = [np.stack([_mean(rows[name]) for name in some]) for some in (candidates, targets)]
    whole = relative_variance(exact_distance_matrix(means[0], means[1], absolute))
    v, parts = whole.copy(), []
    for some, mine, other in ((candidates, whole, means[1]), (targets, whole.T, means[0])):
        off, squares = np.empty_like(mine), np.empty_like(mine)
        for chunk in chunks([rows[name] for name in some], draws=False):
            values = chunk.rows[0].astype(np.float64)
            sizes = np.repeat(chunk.counts, chunk.counts)[:, None]
            sums = np.repeat(np.add.reduceat(values, chunk.starts, axis=0), chunk.counts, axis=0)
            without = relative_variance(exact_distance_matrix((sums - values) / (sizes - 1), other, absolute))
            mean = np.add.reduceat(without, chunk.starts, axis=0) / chunk.counts[:, None]
            around = without - np.repeat(mean, chunk.counts, axis=0)
            size = chunk.counts[:, None]
            off[chunk.of] = (size - 1) * (mean - mine[chunk.of])
            squares[chunk.of] = (size - 1) / size * np.add.reduceat(around**2, chunk.starts, axis=0)
        turned = some is targets
        v -= off.T if turned else off
        parts.append(squares.T if turned else squares)
    on_v = estimated(v, parts[0], parts[1], n[:, None] - 1, m[None, :] - 1)
    value, high, low = (1 / (1 + x) for x in (on_v[..., 0], np.maximum(on_v[..., 2], -0.5), on_v[..., 3]))
    return np.stack([value, on_v[..., 1] * value**2, low, high], axis=-1)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Of the batches of one corpus, [D]; rows: float32 [1 + R, n, D]."""
    mean = rows[0].mean(0, dtype=np.float64)
    let_go(rows)
    return mean


def complement(estimate: Estimate) -> Estimate:
    """1 - the value, with its interval."""
    return Estimate(1 - estimate.value, estimate.error, 1 - estimate.high, 1 - estimate.low)


def _json(estimate: Estimate | None) -> dict | None:
    return None if estimate is None else dataclasses.asdict(estimate)

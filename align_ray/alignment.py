"""Alignment and diversity coefficients with intervals over batches.

align(S, T) = 1 - E[d(f_Bs, f_Bt)] over pairs of batches, div(S) = E[d] over distinct batches of S (arXiv 2501.08496,
section 2 there; method A.4). The n * m distances come from n + m batches, so that batches are the independent units:
intervals are t intervals with the jackknife variance of the two-sample (or one-sample) U-statistic.
"""

import dataclasses

import numpy as np
from scipy import stats

from align_ray.intervals import Estimate, interval, one_sample_mean, two_sample_mean
from align_ray.noise import corpus_noise
from align_ray.similarity import distance_matrix, scaled_cosine_distance
from align_ray.store import Unit


def pooled_alignment(source: np.ndarray, target: np.ndarray, absolute: float | None = None) -> Estimate:
    """1 - d of the mean embeddings (pooled form), with a delete-one-batch jackknife over both sides."""
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    value = 1 - scaled_cosine_distance(source.mean(0), target.mean(0), absolute)
    parts, freedom = [], []
    for mine, other in ((source, target), (target, source)):
        n = len(mine)
        without = 1 - scaled_cosine_distance((mine.sum(0) - mine) / (n - 1), other.mean(0), absolute)
        parts.append((n - 1) / n * ((without - without.mean()) ** 2).sum())
        freedom.append(n - 1)
    total = sum(parts)
    satterthwaite = total**2 / max(sum(p**2 / f for p, f in zip(parts, freedom, strict=True)), 1e-300)
    return interval(float(value), total, satterthwaite)


def more_aligned(a: np.ndarray, b: np.ndarray) -> float:
    """P(A is more aligned with T than B), one-sided, from alignments of batches with the target's, [n, m] and [k, m]: the
    target's batches are shared, so their noise largely cancels."""
    by_target = a.mean(0) - b.mean(0)
    variance = a.mean(1).var(ddof=1) / len(a) + b.mean(1).var(ddof=1) / len(b) + by_target.var(ddof=1) / len(by_target)
    freedom = min(len(a), len(b), len(by_target)) - 1
    return float(stats.t.cdf(by_target.mean() / max(np.sqrt(variance), 1e-300), freedom))


def measures(units: list[Unit]) -> dict[str, tuple[str, ...]]:
    """The blocks behind each coefficient that these embeddings give, the main one first: trunk rows before head rows; of
    the reference procedure all rows as published, then trunk and vocabulary apart."""
    blocks = tuple(units[0].blocks)
    apart = {name: (name,) for name in sorted(blocks, key=lambda name: name != "trunk")}
    return {"published": blocks, **apart} if "vocabulary" in blocks else apart


def batch_matrix(units: list[Unit], blocks: tuple[str, ...]) -> np.ndarray:
    """Batch embeddings, float32 [n, D]: means over the label draws, blocks joined."""
    return np.stack([np.concatenate([u.blocks[b].mean(0, dtype=np.float64) for b in blocks]) for u in units]).astype(np.float32)


def align_corpora(embeddings: dict[str, list[Unit]], targets: list[str], absolute: float | None = None) -> dict:
    """Everything the report shows of alignment, as a JSON value. `absolute`: epsilon of the distance, default relative.

    `measure`: the main one; of it, `matrix[a][b]`: Estimate for all pairs of corpora, 1 - div on the diagonal;
    `ranking[target]`: candidates from most to least aligned, each with `p_above_next`; `diversity` by corpus. `others`:
    the same of the other measures. `noise` by corpus (see `corpus_noise`); `loss`: the probe's nats per token; `skipped`:
    [batch, sequence] of those left out because their embedding is not finite.
    """
    kinds = measures(next(iter(embeddings.values())))
    results = {
        kind: _align({name: batch_matrix(units, blocks) for name, units in embeddings.items()}, targets, absolute)
        for kind, blocks in kinds.items()
    }
    main = next(iter(kinds))
    div = results[main]["diversity"]
    return {
        "targets": targets,
        "candidates": [n for n in embeddings if n not in targets],
        "measure": main,
        **results.pop(main),
        "others": results,
        "noise": {n: corpus_noise(u, kinds[main], div[n]["value"], absolute) for n, u in embeddings.items()},
        "loss": {n: float(np.mean([u.loss for u in units])) for n, units in embeddings.items()},
        "skipped": {n: [[i, at] for i, u in enumerate(units) for at in u.skipped] for n, units in embeddings.items()},
    }


def _align(rows: dict[str, np.ndarray], targets: list[str], absolute: float | None) -> dict:
    """`matrix`, `ranking` and `diversity` of one measure, from the batch embeddings [n, D] of every corpus."""
    names = list(rows)
    candidates = [n for n in names if n not in targets]
    matrix: dict[str, dict[str, dict]] = {n: {} for n in names}
    distances = {(a, b): distance_matrix(rows[a], rows[b], absolute) for i, a in enumerate(names) for b in names[i:]}
    diversities = {n: one_sample_mean(distances[n, n]) for n in names}
    for a, b in distances:
        if a == b:
            own = diversities[a]
            matrix[a][a] = dataclasses.asdict(Estimate(1 - own.value, own.error, 1 - own.high, 1 - own.low))
        else:
            matrix[a][b] = matrix[b][a] = dataclasses.asdict(two_sample_mean(1 - distances[a, b]))
    ranking = {}
    for target in targets:
        to_target = {c: 1 - (distances[c, target] if (c, target) in distances else distances[target, c].T) for c in candidates}
        ordered = sorted(candidates, key=lambda c: -matrix[c][target]["value"])
        ranking[target] = [
            {
                "candidate": c,
                **matrix[c][target],
                "pooled": dataclasses.asdict(pooled_alignment(rows[c], rows[target], absolute)),
                "p_above_next": more_aligned(to_target[c], to_target[following]) if following else None,
            }
            for c, following in zip(ordered, [*ordered[1:], None], strict=True)
        ]
    return {"matrix": matrix, "ranking": ranking, "diversity": {n: dataclasses.asdict(d) for n, d in diversities.items()}}

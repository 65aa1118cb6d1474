"""The noise of Fisher embeddings: how far apart two embeddings of the same batch are, and what would bring that down.

Entries with independent noise of relative variance v are d = v / (1 + v) apart (method 1.2). R label draws averaged and
B sequences in a batch each divide v. A distance d between two batches of one corpus is v / (1 + v) too, with v from
labels and from the choice of text together; the label's share of it is noise that more draws would remove.
"""

import dataclasses
import itertools
import math
from typing import TypeVar

import numpy as np

from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.alignment.intervals import interval
from align_ray.fisher.unit import Unit

Value = TypeVar("Value", float, np.ndarray)


def relative_variance(distance: Value) -> Value:
    """v of d = v / (1 + v)."""
    return distance / np.maximum(1 - distance, 1e-12)


def corrected_distances(distances: np.ndarray, without: list[np.ndarray]) -> np.ndarray:
    """Distances without label noise, by the jackknife over draws, of any shape.

    `distances`: from R averaged draws; `without`: R arrays, each with one draw left out on both sides. Label noise adds
    c / R to v = d / (1 - d) (closely for embeddings of equal means, to first order for others), so that R v_R - (R - 1)
    mean(v_{R-1}) is free of it. The correction is unbiased, not clipped: single values may be below 0.
    """
    draws = len(without)
    v = draws * relative_variance(distances) - (draws - 1) * np.mean([relative_variance(w) for w in without], axis=0)
    return v / (1 + v)


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """What label noise of a corpus is known by, apart from its text's."""

    between: np.ndarray | None
    """float64 [n]: mean d over all pairs of single label draws of every batch; None for a single draw."""
    draws: int
    sequences: int
    noiseless: bool
    """Whether the blocks have none, as the head's."""

    @classmethod
    def of(cls, units: list[Unit], blocks: tuple[str, ...], absolute: float | None = None) -> "LabelNoise":
        draws, size = max(len(u.blocks[b]) for u in units for b in blocks), units[0].sequences
        if draws == 1:
            return cls(None, 1, size, blocks == ("head",))
        between = np.array([_between_draws(u, blocks, draws, absolute) for u in units])
        return cls(between, draws, size, False)


def corpus_noise(units: list[Unit], blocks: tuple[str, ...], diversity: float, absolute: float | None = None) -> dict:
    """Label noise of a corpus' batch embeddings, as a JSON value. `diversity`: div of the corpus by the same blocks;
    `absolute`: epsilon of the distance, default relative.

    `floor`: d between the same batch under new labels, at the R draws stored (an Estimate over batches; None where R =
    1 leaves nothing to compare); `draw_variance`: v of a single draw; `share`: of the distance between two batches of
    the corpus, on the scale of v, how much is label noise; `draws`, `sequences` (B of a batch) as stored. A block
    without label noise, such as the head's, has floor 0.
    """
    return described_noise(LabelNoise.of(units, blocks, absolute), diversity)


def described_noise(noise: LabelNoise, diversity: float) -> dict:
    """The same from what was kept of the units."""
    draws, size = noise.draws, noise.sequences
    if noise.between is None:
        known = 0.0 if noise.noiseless else None
        floor = None if known is None else dataclasses.asdict(interval(0.0, 0.0, 1))
        return {"floor": floor, "draw_variance": known, "share": known, "draws": 1, "sequences": size}
    v = relative_variance(noise.between)
    floors = (v / draws) / (1 + v / draws)
    total = relative_variance(diversity)
    return {
        "floor": dataclasses.asdict(interval(floors.mean(), floors.var(ddof=1) / len(floors), len(floors) - 1)),
        "draw_variance": float(v.mean()),
        "share": float(min(1.0, v.mean() / draws / max(total, 1e-12))),
        "draws": draws,
        "sequences": size,
    }


def _between_draws(unit: Unit, blocks: tuple[str, ...], draws: int, absolute: float | None) -> float:
    """Mean d over all pairs of single label draws of one batch."""
    rows = [np.concatenate([unit.blocks[b][min(r, len(unit.blocks[b]) - 1)] for b in blocks]) for r in range(draws)]
    return float(np.mean([scaled_cosine_distance(a, b, absolute) for a, b in itertools.combinations(rows, 2)]))


def needed(noise: dict, floor: float) -> dict[str, int]:
    """What brings a corpus' noise floor down to `floor` (between 0 and 1): label draws at its batch size, or
    sequences a batch at its draws."""
    v = floor / (1 - floor)
    draws = max(1, math.ceil(noise["draw_variance"] / v))
    sequences = max(1, math.ceil(noise["sequences"] * noise["draw_variance"] / noise["draws"] / v))
    return {"draws": draws, "sequences": sequences}

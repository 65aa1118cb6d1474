"""The noise that is found is the noise that was put in, and what is said to lower it does."""

import numpy as np
import pytest

from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.intervals import one_sample_mean
from align_ray.alignment.noise import corpus_noise, corrected_distances, needed
from align_ray.fisher.unit import Unit

DIMENSION = 4000


def noise_of(rows, block="trunk"):
    means = np.stack([u.blocks[block].mean(0) for u in rows])
    return corpus_noise(rows, (block,), one_sample_mean(distance_matrix(means, means)).value)


def units(draws, label, text, n=12, sequences=32):
    """Batches of one corpus: Gamma noise of relative variance `text` between batches, `label` between draws of a
    batch."""
    rng = np.random.default_rng(0)
    profile = np.exp(rng.normal(0, 2, DIMENSION))
    batches = profile * rng.gamma(1 / text, text, (n, 1, DIMENSION))
    trunk = (batches * rng.gamma(1 / label, label, (n, draws, DIMENSION))).astype(np.float32)
    head = np.ones((1, 5), np.float32)
    return [Unit({"trunk": t, "head": head}, {}, 2.0, sequences, (), 8, 0.0) for t in trunk]


@pytest.mark.parametrize(("draws", "v"), [(2, 0.3), (4, 0.3), (2, 1.5)])
def test_the_floor_is_that_of_the_averaged_draws(draws, v):
    noise = noise_of(units(draws, v, 0.1))
    assert noise["floor"]["value"] == pytest.approx(v / draws / (1 + v / draws), abs=0.01)
    assert noise["floor"]["low"] < noise["floor"]["value"] < noise["floor"]["high"]
    assert noise["draw_variance"] == pytest.approx(v, rel=0.05)


def test_the_share_of_the_distance_that_is_label_noise():
    noise = noise_of(units(2, 0.2, 0.1))
    total = (1 + 0.2 / 2) * (1 + 0.1) - 1  # relative variances of a product
    assert noise["share"] == pytest.approx(0.1 / total, rel=0.1)


def test_the_draws_that_are_said_to_reach_a_floor_reach_it():
    want = needed(noise_of(units(2, 0.5, 0.1)), 0.05)
    assert want["draws"] == pytest.approx(0.5 / (0.05 / 0.95), abs=1)
    assert want["sequences"] == pytest.approx(32 * 0.25 / (0.05 / 0.95), rel=0.05)
    reached = noise_of(units(want["draws"], 0.5, 0.1))["floor"]["value"]
    assert reached == pytest.approx(0.05, abs=0.003)


def test_the_head_has_no_label_noise_and_a_single_draw_leaves_it_unknown():
    assert noise_of(units(1, 0.2, 0.1), "head")["floor"]["value"] == 0
    assert noise_of(units(1, 0.2, 0.1))["floor"] is None


@pytest.mark.parametrize(("draws", "label"), [(2, 0.3), (2, 1.0), (4, 1.0)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_corrected_distances_are_those_without_label_noise(draws, label, shift):
    """`shift`: how far apart the two corpora are; 0: both sides have one mean, where the correction is nearly exact."""
    rng = np.random.default_rng(1)
    means = np.exp(rng.normal(0, 1, DIMENSION)) * np.exp(shift * rng.normal(size=(2, 1, 1, DIMENSION)))
    clean = (means * rng.gamma(5, 0.2, (2, 6, 1, DIMENSION))).astype(np.float32)
    noisy = clean * rng.gamma(1 / label, label, (2, 6, draws, DIMENSION)).astype(np.float32)
    truth = distance_matrix(clean[0, :, 0], clean[1, :, 0]).mean()
    raw = distance_matrix(noisy[0].mean(1), noisy[1].mean(1))
    left_out = [distance_matrix(*(np.delete(side, r, axis=1).mean(1) for side in noisy)) for r in range(draws)]
    corrected = corrected_distances(raw, left_out).mean()
    assert raw.mean() > truth + 0.03
    assert abs(corrected - truth) < 0.35 * (raw.mean() - truth)
    if shift == 0:
        assert abs(corrected - truth) < max(0.01, 0.1 * (raw.mean() - truth))

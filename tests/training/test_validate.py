"""Statistics of validation by training: seeds are common to all targets, sequences are each target's own."""

import numpy as np
import pytest

from align_ray.alignment.distance import scaled_cosine
from align_ray.alignment.intervals import combined_mean
from align_ray.mixture.describe import mixture_alignment


def test_the_interval_of_several_targets_covers_though_seeds_are_shared():
    rng, share, covered = np.random.default_rng(0), np.full(4, 0.25), []
    for _ in range(1500):
        seeds = rng.normal(0, 0.01, (3, 1))
        values = [1 + seeds + rng.normal(0, 0.02, 60) for _ in range(4)]
        found, _ = combined_mean(values, share)
        covered.append(found.low <= 1 <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.985, "three seeds: Satterthwaite is a little short of 95%"


def test_the_probability_that_a_loss_is_lower_is_uniform_where_it_is_not():
    rng = np.random.default_rng(1)
    p = [combined_mean([rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.02, 60)], np.ones(1))[1] for _ in range(2000)]
    assert 0.02 <= np.mean(np.array(p) > 0.95) <= 0.08 and np.mean(p) == pytest.approx(0.5, abs=0.03)


def test_a_mixtures_alignment_with_several_targets_is_their_mean():
    rng = np.random.default_rng(2)
    base = np.exp(rng.normal(size=(4, 500)))
    near, far = base[0], np.exp(2 * rng.normal(size=500))
    batch = lambda mean: (mean * rng.gamma(400, 1 / 400, (12, 500))).astype(np.float32)
    w, share = np.array([0.7, 0.3]), np.array([0.5, 0.5])
    found = mixture_alignment(w, [batch(base[0]), batch(base[1])], [batch(near), batch(far)], share)
    pooled = w @ base[:2]
    wanted = np.mean([scaled_cosine(pooled[None], t[None])[0, 0] for t in (near, far)])
    assert found["value"] == pytest.approx(wanted, abs=0.01) and found["low"] < found["value"] < found["high"]

"""Ranking by cross-entropy: values, intervals, and candidates that differ only in their tokens."""

import numpy as np
import pytest

from align_ray.alignment.baselines import background_distribution, unigram_cross_entropy
from align_ray.alignment.intervals import two_sample_mean
from align_ray.alignment.words import cross_entropy_values, rank_by_cross_entropy

VOCABULARY = 300


def corpus(rng, p, n, size=8, length=32):
    """n batches of tokens; every batch leans to some tokens of its own, as documents do."""
    return np.stack([rng.choice(VOCABULARY, (size, length), p=rng.dirichlet(3000 * p)) for _ in range(n)])


@pytest.fixture
def distributions():
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(VOCABULARY, 2.0), 3)


def test_the_jackknife_brings_the_cross_entropy_near_that_of_the_true_distribution(distributions):
    p, q = distributions[:2]
    background = np.full(VOCABULARY, 1 / VOCABULARY)
    truth = -(q * np.log(p)).sum()
    rng = np.random.default_rng(1)
    plain, corrected = [], []
    for _ in range(40):
        candidate, target = corpus(rng, p, 8), corpus(rng, q, 8)
        plain.append(-unigram_cross_entropy(candidate.reshape(-1, 32), target.reshape(-1, 32), background))
        corrected.append(cross_entropy_values(candidate, target, background).mean())
    assert abs(np.mean(corrected) - truth) < 0.5 * abs(np.mean(plain) - truth)


def test_intervals_over_batches_cover(distributions):
    p, q = distributions[:2]
    background = np.full(VOCABULARY, 1 / VOCABULARY)
    rng = np.random.default_rng(2)
    truth = cross_entropy_values(corpus(rng, p, 200), corpus(rng, q, 200), background).mean()
    found = [
        two_sample_mean(cross_entropy_values(corpus(rng, p, 12), corpus(rng, q, 12), background)) for _ in range(200)
    ]
    assert 0.88 < np.mean([e.low <= truth <= e.high for e in found]) <= 0.99


def test_the_candidate_with_the_targets_tokens_comes_first(distributions):
    p, q, other = distributions
    rng = np.random.default_rng(3)
    mixed = 0.5 * q + 0.5 * p
    batches = {n: corpus(rng, d, 8) for n, d in {"goal": q, "far": other, "same": q, "half": mixed}.items()}
    rows = rank_by_cross_entropy(batches, ["goal"], VOCABULARY)["goal"]
    assert [r["candidate"] for r in rows] == ["same", "half", "far"]
    assert rows[0]["value"] < rows[1]["value"] < rows[2]["value"]
    assert rows[0]["p_best"] > 0.9 and rows[0]["adjusted"] > 0.9 and rows[-1]["adjusted"] is None
    assert all(r["low"] < r["value"] < r["high"] for r in rows)


def test_padding_and_tokens_never_seen_do_no_harm():
    background = background_distribution([np.zeros((1, 4), int)], 5)
    candidate, target = np.zeros((2, 1, 4), int), np.full((2, 1, 4), 3)
    target[:, :, 2:] = -1
    values = cross_entropy_values(candidate, target, background)
    assert values.shape == (2, 2) and np.isfinite(values).all() and values.mean() > 1

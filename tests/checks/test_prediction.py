"""Statistics of the predictive study: what was put in comes out, and pooling cannot fool them."""

import numpy as np
import pytest

from align_ray.checks.prediction import difference, quality, reliability


def test_a_perfect_score_is_one_and_has_no_regret():
    losses = np.random.default_rng(0).normal(3, 1, (6, 5))
    found = quality(-losses, losses)
    assert found.spearman.value == pytest.approx(1) and found.pearson.value == pytest.approx(1)
    assert found.regret.value == 0 and found.centred.value == pytest.approx(1) and found.pooled_r2 == pytest.approx(1)


def test_a_score_that_only_tells_easy_targets_from_hard_ones_is_worth_nothing_within_targets():
    rng = np.random.default_rng(1)
    difficulty = np.linspace(0, 10, 30)
    losses = difficulty + rng.normal(0, 0.1, (12, 30))
    found = quality(-difficulty + rng.normal(0, 0.1, (12, 30)), losses)
    assert found.pooled_r2 > 0.99
    assert abs(found.spearman.value) < 0.2 and abs(found.centred.value) < 0.2


def test_what_is_specific_to_the_pair_is_seen_after_row_and_column_effects_are_removed():
    rng = np.random.default_rng(2)
    pair = rng.normal(0, 1, (10, 8))
    losses = pair + 5 * rng.normal(0, 1, (10, 1)) + 5 * rng.normal(0, 1, (1, 8))
    scores = -pair + 7 * rng.normal(0, 1, (10, 1)) + 3 * rng.normal(0, 1, (1, 8))
    found = quality(scores, losses)
    assert found.centred.value == pytest.approx(1)
    assert found.spearman.value < 0.9


def test_pairs_without_a_loss_are_left_out_of_every_statistic():
    losses = np.random.default_rng(3).normal(3, 1, (6, 5))
    holes = losses.copy()
    holes[np.arange(5), np.arange(5)] = np.nan
    scores = -losses.copy()
    scores[np.arange(5), np.arange(5)] = 99.0  # absurd, but never looked at
    found = quality(scores, holes)
    assert found.spearman.value == pytest.approx(1) and found.regret.value == 0
    assert found.centred.value == pytest.approx(1) and found.pooled_r2 == pytest.approx(1)


def test_regret_is_the_loss_of_the_pick_less_the_best_one():
    losses = np.array([[1.0, 5], [2, 4], [4, 4.5]])
    scores = np.array([[0.0, 1], [1, 0], [0, 0]])
    assert quality(scores, losses).regret.value == pytest.approx((1 + 1) / 2)


def test_intervals_over_targets_cover_the_expected_rank_correlation():
    rng = np.random.default_rng(4)

    def study(targets):
        x = rng.normal(0, 1, (10, targets))
        return quality(x, -(x + rng.normal(0, 1, (10, targets)))).spearman

    found = [study(12) for _ in range(150)]
    truth = np.mean([q.value for q in found])  # unbiased: a mean over targets
    assert 0.86 < np.mean([q.low <= truth <= q.high for q in found]) <= 0.99


def test_paired_differences_find_a_small_constant_gain_and_no_gain_where_there_is_none():
    rng = np.random.default_rng(5)
    shared = rng.uniform(0, 0.8, 12)
    gain = difference((shared + 0.1 + rng.normal(0, 0.02, 12)).tolist(), shared.tolist())
    assert gain["low"] > 0.05 and gain["p"] < 0.01
    p = [difference((shared + rng.normal(0, 0.1, 12)).tolist(), shared.tolist())["p"] for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_reliability_is_one_without_noise_and_falls_with_it():
    losses = np.random.default_rng(6).normal(0, 1, (8, 5, 1))
    noise = np.random.default_rng(7).normal(0, 1, (8, 5, 3))
    assert reliability(np.repeat(losses, 3, axis=2)) == pytest.approx(1)
    assert reliability(losses + 0.1 * noise) > 0.9 > reliability(losses + 3 * noise)

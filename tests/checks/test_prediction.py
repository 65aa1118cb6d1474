"""Statistics of the predictive study: what was put in comes out, and pooling cannot fool them."""

import numpy as np
import pytest
from scipy import stats

from align_ray.checks.prediction import (
    _linear_correlations,
    _rank_correlations,
    _regrets,
    difference,
    quality,
    reliability,
)


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


def study(rng, candidates, targets, scored=0.0, trained=0.0):
    """Scores and losses [K, M]: a match of every pair, beside candidates that are good for every target (`trained`) and
    that the measure takes for better or worse than they are, for every target alike (`scored`)."""
    everywhere, wrong = rng.normal(size=(2, candidates, 1))
    match, noise = rng.normal(size=(2, candidates, targets))
    losses = -(match + trained * everywhere)
    return 0.6 * match + scored * (0.5 * everywhere + wrong) + 0.8 * noise, losses


CASES = [(12, 8, 0, 0), (12, 8, 1, 0), (16, 12, 1, 1), (16, 12, 0.5, 2), (16, 12, 2, 2), (12, 8, 2, 2)]


@pytest.mark.parametrize("studies", [60, pytest.param(500, marks=pytest.mark.full)])
@pytest.mark.parametrize(("candidates", "targets", "scored", "trained"), CASES)
def test_intervals_of_rank_correlations_cover_also_where_a_measure_errs_on_a_candidate_for_all_targets(
    candidates, targets, scored, trained, studies
):
    rng = np.random.default_rng(4)
    found = [quality(*study(rng, candidates, targets, scored, trained)).spearman for _ in range(studies)]
    truth = np.mean([_rank_correlations(*study(rng, candidates, targets, scored, trained)) for _ in range(3000)])
    covered = np.mean([q.low <= truth <= q.high for q in found])
    print(f"K={candidates} M={targets} scored={scored} trained={trained}: {covered:.3f}")
    assert covered > (0.9 if studies > 100 else 0.85)


def test_targets_are_resampled_as_well_as_candidates():
    """Perfect on one target and the reverse on the other: which ones there are decides, whatever the candidates."""
    losses = np.random.default_rng(9).normal(size=(30, 1)) * np.ones((1, 2))
    found = quality(losses * [-1, 1], losses).spearman
    assert found.value == pytest.approx(0, abs=1e-9) and found.low < -0.9 and found.high > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_weighted_statistics_are_those_of_the_resample_itself(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 9).astype(float), rng.normal(size=9)
    counts = rng.multinomial(9, np.full(9, 1 / 9))
    xs, ys = np.repeat(x, counts), np.repeat(y, counts)
    found = [
        f(x[:, None], y[:, None], counts[None].astype(float))[0, 0]
        for f in (_rank_correlations, _linear_correlations, _regrets)
    ]
    wanted = [stats.spearmanr(xs, -ys).statistic, stats.pearsonr(xs, -ys).statistic, ys[np.argmax(xs)] - ys.min()]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_paired_differences_find_a_gain_and_no_gain_where_there_is_none():
    rng = np.random.default_rng(5)
    losses = rng.normal(size=(12, 8))
    good, bad = -losses + rng.normal(0, 0.3, losses.shape), -losses + rng.normal(0, 1.5, losses.shape)
    gain = difference(good, bad, losses)
    assert (
        gain["low"] > 0 and gain["p"] < 0.01 and gain["value"] == pytest.approx(-difference(bad, good, losses)["value"])
    )
    p = [difference(*(-losses + rng.normal(0, 1, losses.shape) for _ in range(2)), losses)["p"] for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) < 0.1


def test_reliability_is_one_without_noise_and_falls_with_it():
    losses = np.random.default_rng(6).normal(0, 1, (8, 5, 1))
    noise = np.random.default_rng(7).normal(0, 1, (8, 5, 3))
    assert reliability(np.repeat(losses, 3, axis=2)) == pytest.approx(1)
    assert reliability(losses + 0.1 * noise) > 0.9 > reliability(losses + 3 * noise)

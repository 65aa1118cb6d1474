"""Comparisons of candidates: error rates hold, sample sizes are what they say."""

import dataclasses

import numpy as np
import pytest

from align_ray.alignment import comparison as cp
from align_ray.alignment.margins import Margins


def matrices(rng, means, n=16, m=16, own=0.02, shared=0.02, pair=0.01):
    """Alignments of every candidate's n batches with the target's m: effects of both sides and of the pair."""
    target = rng.normal(0, shared, m)
    return [mean + rng.normal(0, own, (n, 1)) + target + rng.normal(0, pair, (n, m)) for mean in means]


def test_the_targets_noise_is_common_to_all_candidates_and_cancels():
    rng = np.random.default_rng(0)
    c = cp.contrasts(matrices(rng, [0.80, 0.78], own=0.001, shared=0.2, pair=0.001))
    assert cp.p_above(c)[0, 1] > 0.999
    assert c.shared[0, 0] > 100 * c.own[0]


def test_probabilities_of_a_comparison_and_of_its_reverse_add_up():
    p = cp.p_above(cp.contrasts(matrices(np.random.default_rng(1), [0.5, 0.51, 0.6])))
    assert p + p.T == pytest.approx(np.ones((3, 3)))
    assert np.diag(p) == pytest.approx(0.5)


def test_the_best_is_found_and_equal_candidates_share_the_chance():
    c = cp.contrasts(matrices(np.random.default_rng(2), [0.9, 0.5, 0.5]))
    assert cp.p_best(c)[0] > 0.999
    shares = np.mean(
        [cp.p_best(cp.contrasts(matrices(np.random.default_rng(s), [0.5] * 4))) for s in range(40)], axis=0
    )
    assert shares.sum() == pytest.approx(1) and shares == pytest.approx(np.full(4, 0.25), abs=0.12)


def test_unadjusted_comparisons_of_equal_candidates_err_often_and_adjusted_ones_rarely():
    plain = adjusted = 0
    for seed in range(200):
        c = cp.contrasts(matrices(np.random.default_rng(seed), [0.5] * 8, n=12, m=12))
        plain += cp.p_above(c).max() > 0.95
        adjusted += cp.p_above_adjusted(c).max() > 0.95
    assert plain / 200 > 0.3
    assert adjusted / 200 < 0.09  # 5% and three standard errors of 200 trials


def test_with_the_batches_asked_for_two_candidates_are_told_apart_as_often_as_promised():
    rng = np.random.default_rng(3)
    first = cp.contrasts(matrices(rng, [0.50, 0.51], n=200, m=200))
    n = int(cp.batches_to_separate(first)[0, 1])
    assert 5 < n < 200
    told = [cp.p_above_adjusted(cp.contrasts(matrices(rng, [0.50, 0.51], n=n, m=n)))[1, 0] > 0.95 for _ in range(200)]
    assert 0.62 < np.mean(told) < 0.95  # planned for 80% at the estimated gap


def test_looks_double_up_to_the_most():
    assert cp.looks_of(8, 64) == [8, 16, 32, 64]
    assert cp.looks_of(8, 40) == [8, 16, 32, 40]
    assert cp.looks_of(8, 6) == [6]


@pytest.mark.slow
@pytest.mark.parametrize("studies", [20, pytest.param(120, marks=pytest.mark.full)])
def test_a_sequential_study_saves_batches_and_its_error_rate_holds(studies):
    """Six candidates, two of them very close: a wrong decision is a settled pair in the wrong order."""
    means = np.array([0.50, 0.502, 0.56, 0.60, 0.65, 0.72])
    looks = cp.looks_of(8, 64)
    wrong, used = 0, []
    for seed in range(studies):
        full = matrices(np.random.default_rng(seed), means, n=64, m=64)
        counts, of_target = np.full(6, looks[0]), looks[0]
        mistaken = False
        for following in [*looks[1:], None]:
            c = cp.contrasts([a[:n, :of_target] for a, n in zip(full, counts, strict=True)])
            sure = cp.p_above_adjusted(c) >= 1 - 0.05 / len(looks)
            mistaken |= bool((sure & (means[:, None] < means[None, :])).any())
            waiting = cp.unsettled(c, len(looks))
            if not waiting or following is None:
                break
            counts[waiting] = following
            of_target = following
        wrong += mistaken
        used.append(counts.sum() / (6 * 64))
    assert wrong / studies <= 0.05
    assert np.mean(used) < 0.6


@pytest.mark.parametrize("candidates", [1, 2, 7, 40])
def test_the_largest_of_all_comparisons_is_what_taking_each_gives(candidates):
    rng = np.random.default_rng(candidates)
    means, own = rng.normal(0.5, 0.01, candidates), rng.gamma(1, 0.02, candidates)
    c = cp.contrasts([matrices(rng, [m], own=o)[0] for m, o in zip(means, own, strict=True)])
    noise, scale = cp._simulate(c, 0), np.sqrt(np.maximum(cp.variances(c), 1e-300))
    wanted = np.max([((noise[:, [i]] - noise) / scale[i]).max(1) for i in range(candidates)], axis=0)
    np.testing.assert_array_equal(cp._largest_t(noise, scale), wanted)


def test_a_ranking_shows_of_all_comparisons_those_with_the_next_one():
    rng = np.random.default_rng(4)
    values = {f"c{i}": matrices(rng, [rng.normal(0.5, 0.02)])[0] for i in range(9)}
    c = cp.contrasts(list(values.values()))
    above, adjusted, best = cp.p_above(c), cp.p_above_adjusted(c), cp.p_best(c)
    rows = cp.ranking(list(values), Margins.of(list(values.values())))
    order = [list(values).index(row["candidate"]) for row in rows]
    assert (np.diff(c.values[order]) <= 0).all() and [row["p_best"] for row in rows] == best[order].tolist()
    for row, i, j in zip(rows, order, order[1:], strict=False):
        assert row["p_above_next"] == above[i, j] and row["adjusted"] == adjusted[i, j]
    assert rows[-1]["p_above_next"] is rows[-1]["adjusted"] is None


def test_of_very_many_candidates_the_simulation_has_the_same_covariance_and_the_bound_holds_the_error():
    rng = np.random.default_rng(6)
    own = rng.gamma(1, 0.02, cp.MANY)
    c = cp.contrasts([matrices(rng, [0.5], own=o)[0] for o in own])
    np.testing.assert_allclose(c.root @ c.root.T, c.shared, rtol=1e-9, atol=1e-18)
    c = dataclasses.replace(c, freedom=10**6)  # normal
    noise = cp._simulate(c, 0)
    assert noise.shape == (cp.FEWER_DRAWS, cp.MANY)
    wanted = np.diag(c.own) + c.shared
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs((np.cov(noise.T) - wanted) / scale).max() < 0.09  # six standard errors of a correlation
    few = cp.contrasts([matrices(rng, [0.5], own=o)[0] for o in own[:-1]])
    t = np.linspace(3, 9, 600)
    settled = []
    for noise in (cp._simulate(few, 0), None):
        found = cp._adjusted(few, t, noise)
        assert (np.diff(found) >= 0).all() and found[-1] > 0.99
        settled.append(t[np.searchsorted(found, cp.CONFIDENCE)])
    assert settled[0] < settled[1] < 1.15 * settled[0]


def test_seventy_equal_candidates_are_rarely_told_apart():
    wrong = 0
    for seed in range(60):
        values = matrices(np.random.default_rng(seed), [0.5] * 70, n=12, m=12)
        rows = cp.ranking([f"c{i}" for i in range(70)], Margins.of(values))
        wrong += any(row["settled"] for row in rows[:-1])
        assert sum(row["p_best"] for row in rows) == pytest.approx(1)
    assert wrong <= 6

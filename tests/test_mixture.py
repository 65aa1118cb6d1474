"""Mixtures stay in the capped simplex, and the optimum over it is one."""

import numpy as np
import pytest

from align_ray.errors import ConfigError
from align_ray.mixture import closed_form, from_simplex, mixture_alignment, split_tokens, to_simplex, weight_caps

FREE = np.ones(4)


def corpora(k, seed=0, dimension=200):
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, (k, dimension)))


def random_problem(rng):
    """A number of corpora, caps that admit a mixture, and a point of the cube, corners included."""
    k = int(rng.integers(1, 9))
    caps = np.minimum(1, rng.random(k) ** 3)
    caps = np.minimum(1, caps * max(1, rng.choice([1, 1.5, 4]) / caps.sum()))
    caps[rng.integers(k)] += max(0, 1 - caps.sum())
    return caps, rng.choice([0.0, 1e-300, 0.5, 1.0], k) if rng.random() < 0.3 else rng.random(k)


def test_every_point_of_the_cube_gives_a_feasible_mixture_under_any_caps():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        caps, u = random_problem(rng)
        w = to_simplex(u, caps)
        assert w.sum() == pytest.approx(1, abs=1e-9)
        assert (w >= 0).all() and (w <= caps + 1e-9).all()


def test_uniform_points_give_mixtures_uniform_on_the_simplex():
    w = np.array([to_simplex(u, FREE) for u in np.random.default_rng(1).random((20_000, 4))])
    np.testing.assert_allclose(w.mean(0), 1 / 4, atol=0.006)  # Dirichlet(1): mean 1/K, variance (K-1) / (K^2 (K+1))
    np.testing.assert_allclose(w.var(0), 3 / 80, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(w.T)[0, 1:], -1 / 3, atol=0.03)


def test_what_exceeds_a_cap_goes_to_the_others_in_proportion():
    w = to_simplex(from_simplex(np.array([0.6, 0.2, 0.1, 0.1])), np.array([0.2, 1, 1, 1]))
    np.testing.assert_allclose(w, [0.2, 0.4, 0.2, 0.2])


def test_from_simplex_inverts_to_simplex():
    for w in np.random.default_rng(2).dirichlet(FREE, 100):
        np.testing.assert_allclose(to_simplex(from_simplex(w), FREE), w, atol=1e-5)
    np.testing.assert_allclose(to_simplex(from_simplex(np.eye(4)[1]), FREE), np.eye(4)[1], atol=1e-5)


def test_the_gradient_of_a_mixtures_alignment_is_its_derivative():
    pooled, targets, w = corpora(3), corpora(2, seed=1), np.array([0.5, 0.3, 0.2])
    _, gradient = mixture_alignment(w, pooled, targets)
    ahead, behind = ([mixture_alignment(w + e, pooled, targets)[0] for e in s * np.eye(3)] for s in (1e-5, -1e-5))
    np.testing.assert_allclose(gradient, np.subtract(ahead, behind) / 2e-5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("caps", [FREE, np.array([0.1, 0.3, 1, 0.4])])
def test_the_closed_form_beats_random_search_and_leaves_nothing_to_gain(caps):
    pooled, targets = corpora(4), corpora(2, seed=1)
    optimum = closed_form(pooled, targets, caps)
    best = max(mixture_alignment(to_simplex(u, caps), pooled, targets)[0] for u in np.random.default_rng(3).random((2000, 4)))
    assert optimum.value >= best - 1e-9
    assert optimum.kkt < 1e-4
    assert optimum.weights.sum() == pytest.approx(1) and (optimum.weights <= caps + 1e-9).all() and (optimum.weights >= 0).all()


@pytest.mark.parametrize("known", [[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 1.0, 0.0], [0.02, 0.08, 0.2, 0.7]])
def test_a_target_that_is_a_mixture_is_found(known):
    pooled = corpora(4)
    optimum = closed_form(pooled, np.array([known @ pooled]), FREE)
    assert optimum.value == pytest.approx(1, abs=1e-7)
    np.testing.assert_allclose(optimum.weights, known, atol=1e-3)


def test_a_cap_below_the_free_optimum_binds():
    pooled = corpora(4)
    optimum = closed_form(pooled, np.array([[0.7, 0.1, 0.1, 0.1] @ pooled]), np.array([0.25, 1, 1, 1]))
    assert optimum.weights[0] == pytest.approx(0.25)
    assert optimum.kkt < 1e-4


def test_caps_that_leave_a_single_mixture_give_that_mixture():
    caps = np.array([0.25, 0.25, 0.5])
    np.testing.assert_allclose(closed_form(corpora(3), corpora(1, seed=1), caps).weights, caps, atol=1e-9)


def test_a_corpus_may_fill_max_epochs_times_its_tokens_of_the_budget():
    np.testing.assert_allclose(weight_caps({"a": 100, "b": 1000}, token_budget=1000, max_epochs=4), [0.4, 1.0])


def test_corpora_too_small_for_the_budget_are_refused_with_the_remedies():
    with pytest.raises(ConfigError, match=r"'search.token_budget' is 1000.*hold 400 tokens at max_epochs=4; lower the budget"):
        weight_caps({"a": 60, "b": 40}, token_budget=1000, max_epochs=4)


def test_rows_are_split_by_the_largest_remainder_and_all_are_used():
    np.testing.assert_array_equal(split_tokens(np.array([0.5, 0.26, 0.24]), 10), [5, 3, 2])
    rng = np.random.default_rng(4)
    for _ in range(500):
        w, rows = rng.dirichlet(np.ones(rng.integers(1, 9))), int(rng.integers(1, 200))
        counts = split_tokens(w, rows)
        assert counts.sum() == rows and (abs(counts - w * rows) < 1).all()

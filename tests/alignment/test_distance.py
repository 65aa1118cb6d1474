"""The distance between Fisher embeddings: its fixed points, its noise law and its gradient."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from align_ray.alignment.distance import (
    EPSILON,
    SIMILARITIES,
    cosine,
    distance_matrix,
    hellinger,
    kl,
    log_centred_cosine,
    scaled_cosine,
    scaled_cosine_distance,
    similarity_gradient,
)  # fmt: skip


def embeddings(seed, *shape):
    return np.exp(np.random.default_rng(seed).normal(0, 2, shape))


def test_an_embedding_is_at_distance_zero_from_itself():
    a = embeddings(0, 500)
    assert scaled_cosine_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_embeddings_without_common_support_are_at_distance_one():
    a, b = embeddings(1, 2, 100)
    assert scaled_cosine_distance(np.r_[a, 0 * a], np.r_[0 * b, b]) == 1


def test_the_distance_is_symmetric_and_between_zero_and_one():
    a, b = embeddings(2, 2, 50, 30)
    d = distance_matrix(a, b)
    np.testing.assert_allclose(d, distance_matrix(b, a).T, atol=1e-6)
    assert d.min() > 0 and d.max() < 1


def test_the_distance_of_a_hand_made_pair_is_known():
    # u = (1/4, 1/2) and v = (3/4, 1/2): cos = (3/16 + 4/16) / sqrt(5/16 * 13/16) = 7 / sqrt(65)
    assert scaled_cosine_distance([1, 2], [3, 2]) == pytest.approx(1 - 7 / np.sqrt(65), abs=1e-6)


def test_the_distance_does_not_depend_on_the_unit_of_the_embeddings():
    a, b = embeddings(3, 2, 200)
    assert scaled_cosine_distance(1e-14 * a, 1e-14 * b) == pytest.approx(scaled_cosine_distance(a, b), rel=1e-9)


def test_every_entry_of_the_matrix_is_the_distance_of_its_pair():
    a, b = embeddings(4, 3, 5000), embeddings(5, 2, 5000)  # more than one block of entries
    expected = [[scaled_cosine_distance(x, y) for y in b] for x in a]
    np.testing.assert_allclose(distance_matrix(a, b), expected, atol=1e-6)


def test_with_the_published_epsilon_small_entries_drop_out():
    a, b = 1e-7 * embeddings(4, 2, 400)
    large = (a + b) > 1e-7
    a, b = np.where(large, a, 1e-12), np.where(large, b, 1e-12)
    u, v = a / (a + b + 1e-8), b / (a + b + 1e-8)  # as published
    published = 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert scaled_cosine_distance(a, b, absolute=1e-8) == pytest.approx(published, abs=1e-12)
    assert distance_matrix(a[None], b[None], absolute=1e-8)[0, 0] == pytest.approx(published, abs=1e-6)
    assert abs(scaled_cosine_distance(a, b) - published) > 0.01


@pytest.mark.parametrize("v", [0.05, 0.5, 2.0])
def test_independent_noise_of_relative_variance_v_gives_v_over_one_plus_v(v):
    rng = np.random.default_rng(6)
    a, b = embeddings(7, 100_000) * rng.gamma(1 / v, v, (2, 100_000))
    assert scaled_cosine_distance(a, b) == pytest.approx(v / (1 + v), abs=0.005)


@pytest.mark.parametrize("absolute", [None, 0.5])
def test_the_gradient_of_the_similarity_is_its_derivative(absolute):
    h, t = embeddings(8, 2, 12)
    value, gradient = similarity_gradient(h, t, absolute)
    assert value == pytest.approx(1 - scaled_cosine_distance(h, t, absolute), abs=1e-12)
    steps = enumerate(np.diag(1e-6 * h))
    numeric = [approx_fprime(h, lambda x: 1 - scaled_cosine_distance(x, t, absolute), e)[i] for i, e in steps]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=20 * EPSILON * abs(gradient).max())


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    return np.exp(rng.normal(0, 2, (4, 300))), np.exp(rng.normal(0, 2, (3, 300)))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity_is_one_for_equal_embeddings_and_lower_for_others(name, rows):
    function = SIMILARITIES[name]
    own, other = function(rows[0], rows[0]), function(*rows)
    assert own.shape == (4, 4) and other.shape == (4, 3)
    assert np.diag(own) == pytest.approx(np.ones(4), abs=1e-6)
    assert other.max() < 0.9 and (own <= 1 + 1e-6).all()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_all_pairs_at_once_are_the_pairs_one_by_one(name, rows):
    a, b = rows
    single = [[SIMILARITIES[name](a[i : i + 1], b[j : j + 1])[0, 0] for j in range(3)] for i in range(4)]
    assert SIMILARITIES[name](a, b) == pytest.approx(np.array(single), abs=1e-6)


@pytest.mark.parametrize("name", [n for n in SIMILARITIES if n != "kl"])
def test_similarities_but_kl_are_symmetric(name, rows):
    assert SIMILARITIES[name](*rows) == pytest.approx(SIMILARITIES[name](rows[1], rows[0]).T, abs=1e-6)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_unit_of_the_gradients_does_not_matter(name, rows):
    """A common factor never does; of one side alone only where the similarity says so."""
    a, b = rows
    before = SIMILARITIES[name](a, b)
    assert SIMILARITIES[name](1e-9 * a, 1e-9 * b) == pytest.approx(before, abs=1e-5)
    alone = SIMILARITIES[name](7 * a, b)
    assert (alone == pytest.approx(before, abs=1e-6)) == (name != "scaled-cosine")


def test_known_values_of_the_similarities():
    a, b = np.array([[1.0, 3.0]]), np.array([[3.0, 1.0]])
    assert scaled_cosine(a, b)[0, 0] == pytest.approx(6 / 10, abs=1e-5)  # u = (1/4, 3/4), v = (3/4, 1/4)
    assert hellinger(a, b)[0, 0] == pytest.approx(2 * np.sqrt(3) / 4)
    assert kl(a, b)[0, 0] == pytest.approx(np.exp(-0.5 * np.log(3)), rel=1e-4)
    assert cosine(a, b)[0, 0] == pytest.approx(6 / 10)
    assert log_centred_cosine(a, b)[0, 0] == pytest.approx(-1)
    empty = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert [f(*empty)[0, 0] for f in (scaled_cosine, hellinger, cosine)] == pytest.approx([0, 0, 0], abs=1e-5)

"""The evidence behind the search: unigram models that leave enough for unseen tokens, DSIR's selection, one prior
for all units."""

import numpy as np
import pytest

from align_ray.alignment.baselines import discounted_distribution, dsir_weights, ney_discount
from align_ray.config import Search
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.objectives import linear_objective
from align_ray.mixture.solver import Goal, with_prior

BACKGROUND = np.full(1000, 1 / 1000)


def test_what_is_taken_from_seen_tokens_goes_to_the_background():
    counts = np.random.default_rng(0).poisson(0.8, 1000)
    discount = ney_discount(counts)
    p = discounted_distribution(counts, BACKGROUND, discount)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    assert discount == pytest.approx(once / (once + 2 * twice)) and p.sum() == pytest.approx(1) and (p > 0).all()
    held = discount * (counts > 0).sum() / counts.sum()
    np.testing.assert_allclose(p[counts == 0], held / 1000)
    np.testing.assert_allclose(p[counts == 3], (3 - discount) / counts.sum() + held / 1000)


def test_it_predicts_new_text_of_the_same_kind_better_than_a_token_of_prior():
    rng = np.random.default_rng(1)
    truth = rng.dirichlet(np.full(1000, 0.3))
    counts, new = rng.multinomial(2000, truth), rng.multinomial(20_000, truth)
    good = new @ np.log(discounted_distribution(counts, BACKGROUND, ney_discount(counts)))
    assert good > new @ np.log((counts + BACKGROUND) / (counts.sum() + 1))


def test_dsir_takes_the_texts_that_are_like_the_target():
    near = [f"the model has {w} loss and {w} tokens" for w in "low high mean small large".split()] * 10
    far = [f"thou art {w} my lord and {w} is night" for w in "fair foul dark bright cold".split()] * 10
    weights = dsir_weights({"far": far, "near": near}, near[:5], 40, 0)
    assert weights.sum() == pytest.approx(1) and weights[1] > 0.9
    np.testing.assert_array_equal(weights, dsir_weights({"far": far, "near": near}, near[:5], 40, 0))


def test_the_prior_weighs_the_same_whatever_the_unit_of_the_objective():
    constraints = constraints_of(Search(token_budget=1), dict.fromkeys("abc", 10))
    scores = np.array([0.1, 0.4, 0.2])
    nats, similarity = (Goal([linear_objective(s)], np.ones(1)) for s in (scores, 100 * scores))
    assert with_prior(nats, constraints, 0.02).strength == pytest.approx(0.02 * 0.3)
    assert with_prior(similarity, constraints, 0.02).strength == pytest.approx(0.02 * 30)

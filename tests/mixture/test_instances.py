"""The search on random small problems, against trying every choice of corpora: support, bounds, value, certificate."""

import dataclasses

import numpy as np
import pytest

from align_ray.mixture import solver
from align_ray.mixture.constraints import nearest
from align_ray.mixture.describe import comparison_mixtures
from align_ray.mixture.solver import Goal, near_optimal_average, solve, with_prior
from tests.mixture.instances import exhaustive, instance

TOLERANCE = 1e-6
"""Of the objective's spread over single corpora."""


def seeds(some, all_of_them):
    """A few always; the others with --full."""
    parts = [range(some), pytest.param(range(some, all_of_them), marks=[pytest.mark.full, pytest.mark.slow])]
    return pytest.mark.parametrize("seeds", parts, ids=["some", "all"])


def goal_of(problem):
    return with_prior(Goal(problem.objectives, problem.share), problem.constraints, problem.search.prior_strength)


def kept_to(w, constraints, seed):
    assert (w >= constraints.lower - 1e-15).all() and (w <= constraints.upper + 1e-15).all(), seed
    assert w.sum() == pytest.approx(1, abs=1e-14), seed
    assert constraints.most is None or (w != 0).sum() <= constraints.most, seed


@seeds(30, 734)
def test_the_best_mixture_keeps_to_every_constraint_exactly_and_nothing_beats_it(seeds):
    for seed in seeds:
        problem = instance(seed)
        best = solve(goal_of(problem), problem.constraints)
        kept_to(best.weights, problem.constraints, seed)
        value, _ = exhaustive(problem)
        lack, spread = value - problem.value(best.weights), problem.spread
        assert lack <= TOLERANCE * spread, seed
        assert (best.gap is None) == (best.choice is not None) and (best.gap is not None or problem.constraints.most), (
            seed
        )
        if best.gap is not None:
            assert lack - 1e-12 * spread <= best.gap <= TOLERANCE * spread, seed
        assert best.gap_within <= TOLERANCE * spread, seed


@seeds(30, 400)
def test_newtons_method_for_many_corpora_finds_what_sequential_least_squares_does(seeds, monkeypatch):
    for seed in seeds:
        problem = instance(seed, limited=False)
        goal = goal_of(problem)
        few = solve(goal, problem.constraints)
        with monkeypatch.context() as patch:
            patch.setattr(solver, "MANY_CORPORA", 0)
            many = solve(goal, problem.constraints)
        kept_to(many.weights, problem.constraints, seed)
        assert few.penalised - many.penalised <= TOLERANCE * problem.spread and many.gap <= TOLERANCE * problem.spread
        np.testing.assert_allclose(many.weights, few.weights, atol=1e-3, err_msg=str(seed))


@seeds(8, 100)
def test_whatever_is_derived_from_the_best_mixture_keeps_to_the_number_of_corpora(seeds):
    for seed in seeds:
        problem = instance(seed, limited=True)
        goal, constraints = goal_of(problem), problem.constraints
        best = solve(goal, constraints)
        slack = 0.05 * problem.spread
        mean = near_optimal_average(goal, constraints, best, slack, seed)
        kept_to(mean, constraints, seed)
        assert ((mean > 0) <= (best.weights > 0)).all(), "its corpora are the optimum's"
        rng = np.random.default_rng(seed)
        resampled = [
            dataclasses.replace(goal, weights=None if problem.worst else s)
            for s in rng.dirichlet(np.ones(len(goal.objectives)), 3)
        ]
        again = [solve(other, constraints, best.weights) for other in resampled]
        for found, other in zip(again, resampled, strict=True):
            kept_to(found.weights, constraints, seed)
            assert found.penalised >= other.penalised(constraints, best.weights[None])[0] - TOLERANCE * problem.spread
        kept_to(nearest(np.mean([found.weights for found in again], axis=0), constraints), constraints, seed)
        within = comparison_mixtures(goal, constraints, problem.tokens)
        for name in ("unimax", "bad"):
            assert (within[name] != 0).sum() <= constraints.most and (within[name] <= constraints.caps + 1e-12).all(), (
                seed,
                name,
            )


@seeds(20, 400)
def test_exchanges_keep_to_the_number_of_corpora_and_seldom_miss_the_best_choice(seeds, monkeypatch):
    """What is done where the choices are too many to try each."""
    monkeypatch.setattr(solver, "MANY", 0)
    short = []
    for seed in seeds:
        problem = instance(seed, limited=True)
        best = solve(goal_of(problem), problem.constraints)
        kept_to(best.weights, problem.constraints, seed)
        short.append((exhaustive(problem)[0] - problem.value(best.weights)) / problem.spread)
    assert np.mean(np.array(short) > TOLERANCE) <= 0.03 and min(short) > -TOLERANCE


@pytest.mark.parametrize("seed", [6, 20, 38, 49, 52, 93, 106, 112, 123])
def test_under_a_prior_too_prices_are_what_a_little_more_of_a_bound_is_worth(seed):
    problem, step = instance(seed, limited=False), 1e-4
    goal, constraints = goal_of(problem), problem.constraints
    assert goal.strength > 0
    best = solve(goal, constraints)
    not_zero = set()
    for k in range(len(constraints.names)):
        for bound, sign, price in (("upper", 1, best.shadow[k]), ("lower", -1, best.price[k])):
            if constraints.lower[k] == 0 and bound == "lower":
                continue
            moved = getattr(constraints, bound).copy()
            moved[k] += sign * step
            if constraints.lower[k] < constraints.upper[k] < 1 and moved[k] > 0 and constraints.upper.sum() > 1.01:
                gain = solve(goal, dataclasses.replace(constraints, **{bound: moved})).penalised - best.penalised
                assert gain == pytest.approx(price * step, rel=0.05, abs=2e-3 * step), (k, bound)
                if price > 0.005:
                    not_zero.add(bound)
    assert not_zero == {"upper", "lower"} or seed not in (38, 93, 106, 123)

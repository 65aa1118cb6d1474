"""The closed-form mixture: constraints, optimum with certificate, prices, near-optimal set, against brute force."""

import dataclasses

import numpy as np
import pytest

from align_ray.alignment.distance import scaled_cosine
from align_ray.config import Search
from align_ray.errors import ConfigError
from align_ray.mixture import newton
from align_ray.mixture.constraints import constraints_of, from_unit_cube, nearest, to_unit_cube, unconstrained
from align_ray.mixture.objectives import (
    MANY_CORPORA,
    hellinger_objective,
    kl_objective,
    linear_objective,
    log_mixture_objective,
    log_mixture_objectives,
    scaled_cosine_objective,
    scaled_cosine_objectives,
)
from align_ray.mixture.solver import (
    FRONT,
    Goal,
    effective_corpora,
    near_optimal_average,
    pareto_front,
    solve,
    with_prior,
)
from align_ray.training.rows import split_tokens

NAMES = ("a", "b", "c", "d")


def constraints(tokens=10_000, **fields):
    tokens = tokens if isinstance(tokens, dict) else dict.fromkeys(NAMES, tokens)
    return constraints_of(Search(token_budget=1000, **fields), tokens)


def corpora(k=4, seed=0, rows=300):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(size=rows)) * np.exp(0.8 * rng.normal(size=(k, rows)))


def objectives(seed=0):
    pooled = corpora(seed=seed)
    target = np.array([0.5, 0.3, 0.1, 0.1]) @ pooled * np.random.default_rng(seed).gamma(20, 0.05, pooled.shape[1])
    share = pooled / pooled.sum(1, keepdims=True)
    return {
        "scaled-cosine": scaled_cosine_objective(pooled, target),
        "hellinger": hellinger_objective(pooled, target),
        "kl": kl_objective(pooled, target),
        "log-mixture": log_mixture_objective(share, target),
        "linear": linear_objective(np.array([0.1, 0.4, 0.2, 0.3])),
    }


KINDS = list(objectives())


def goal(kind="scaled-cosine", seed=0, strength=0.0):
    return Goal([objectives(seed)[kind]], np.ones(1), strength)


@pytest.mark.parametrize("kind", KINDS)
def test_many_mixtures_at_once_are_as_one_by_one_and_gradients_are_right(kind):
    objective = objectives()[kind]
    w = np.random.default_rng(1).dirichlet(np.ones(4), 150)
    values = objective.values(w)
    np.testing.assert_allclose(values, [objective.gradient(row)[0] for row in w], atol=1e-6)
    step = 1e-5 * np.eye(4)
    slope = [(objective.gradient(w[0] + e)[0] - objective.gradient(w[0] - e)[0]) / 2e-5 for e in step]
    np.testing.assert_allclose(objective.gradient(w[0])[1], slope, rtol=1e-4, atol=1e-7)


def test_the_scaled_cosine_objective_is_the_papers_similarity_of_the_pooled_embedding():
    pooled, target = corpora(), corpora(1, seed=9)
    w = np.array([0.4, 0.3, 0.2, 0.1])
    wanted = scaled_cosine((w @ pooled)[None], target)[0, 0]
    assert scaled_cosine_objective(pooled, target[0]).gradient(w)[0] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 0.05])
@pytest.mark.parametrize("fields", [{}, {"weights": {"a": {"max": 0.2}, "d": 0.15}}, {"max_epochs": 0.03}])
def test_the_optimum_is_feasible_beats_random_search_and_its_certificate_holds(kind, strength, fields):
    bounds = constraints(**fields)
    best = solve(goal(kind, strength=strength), bounds)
    assert best.weights.sum() == pytest.approx(1) and (best.weights >= bounds.lower - 1e-9).all()
    assert (best.weights <= bounds.upper + 1e-9).all()
    tried = np.stack([from_unit_cube(u, bounds) for u in np.random.default_rng(3).random((2000, 4))])
    penalty = strength * (tried * np.log(np.maximum(tried, 1e-9) * 4)).sum(1)
    assert (goal(kind).values(tried) - penalty).max() <= best.penalised + max(best.gap, 1e-7)
    assert best.gap < 1e-5


def test_a_known_mixture_is_found_again():
    pooled, known = corpora(), np.array([0.1, 0.6, 0.3, 0.0])
    found = solve(Goal([scaled_cosine_objective(pooled, known @ pooled)], np.ones(1)), constraints())
    np.testing.assert_allclose(found.weights, known, atol=2e-3)
    assert found.value == pytest.approx(1, abs=1e-6)


def test_the_mean_of_single_scores_always_chooses_one_corpus():
    assert effective_corpora(solve(goal("linear"), constraints()).weights) == pytest.approx(1)


def test_the_shadow_price_is_the_gain_of_a_little_more_text():
    tokens = {"a": 100, "b": 10_000, "c": 10_000, "d": 10_000}
    bounds = constraints(tokens, max_epochs=1)
    best = solve(goal(), bounds)
    assert best.weights[0] == pytest.approx(0.1) and best.shadow[0] > 0 and (best.shadow[1:] == 0).all()
    more = solve(goal(), constraints({**tokens, "a": 101}, max_epochs=1))
    assert more.value - best.value == pytest.approx(best.shadow[0] * bounds.per_token, rel=0.05)


def test_a_lower_bound_that_costs_has_its_price():
    free, held = solve(goal(), constraints()), solve(goal(), constraints(weights={"d": {"min": 0.4}}))
    more = solve(goal(), constraints(weights={"d": {"min": 0.401}}))
    assert free.weights[3] < 0.4 and held.weights[3] == pytest.approx(0.4)
    assert held.value - more.value == pytest.approx(held.price[3] * 0.001, rel=0.05)


def test_a_number_of_corpora_is_kept_and_costs_little():
    best = solve(goal(), constraints(max_corpora=2))
    assert (best.weights > 1e-4).sum() == 2
    pairs = [
        np.eye(4)[i] * t + np.eye(4)[j] * (1 - t) for i in range(4) for j in range(i) for t in np.linspace(0, 1, 101)
    ]
    assert best.value >= goal().values(np.stack(pairs)).max() - 1e-4


def test_a_prior_pulls_towards_it():
    plain, pulled = (solve(goal(strength=s), constraints(prior={"d": 1.0, "a": 1.0})).weights for s in (0.0, 10.0))
    np.testing.assert_allclose(pulled[[0, 3]], 0.5, atol=0.05)
    assert plain[3] < 0.3


def test_the_worst_target_is_raised_above_what_the_sum_gives_it():
    both = [objectives(0)["scaled-cosine"], objectives(7)["scaled-cosine"]]
    total, worst = solve(Goal(both, np.array([0.5, 0.5])), constraints()), solve(Goal(both, None), constraints())
    value = lambda w: min(o.values(w[None])[0] for o in both)
    assert value(worst.weights) >= value(total.weights) - 1e-9 and worst.gap < 1e-4
    grid = np.random.default_rng(0).dirichlet(np.ones(4), 20_000)
    assert Goal(both, None).values(grid).max() <= worst.value + 1e-5


def test_no_point_of_the_pareto_front_is_beaten_in_both_targets():
    both = [objectives(0)["scaled-cosine"], objectives(7)["scaled-cosine"]]
    front = pareto_front(both, constraints(), 5)
    values = np.array([[o.values(w[None])[0] for o in both] for _, w in front])
    assert len(front) == 5 and (np.diff(values[np.argsort(values[:, 0]), 1]) <= 1e-6).all()


def test_the_near_optimal_average_is_feasible_near_optimal_steadier_and_the_centroid_of_its_set():
    bounds = constraints(weights={"b": {"max": 0.25}})
    best = solve(goal(), bounds)
    slack = 0.01
    mean = near_optimal_average(goal(), bounds, best, slack, 0)
    assert mean.sum() == pytest.approx(1) and (mean <= bounds.upper + 1e-9).all()
    assert goal().values(mean[None])[0] >= best.value - slack
    assert effective_corpora(mean) > effective_corpora(best.weights)
    tried = np.random.default_rng(0).dirichlet(np.ones(4), 200_000)
    inside = tried[(tried[:, 1] <= 0.25)]
    inside = inside[goal().values(inside) >= best.value - slack]
    assert len(inside) > 100
    np.testing.assert_allclose(mean, inside.mean(0), atol=0.03)
    np.testing.assert_array_equal(near_optimal_average(goal(), bounds, best, 0.0, 0), best.weights)


def test_the_same_seed_gives_the_same_average():
    best = solve(goal(), constraints())
    first, second, other = (near_optimal_average(goal(), constraints(), best, 0.01, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, other, atol=0.03)


@pytest.mark.parametrize("fields", [{}, {"max_epochs": 0.03}, {"weights": {"a": {"min": 0.3}, "b": {"max": 0.1}}}])
def test_every_point_of_the_unit_cube_is_a_feasible_mixture(fields):
    bounds = constraints(**fields)
    for u in np.random.default_rng(0).random((200, 4)):
        w = from_unit_cube(u, bounds)
        assert w.sum() == pytest.approx(1) and (w <= bounds.upper + 1e-9).all() and (w >= bounds.lower - 1e-9).all()


def test_uniform_points_of_the_cube_are_uniform_mixtures():
    w = np.array([from_unit_cube(u, constraints()) for u in np.random.default_rng(1).random((20_000, 4))])
    np.testing.assert_allclose(w.mean(0), 0.25, atol=0.005)
    np.testing.assert_allclose(w.var(0), 3 / 80, rtol=0.05)


def test_the_cubes_point_of_a_mixture_gives_it_back():
    for w in (np.array([0.4, 0.3, 0.2, 0.1]), np.eye(4)[1]):
        np.testing.assert_allclose(from_unit_cube(to_unit_cube(w), constraints()), w, atol=1e-5)


def test_nearest_gives_what_is_over_a_cap_to_the_others_in_proportion():
    found = nearest(np.array([0.6, 0.2, 0.1, 0.1]), constraints(weights={"a": {"max": 0.2}}))
    np.testing.assert_allclose(found, [0.2, 0.4, 0.2, 0.2], atol=1e-9)


def test_caps_that_just_fill_the_budget_leave_one_mixture():
    bounds = constraints({"a": 100, "b": 200, "c": 300, "d": 400}, max_epochs=1)
    np.testing.assert_allclose(solve(goal(), bounds).weights, [0.1, 0.2, 0.3, 0.4], atol=1e-6)


@pytest.mark.parametrize(
    "tokens, fields, field",
    [
        (10, {"max_epochs": 1}, "search.token_budget"),
        (10_000, {"weights": {"a": {"min": 0.6}, "b": {"min": 0.6}}}, "search.weights"),
        (10_000, {"weights": {n: {"max": 0.1} for n in NAMES}}, "search.weights"),
        (100, {"max_epochs": 4, "weights": {"a": {"min": 0.5}}}, "search.weights.a"),
        (10_000, {"max_corpora": 1, "weights": {"a": 0.5, "b": 0.5}}, "search.max_corpora"),
    ],
)
def test_what_cannot_be_met_is_refused_in_one_sentence_that_names_the_field(tokens, fields, field):
    with pytest.raises(ConfigError, match=rf"field '{field}'"):
        constraints(tokens, **fields)


def test_without_constraints_the_optimum_is_at_least_as_good():
    bounds = constraints(weights={"a": {"max": 0.1}})
    assert solve(goal(), unconstrained(bounds)).value >= solve(goal(), bounds).value


@pytest.mark.parametrize("rows", [1, 7, 100, 1023])
def test_tokens_are_split_into_whole_sequences_by_the_largest_remainder(rows):
    np.testing.assert_array_equal(split_tokens(np.array([0.5, 0.26, 0.24]), 10), [5, 3, 2])
    w = np.random.default_rng(rows).dirichlet(np.ones(6))
    counts = split_tokens(w, rows)
    assert counts.sum() == rows and (np.abs(counts - w * rows) < 1).all()


def test_any_caps_and_any_point_of_the_cube_corners_included_give_a_feasible_mixture():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        caps = np.minimum(1, rng.random(4) ** 3)
        caps = np.minimum(1, caps * max(1, rng.choice([1, 1.5, 4]) / caps.sum()))
        caps[rng.integers(4)] += max(0, 1 - caps.sum())
        u = rng.choice([0.0, 1e-300, 0.5, 1.0], 4) if rng.random() < 0.3 else rng.random(4)
        bounds = dataclasses.replace(constraints(), upper=np.minimum(caps, 1))
        w = from_unit_cube(u, bounds)
        assert w.sum() == pytest.approx(1, abs=1e-9) and (w >= 0).all() and (w <= bounds.upper + 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_number_of_corpora_is_kept_where_only_a_corpus_the_target_does_not_want_can_fill_the_budget(seed):
    pooled = corpora(seed=seed)
    wanted = Goal([scaled_cosine_objective(pooled, np.array([0.0, 0.4, 0.3, 0.3]) @ pooled)], np.ones(1))
    bounds = constraints({"a": 1000, "b": 400, "c": 400, "d": 400}, max_epochs=1, max_corpora=2)
    best = solve(wanted, bounds)
    assert (
        (best.weights > 1e-6).sum() == 2
        and best.weights[0] >= 0.6 - 1e-9
        and (best.weights <= bounds.upper + 1e-9).all()
    )
    for u in np.random.default_rng(seed).random((50, 4)):
        w = from_unit_cube(u, bounds)
        assert (w > 1e-6).sum() <= 2 and w.sum() == pytest.approx(1) and (w <= bounds.upper + 1e-9).all()
    mean = near_optimal_average(wanted, bounds, best, 0.01, 0)
    assert (mean > 1e-6).sum() <= 2


def test_a_forced_corpus_that_cannot_fill_the_budget_alone_is_refused():
    with pytest.raises(ConfigError, match=r"search\.max_corpora"):
        constraints(max_corpora=1, weights={"b": {"min": 0.1, "max": 0.5}})


def test_the_near_optimal_average_leaves_the_corner():
    """By a linear objective the set is a simplex cut off at the best corpus; its centroid is known."""
    scores = np.r_[1.0, np.zeros(7)]
    bounds = constraints_of(Search(token_budget=1), {f"c{i}": 10 for i in range(8)})
    cut = Goal([linear_objective(scores)], np.ones(1))
    mean = near_optimal_average(cut, bounds, solve(cut, bounds), 0.3, 0)
    assert mean[0] == pytest.approx(1 - 0.3 * 7 / 8, abs=0.03)


def test_of_one_mixture_that_is_feasible_the_prices_are_what_moving_a_bound_gives():
    bounds = constraints({"a": 100, "b": 200, "c": 300, "d": 400}, max_epochs=1)
    best = solve(goal(), bounds)
    assert best.gap == 0.0
    more = solve(goal(), constraints({"a": 101, "b": 200, "c": 300, "d": 400}, max_epochs=1))
    assert more.value - best.value == pytest.approx(best.shadow[0] * bounds.per_token, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.05])
@pytest.mark.parametrize(
    "tokens, fields",
    [
        ((300, 600, 100, 50), {"max_corpora": 3}),  # of three, the caps sum to 0.3 + 0.6 + 0.1 < 1 in floating point
        ((1000, 1000, 1000, 1000), {"weights": {"a": 0.3, "b": 0.6, "c": 0.1}}),
        ((1000, 1000, 1000, 1000), {"weights": {"a": 0.3, "b": 0.6, "c": 0.1}, "max_corpora": 3}),
        ((1000, 1000, 1000, 1000), {"weights": {"a": {"min": 0.3}, "b": {"min": 0.6}, "c": {"min": 0.1}}}),
        ((1000, 1000, 1000, 1000), {"weights": {"a": 0.3, "b": 0.6, "c": 0.0}, "max_corpora": 3}),
        ((1000, 1000, 1000, 1000), {"max_corpora": 1}),
    ],
)
def test_where_one_mixture_is_left_it_is_given(tokens, fields, strength):
    bounds = constraints(dict(zip(NAMES, tokens, strict=True)), max_epochs=1, **fields)
    best = solve(goal(strength=strength), bounds)
    assert best.weights.sum() == pytest.approx(1, abs=1e-15) and best.gap_within == 0.0
    assert (best.weights <= bounds.upper).all() and (best.weights >= bounds.lower).all()
    if "max_corpora" not in fields or fields["max_corpora"] == 3:
        np.testing.assert_allclose(np.sort(best.weights), [0, 0.1, 0.3, 0.6], atol=1e-15)
    np.testing.assert_array_equal(near_optimal_average(goal(strength=strength), bounds, best, 0.1, 0), best.weights)


def test_bounds_that_cross_by_rounding_are_met():
    third = 1000 / 3
    bounds = constraints(
        {"a": 333, "b": 10_000, "c": 10_000, "d": 10_000}, max_epochs=third / 333 * (1 - 1e-10), weights={"a": 1 / 3}
    )
    assert (bounds.lower <= bounds.upper).all() and solve(goal(), bounds).weights[0] == pytest.approx(1 / 3)


def test_no_certificate_is_given_where_the_corpora_were_chosen():
    free, chosen, enough = (solve(goal(), constraints(max_corpora=m)) for m in (None, 2, 4))
    assert chosen.gap is None and chosen.choice == "exhaustive" and chosen.gap_within < 1e-6
    assert (chosen.weights != 0).sum() == 2
    assert free.choice is enough.choice is None and enough.gap == pytest.approx(free.gap, abs=1e-7)


def test_many_corpora_are_chosen_by_exchanges():
    pooled = corpora(14)
    names = {f"c{i}": 10_000 for i in range(14)}
    bounds = constraints_of(Search(token_budget=1000, max_corpora=4), names)
    wanted = np.zeros(14)
    wanted[[2, 5, 7, 11]] = 0.4, 0.3, 0.2, 0.1
    noisy = wanted @ pooled * np.random.default_rng(0).gamma(5, 0.2, pooled.shape[1])
    best = solve(Goal([scaled_cosine_objective(pooled, noisy)], np.ones(1)), bounds)
    assert best.choice == "exchange" and set(np.flatnonzero(best.weights)) == {2, 5, 7, 11}


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_those_of_the_gradient(kind):
    pooled = objectives()[kind].pooled
    h, step = np.array([0.4, 0.3, 0.2, 0.1]) @ pooled.rows, 1e-5
    diagonal, factors, core = pooled.bend(h)
    hessian = np.diag(diagonal) + factors @ core @ factors.T
    for i in range(0, len(h), 50):
        e = np.zeros(len(h))
        e[i] = step * h[i]
        if kind != "scaled-cosine":  # whose gradient takes the epsilon as constant
            wanted = (pooled.slope(h + e)[1] - pooled.slope(h - e)[1]) / (2 * step * h[i])
        else:
            fixed = scaled_cosine_objective(corpora(), corpora(1, seed=9)[0], 1e-6).pooled
            diagonal, factors, core = fixed.bend(h)
            hessian = np.diag(diagonal) + factors @ core @ factors.T
            wanted = (fixed.slope(h + e)[1] - fixed.slope(h - e)[1]) / (2 * step * h[i])
        np.testing.assert_allclose(hessian[i], wanted, rtol=1e-3, atol=1e-7 * np.abs(hessian).max())


def many(kind, k, targets=1, rows=300):
    """Corpora that are blends of a few topics, and targets inside."""
    rng = np.random.default_rng(5)
    pooled = rng.dirichlet(np.full(k // 5, 0.1), k) @ corpora(k // 5, rows=rows)
    pooled *= np.exp(0.2 * rng.normal(size=pooled.shape))
    wanted = rng.dirichlet(np.full(k, 10 / k), targets) @ pooled * rng.gamma(8, 1 / 8, (targets, rows))
    if kind == "scaled-cosine":
        return scaled_cosine_objectives(pooled, wanted)
    return log_mixture_objectives(pooled / pooled.sum(1, keepdims=True), wanted)


@pytest.mark.parametrize("kind", ["scaled-cosine", "log-mixture"])
@pytest.mark.parametrize(
    "fields", [{}, {"prior_strength": 0.1}, {"max_epochs": 0.002, "weights": {"c3": {"min": 0.005}}}]
)
@pytest.mark.parametrize("worst", [False, True])
def test_of_many_corpora_newtons_method_finds_the_best_and_the_certificate_says_so(kind, fields, worst):
    k, targets = 120, many(kind, 120, 3 if worst else 1)
    bounds = constraints_of(Search(token_budget=1000, **fields), {f"c{i}": 10_000 for i in range(k)})
    wanted = with_prior(Goal(targets, None if worst else np.ones(1)), bounds, fields.get("prior_strength", 0.0))
    best, unit = solve(wanted, bounds), np.ptp(wanted.singles(k))
    assert best.gap <= 1e-6 * unit
    assert best.weights.sum() == pytest.approx(1, abs=1e-12)
    assert (best.weights <= bounds.upper).all() and (best.weights >= bounds.lower).all()
    rng = np.random.default_rng(0)
    tried = [best.weights] + [nearest(best.weights * rng.gamma(s, 1 / s, k), bounds) for s in (1, 10, 100, 1000)]
    assert wanted.penalised(bounds, np.array(tried)).argmax() == 0


def test_of_many_corpora_the_near_optimal_average_is_feasible_near_optimal_and_the_same_again():
    bounds = constraints_of(Search(token_budget=1000, max_epochs=0.01), {f"c{i}": 10_000 for i in range(120)})
    wanted = Goal(many("log-mixture", 120), np.ones(1))
    best = solve(wanted, bounds)
    slack = 0.01 * float(np.ptp(wanted.singles(120)))
    mean = near_optimal_average(wanted, bounds, best, slack, 0)
    assert mean.sum() == pytest.approx(1) and (mean <= bounds.upper + 1e-9).all() and (mean >= 0).all()
    assert best.value - slack <= wanted.values(mean[None])[0] < best.value
    assert effective_corpora(mean) > effective_corpora(best.weights)
    np.testing.assert_array_equal(mean, near_optimal_average(wanted, bounds, best, slack, 0))


def test_the_front_of_a_few_targets_is_every_pair_in_equal_steps_each_direction_once():
    pooled = corpora()
    targets = log_mixture_objectives(pooled, np.random.default_rng(0).dirichlet(np.ones(4), 4) @ pooled)
    found = np.array([s for s, _ in pareto_front(targets, constraints(), 3)])
    every = [np.eye(4)[i] * (1 - t) + np.eye(4)[j] * t for i in range(4) for j in range(i + 1, 4) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(found, [s for n, s in enumerate(every) if not any(np.allclose(s, o) for o in every[:n])])


def test_the_front_of_many_targets_is_a_sample_without_repetition():
    pooled = corpora()
    targets = np.random.default_rng(0).dirichlet(np.ones(4), 30) @ pooled
    front = pareto_front(log_mixture_objectives(pooled, targets), constraints(), 3)
    assert len(front) == FRONT == len({s.tobytes() for s, _ in front})
    assert all(s.sum() == pytest.approx(1) and w.sum() == pytest.approx(1) for s, w in front)


@pytest.mark.parametrize("objective", [log_mixture_objective, scaled_cosine_objective])
@pytest.mark.parametrize("held", [1, 4])
def test_of_many_corpora_a_few_of_the_last_that_have_all_they_may_can_be_left_again(objective, held):
    """Nothing is between its bounds there: to the last corpora goes the target's, or a worse one's weight."""
    k = 300
    pooled = np.random.default_rng(0).dirichlet(np.full(20, 3.0), k)
    tokens = {f"c{i}": 1000 // held if held > 1 else 10_000 for i in range(k)}
    bounds = constraints_of(Search(token_budget=1000, max_epochs=1), tokens)
    start = np.zeros(k)
    start[k - held :] = 1 / held
    best = start @ pooled
    stays = newton.ascend(Goal([objective(pooled, best)], np.ones(1)), bounds, start)
    np.testing.assert_allclose(stays, start, atol=1e-6)
    goal = Goal([objective(pooled, pooled[0])], np.ones(1))
    found = newton.ascend(goal, bounds, start)
    assert found[0] == pytest.approx(1 / held, abs=1e-6) and found.sum() == pytest.approx(1)


def test_where_no_weight_can_move_newtons_method_stays():
    k = 4
    bounds = dataclasses.replace(constraints(), upper=np.full(k, 1 / k))
    goal = Goal([objectives()["log-mixture"]], np.ones(1))
    np.testing.assert_array_equal(newton.ascend(goal, bounds, np.full(k, 1 / k)), np.full(k, 1 / k))


def test_the_equations_of_a_step_are_solved_by_their_structure():
    """Curved corpora, and a diagonal for the others: what the whole matrix gives."""
    rng = np.random.default_rng(0)
    n, curved = 40, np.array([1, 5, 6, 20, 33])
    factor = rng.normal(size=(5, 5))
    empty = np.zeros(n)
    model = newton.Model(curved, factor @ factor.T, np.zeros((1, n)), empty, empty, empty, empty, 0.1, empty)
    whole = np.zeros((n, n))
    whole[np.ix_(curved, curved)] = model.bend
    np.testing.assert_allclose(model.bent(np.arange(n)), whole @ np.arange(n))
    right, diagonal = rng.normal(size=(n, 3)), rng.gamma(1, 1, n)
    wanted = np.linalg.solve(whole + np.diag(diagonal), right)
    np.testing.assert_allclose(model.solve(diagonal, right), wanted, rtol=1e-9)


def test_the_mean_of_cross_entropies_is_one_of_them():
    rng = np.random.default_rng(1)
    k = MANY_CORPORA + 3
    rows = rng.dirichlet(np.full(30, 0.5), k)
    objectives = log_mixture_objectives(rows, rng.integers(0, 5, (4, 30)))
    goal = Goal(objectives, rng.dirichlet(np.ones(4)))
    one, w = goal.merged(), rng.dirichlet(np.ones(k), 7)
    assert len(one.objectives) == 1
    each = np.stack([o.values(w) for o in objectives])
    np.testing.assert_allclose(goal.by_target(w), each, rtol=1e-12)
    np.testing.assert_allclose(one.values(w), goal.weights @ each, rtol=1e-12)
    np.testing.assert_allclose(goal.singles(k), [goal.values(e[None])[0] for e in np.eye(k)], rtol=1e-12)
    np.testing.assert_allclose(newton.slopes(one, w[0]).slopes, newton.slopes(goal, w[0]).slopes, rtol=1e-12)
    worst = Goal(objectives, None)
    assert worst.merged() is worst
    np.testing.assert_allclose(worst.values(w), each.min(0), rtol=1e-12)
    cosine = Goal(scaled_cosine_objectives(rows, rows[:2]), np.full(2, 0.5))
    assert cosine.merged() is cosine

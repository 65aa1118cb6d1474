"""What is said of a mixture."""

import numpy as np
import pytest

from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.alignment.intervals import interval
from align_ray.config import Config, Search
from align_ray.mixture.constraints import constraints_of, no_choice, satisfied
from align_ray.mixture.describe import mixture_alignment, mixture_warnings, repeated_together, weight_table, what_if
from align_ray.mixture.objectives import Objective
from align_ray.mixture.solver import Goal, solve


def said(share, weights, budget=1_000_000, max_epochs=4.0):
    corpora = [{"name": n, "source": f"{n}.jsonl"} for n in "abt"]
    search = {"token_budget": budget, "max_epochs": max_epochs}
    config = Config.model_validate(
        {
            "output": "out",
            "targets": corpora[2:],
            "candidates": corpora[:2],
            "search": search,
            "finetune": {"tokens": 100_000},
        }
    )
    shared = {"a": {"b": share}, "b": {"a": share / 2}}
    return repeated_together(config, {"a": 200_000, "b": 400_000}, shared, dict(zip("ab", weights, strict=True)))


def test_text_that_corpora_share_is_repeated_with_both():
    (line,) = said(0.5, [0.5, 0.5])
    assert line == "a and b share about 100,000 tokens, which the mixture repeats with both: 2.5 + 1.2 = 3.8 times."
    (line,) = said(0.5, [0.5, 0.5], budget=2_500_000)
    assert line.endswith("= 9.4 times, more often than search.max_epochs (4).")


def test_nothing_is_said_where_little_is_shared_or_one_is_not_used():
    assert said(0.01, [0.5, 0.5]) == said(0.5, [1.0, 0.0]) == []


TOKENS = {"a": 1000, "b": 4000, "c": 20_000}


def studied(budget, **search):
    """A configuration of three candidates, and a goal whose best mixture without limits is 0.6, 0.3, 0.1."""
    corpora = [{"name": n, "source": f"{n}.jsonl"} for n in "abct"]
    config = Config.model_validate(
        {"output": "out", "targets": corpora[3:], "candidates": corpora[:3], "finetune": {"tokens": 1000},
         "search": {"token_budget": budget, "max_epochs": 2, "prior_strength": 0, **search}}
    )  # fmt: skip
    best = np.array([0.6, 0.3, 0.1])
    objective = Objective(lambda w: -((w - best) ** 2).sum(1), lambda w: (-((w - best) ** 2).sum(), -2 * (w - best)))
    return config, Goal([objective], np.ones(1))


def asked(budget, **search):
    config, goal = studied(budget, **search)
    optimum = solve(goal, constraints_of(config.search, TOKENS))
    return {point["token_budget"]: point for point in what_if(config, goal, TOKENS, optimum.weights)}


def test_the_optimum_at_other_budgets_goes_from_no_limit_to_no_choice():
    points = asked(16_000)
    assert list(points) == [1000, 2000, 4000, 8000, 16_000, 32_000, 50_000], "never more than there is"
    assert points[1000]["weights"] == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}) and points[1000]["capped"] == []
    assert points[8000]["weights"]["a"] == pytest.approx(2 * 1000 / 8000) and points[8000]["capped"] == ["a"]
    last = points[50_000]
    assert last["only"] and last["weights"] == pytest.approx({n: t / 25_000 for n, t in TOKENS.items()})
    assert not any(points[b]["only"] for b in points if b != 50_000)
    values = [p["value"] for p in points.values()]
    assert values == sorted(values, reverse=True), "a larger budget allows fewer mixtures"
    uniform = -((np.full(3, 1 / 3) - [0.6, 0.3, 0.1]) ** 2).sum()
    assert points[1000]["gain"] == pytest.approx(points[1000]["value"] - uniform) and last["gain"] == pytest.approx(0)


def test_budgets_that_a_smallest_weight_forbids_are_left_out():
    points = asked(4000, weights={"a": {"min": 0.4}})
    assert max(points) == 4000 and all(p["weights"]["a"] >= 0.4 - 1e-9 for p in points.values())


def test_a_price_is_of_a_tenth_more_of_the_corpus_and_close_to_what_that_brings():
    config, goal = studied(8000)
    constraints = constraints_of(config.search, TOKENS)
    optimum = solve(goal, constraints)
    table = weight_table(constraints, TOKENS, optimum, {"low": optimum.weights, "high": optimum.weights})
    assert {n: row["more_tokens"] for n, row in table.items()} == {"a": 101, "b": 0, "c": 0}
    more = solve(goal, constraints_of(config.search, {**TOKENS, "a": 1101}))
    assert table["a"]["gain_of_more"] == pytest.approx(more.value - optimum.value, rel=0.1)
    assert table["b"]["gain_of_more"] == table["c"]["gain_of_more"] == 0


@pytest.mark.parametrize(("budget", "words"), [(50_000, "no choice"), (45_000, "takes 90% of all"), (30_000, "")])
def test_a_budget_that_leaves_little_or_no_choice_is_said(budget, words):
    config, _ = studied(budget)
    lines = mixture_warnings(config, constraints_of(config.search, TOKENS), TOKENS, {"lead": None})
    assert len(lines) == bool(words) and all(words in line for line in lines)


def test_a_mixture_is_within_the_limits_or_not():
    constraints = constraints_of(Search(token_budget=8000, max_epochs=2, max_corpora=2), TOKENS)
    assert satisfied(constraints, np.array([0.25, 0.75, 0.0]))
    assert not satisfied(constraints, np.array([0.26, 0.74, 0.0])), "repeated too often"
    assert not satisfied(constraints, np.array([0.2, 0.4, 0.4])), "of too many corpora"


def constrained(budget, **search):
    asked = Search.model_validate({"token_budget": budget, **search})
    return asked, constraints_of(asked, {"a": 100_000, "b": 150_000})


def test_a_budget_that_fixes_the_weights_is_said_with_one_that_does_not():
    line = no_choice(*constrained(1_000_000))
    assert (
        "leaves no choice" in line and "1.00 times 1,000,000 tokens" in line and "search.token_budget 500,000" in line
    )
    assert no_choice(*constrained(980_000)).startswith("The token budget leaves no choice")
    assert no_choice(*constrained(500_000)) == ""
    pinned = {"weights": {"a": {"min": 0.5}, "b": {"min": 0.49}}}
    assert no_choice(*constrained(200_000, **pinned)).startswith("The smallest weights leave 1.0%")


def by_brute_force(w, corpora, targets, share, absolute):
    def v(parts, ends):
        h = sum(x * p.mean(0) for x, p in zip(w, parts, strict=True) if x > 1e-6)
        d = np.array([scaled_cosine_distance(h, e.mean(0), absolute) for e in ends])
        return d / (1 - d)

    whole = v(corpora, targets)
    free, variance, smallest = whole.copy(), 0.0, []
    for side, held in ((0, corpora), (1, targets)):
        for k, one in enumerate(held):
            n = len(one)
            if n < 2 or (side == 0 and w[k] <= 1e-6):
                continue
            left_out = []
            for i in range(n):
                changed = [np.delete(x, i, axis=0) if j == k else x for j, x in enumerate(held)]
                left_out.append(v(changed, targets) if side == 0 else v(corpora, changed))
            without = np.array(left_out)
            free -= (n - 1) * (without.mean(0) - whole)
            aligned = (1 / (1 + without)) @ share
            variance += (n - 1) / n * ((aligned - aligned.mean()) ** 2).sum()
            smallest.append(n)
    return vars(interval(float((1 / (1 + free)) @ share), variance, min(smallest) - 1))


@pytest.mark.parametrize("absolute", [None, 1e-3])
def test_a_mixtures_alignment_is_that_by_leaving_out_every_batch(absolute):
    rng = np.random.default_rng(0)
    profiles = np.exp(rng.normal(size=(6, 40)))
    made = [p * rng.gamma(6, 1 / 6, (n, 40)) for p, n in zip(profiles, (5, 1, 9, 4, 3, 7), strict=True)]
    corpora, targets = [x.astype(np.float64) for x in made[:4]], made[4:]
    w, share = np.array([0.5, 0.2, 0.0, 0.3]), np.array([0.7, 0.3])
    found = mixture_alignment(w, corpora, targets, share, absolute)
    assert found == pytest.approx(by_brute_force(w, corpora, targets, share, absolute), rel=1e-10)

"""What is said of a mixture."""

from align_ray.config import Config, Search
from align_ray.mixture.constraints import constraints_of, no_choice
from align_ray.mixture.describe import repeated_together


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

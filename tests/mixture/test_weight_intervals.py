"""Intervals of the mixture's weights: they hold the true weights of a target that is a mixture of the candidates."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from align_ray.config import Config
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.goals import cross_entropy_goal, equal_choices, summed
from align_ray.mixture.search import _halves
from align_ray.mixture.solver import solve, with_prior

TRUTH = np.array([0.5, 0.2, 0.2, 0.1, 0.0])
VOCABULARY, TOKENS = 3000, 2048
SOURCES = ("python-stdlib", "cpp-headers", "docstrings", "python-reference", "javascript")


def study(resamples=30, names=SOURCES) -> Config:
    return Config.model_validate(
        {
            "output": "unused",
            "targets": [{"name": "target", "source": "installed:licences"}],
            "candidates": [{"name": n, "source": f"installed:{n}"} for n in names],
            "search": {"token_budget": 1000, "method": "closed_form", "resamples": resamples},
        }
    )


def corpus(rng, p, n):
    """n batches [1, TOKENS]; every batch leans to some tokens of its own, as documents do."""
    return np.stack([rng.choice(VOCABULARY, (1, TOKENS), p=rng.dirichlet(2000 * p + 1e-9)) for _ in range(n)])


def searched(config, batches):
    constraints = constraints_of(config.search, {c.name: 10**9 for c in config.candidates})
    build = cross_entropy_goal(config, batches, VOCABULARY)
    goal = with_prior(build(None), constraints, config.search.prior_strength)
    optimum = solve(goal, constraints)
    return optimum.weights, _halves(config, build, goal, constraints, optimum)


def coverage(n, trials):
    """Share of trials whose interval holds the true weight, by corpus, and that of the lead over the best single corpus,
    taken to be what 500 batches a corpus give. Also that intervals hold the optimum's own weights."""
    rng, config = np.random.default_rng(5), study()
    common = rng.dirichlet(np.full(VOCABULARY, 0.2))
    parts = np.stack([0.5 * common + 0.5 * rng.dirichlet(np.full(VOCABULARY, 0.2)) for _ in TRUTH])
    hits, leads = [], []
    many = {name: corpus(rng, p, 500) for name, p in zip(SOURCES, parts, strict=True)}
    goal = cross_entropy_goal(config, many | {"target": corpus(rng, TRUTH @ parts, 500)}, VOCABULARY)(None)
    lead = goal.values(TRUTH[None])[0] - goal.values(np.eye(len(TRUTH))).max()
    for _ in range(trials):
        batches = {name: corpus(rng, p, n) for name, p in zip(SOURCES, parts, strict=True)}
        weights, found = searched(config, batches | {"target": corpus(rng, TRUTH @ parts, n)})
        assert (found["low"] <= weights + 1e-9).all() and (weights <= found["high"] + 1e-9).all()
        hits.append((found["low"] <= TRUTH + 1e-9) & (found["high"] >= TRUTH - 1e-9))
        leads.append(found["lead"]["low"] <= lead <= found["lead"]["high"])
    return np.mean(hits, axis=0), np.mean(leads)


def test_intervals_hold_the_true_weights_and_the_optimum():
    weights, lead = coverage(8, trials=15)
    assert (weights >= 0.8).all() and lead >= 0.8  # three standard errors below 95%


@pytest.mark.full
@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_intervals_hold_the_true_weights_at_full_size(n):
    weights, lead = coverage(n, trials=100)
    print(f"{n} batches: {weights.round(2)}, lead {lead:.2f}")
    assert (weights >= 0.93).all() and lead >= 0.9


def test_of_two_parts_of_one_corpus_the_larger_gets_no_more_weight():
    rng, config = np.random.default_rng(6), study(20, SOURCES[:2])
    p = rng.dirichlet(np.full(VOCABULARY, 0.2))
    weights = [
        searched(
            config, {"python-stdlib": corpus(rng, p, 16), "cpp-headers": corpus(rng, p, 4), "target": corpus(rng, p, 8)}
        )[0]
        for _ in range(12)
    ]
    assert 0.4 < np.mean(weights, axis=0)[0] < 0.6


def taken(counts):
    """The counts of every choice, of corpora's [n_k, V]."""
    tokens, parts = (
        [c.sum(1) for c in counts],
        np.split(np.arange(sum(map(len, counts))), np.cumsum([*map(len, counts)])[:-1]),
    )
    every = sparse.csr_matrix(np.concatenate(counts))
    choices = equal_choices(tokens, counts[0].shape[1])
    return [summed(every, [rows[some] for rows, some in zip(parts, choice, strict=True)]) for choice in choices]


def test_models_are_counted_on_as_many_batches_as_the_smallest_holds():
    rng = np.random.default_rng(7)
    counts = [rng.multinomial(24, np.full(5, 0.2), n).astype(np.int32) for n in (6, 3, 3)]
    parts = taken(counts)
    assert len(parts) == 8
    for part in parts:
        np.testing.assert_array_equal(part[1:], [c.sum(0) for c in counts[1:]])
        assert any(np.array_equal(part[0], counts[0][list(c)].sum(0)) for c in itertools.combinations(range(6), 3))
    (whole,) = taken(counts[1:])
    np.testing.assert_array_equal(whole, [c.sum(0) for c in counts[1:]])


def test_of_so_many_corpora_and_tokens_that_they_would_fill_the_memory_there_are_fewer_models(monkeypatch):
    tokens = [np.full(n, 5) for n in (6, 3, 3)]
    monkeypatch.setattr("align_ray.mixture.goals.MOST_ENTRIES", 2 * 3 * 5)
    assert len(equal_choices(tokens, 5)) == 2
    monkeypatch.setattr("align_ray.mixture.goals.MOST_ENTRIES", 1)
    assert len(equal_choices(tokens, 5)) == 1

"""Losses beyond the tokens trained: by simulation of the model's own kind and of another, and what is said of them."""

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.training.extrapolation import _kernel, extrapolate, extrapolations, further_changes
from align_ray.training.jobs import Losses, Rung, Trained

STEPS = np.array([1.0, 4.0, 12.0, 35.0, 95.0])
AHEAD = np.array([200.0, 20_000.0])
X, BEYOND = np.log1p(STEPS), np.log1p(AHEAD)


def with_noise(rng, courses, rows=24, row_sd=0.2, seed_sd=0.02):
    """Changes [K, 2, R, rows] of true courses [K, R]: rows of a candidate deviate alike at all rungs, as it moves."""
    k, r = courses.shape
    moved = (X / X[-1])[:r, None]
    own = rng.standard_normal((k, 1, 1, rows)) * row_sd * moved
    common = rng.standard_normal((1, 1, 1, rows))
    seeds = rng.standard_normal((k, 2, 1, 1)) * seed_sd * moved
    return courses[:, None, :, None] + own + (common - common.mean()) * moved + seeds


def covered(drawn, truth):
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    return list((low <= truth) & (truth <= high))


def coverage(rng, courses_of, studies=60):
    """Of 90% intervals of the further change and of differences of two runs, at both points ahead: two [2]."""
    whole, apart = [], []
    for _ in range(studies):
        courses = courses_of(rng)
        _, drawn = further_changes(with_noise(rng, courses[:, :-2]), STEPS, AHEAD, rng)
        truth = courses[:, -2:] - courses[:, -3:-2]
        whole.append([np.mean(covered(drawn[..., p], truth[:, p])) for p in range(2)])
        differences = drawn[:, 1:] - drawn[:, :1]
        apart.append([np.mean(covered(differences[..., p], truth[1:, p] - truth[0, p])) for p in range(2)])
    return np.mean(whole, axis=0), np.mean(apart, axis=0)


def wandering(rng):
    """The model's own kind, of 6 runs."""
    x = np.concatenate([X, BEYOND])
    courses = rng.multivariate_normal(np.zeros(len(x)), 0.3**2 * _kernel(x, x, X[-1]), 7, method="cholesky")
    return courses[:1] + courses[1:]


def power_law(rng):
    """Change by a power law with an offset, as scaling laws of fine-tuning have it: not the model's kind."""
    steps = np.concatenate([STEPS, AHEAD])
    size, exponent = rng.uniform(0.2, 1.0, (6, 1)), rng.uniform(0.1, 0.5, (6, 1))
    return size * ((1 + steps) ** -exponent - 1)


def test_intervals_of_what_is_beyond_cover():
    rng = np.random.default_rng(0)
    whole, apart = coverage(rng, wandering)
    print(f"own kind: {whole.round(3)}, differences {apart.round(3)}")
    assert (whole > 0.84).all() and (whole < 0.97).all() and (apart > 0.84).all() and (apart < 0.97).all()
    whole, apart = coverage(rng, power_law)
    print(f"power law: {whole.round(3)}, differences {apart.round(3)}")
    assert (whole > 0.85).all() and (apart > 0.85).all()


def test_the_kernel_is_that_of_a_line_and_an_integrated_brownian_motion():
    rng, x = np.random.default_rng(1), np.array([1.0, 2.0, 3.0])
    grid = np.linspace(0, 3, 301)[1:]
    slope = np.cumsum(rng.standard_normal((20_000, len(grid))) * np.sqrt(0.01), axis=1) * np.sqrt(1.5 / 27)
    paths = np.cumsum(slope, axis=1) * 0.01 + np.sqrt(0.5) * rng.standard_normal((20_000, 1)) * grid / 3
    np.testing.assert_allclose(np.cov(paths[:, [99, 199, 299]].T), _kernel(x, x, 3.0), atol=0.03)


def test_a_straight_line_goes_on_and_its_interval_widens():
    rng = np.random.default_rng(2)
    slopes = np.array([[-0.1], [-0.15], [-0.2]])
    changes = with_noise(rng, slopes * X, seed_sd=1e-4, row_sd=1e-3)
    ahead = np.geomspace(100, 100_000, 6)
    middle, drawn = further_changes(changes, STEPS, ahead, rng)
    np.testing.assert_allclose(middle, slopes * (np.log1p(ahead) - X[-1]), rtol=0.05)
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    assert (np.diff(high - low, axis=1) > 0).all()


def test_few_steps_tell_less_than_many():
    rng = np.random.default_rng(3)
    widths = []
    for rungs in (2, 5):
        courses = 0.3 * rng.standard_normal((40, 6, 1)) * X[:rungs]
        drawn = [
            further_changes(with_noise(rng, c), STEPS[:rungs], 2 * STEPS[rungs - 1 : rungs], rng)[1] for c in courses
        ]
        widths.append(np.mean([np.ptp(np.quantile(d, [0.05, 0.95], axis=0), axis=0) for d in drawn]))
    assert widths[0] > 1.3 * widths[1]


def at(tokens, steps):
    return {"tokens": np.array(tokens), "steps": np.array(steps, float)}


def said(ends, spread, ahead=AHEAD):
    """Of three runs that have come to `ends`."""
    rng = np.random.default_rng(4)
    courses = np.array(ends)[:, None] * X / X[-1]
    changes = with_noise(rng, courses, seed_sd=spread, row_sd=spread)
    before = np.full((3, 2, 24), 3.0)
    after = before + with_noise(rng, courses, seed_sd=spread, row_sd=spread)[:, :, -1]
    found = extrapolate(
        ["a", "b", "c"],
        changes,
        before,
        after,
        at(512 * STEPS, STEPS),
        at(512 * ahead, ahead),
        np.random.default_rng(0),
    )
    return found, after


def test_one_loss_has_one_value_and_the_order_is_settled_near_by_alone():
    ahead, changes = np.array([100.0, 1e9]), [-0.2, -0.4, -0.8]
    found, after = said(changes, 1e-3, ahead)
    for name, own, change in zip("abc", after, changes, strict=True):
        measured, expected = found["runs"][name]["measured"], found["runs"][name]["expected"]
        assert measured[-1]["value"] == pytest.approx(own.mean())
        assert [p["tokens"] for p in measured] == (512 * STEPS).astype(int).tolist()
        assert all(p["low"] <= p["value"] <= p["high"] for p in measured)
        assert expected[0]["high"] - expected[0]["low"] < expected[1]["high"] - expected[1]["low"]
        assert min(p["low"] for p in expected) >= 0
        line = own.mean() + change * (np.log1p(ahead) / X[-1] - 1)  # these courses are straight in log tokens
        near, far = (p["value"] for p in expected)
        assert near == pytest.approx(line[0], abs=2e-4) and far == pytest.approx(max(0.0, line[1]), abs=0.02)
    assert found["best"] == "c" and found["runs"]["c"]["p_best"] > 0.99
    assert found["holds_to"] == 51_200 and not found["settled_at_budget"]
    assert sum(run["p_best_at_budget"] for run in found["runs"].values()) == pytest.approx(1)


def test_runs_that_noise_cannot_tell_apart_are_not_settled_even_where_they_were_measured():
    found, _ = said([-0.4, -0.41, -0.42], 0.3)
    assert found["holds_to"] is None and not found["settled_at_budget"]


def trained(rng, change):
    """One training of 100 steps, with two rungs at the same step."""
    before = 3.0 + rng.standard_normal(16) * 0.1
    losses = {s: before + change * np.log1p(s) + rng.standard_normal(16) * 0.01 for s in (2, 6, 16, 40, 100)}
    rungs = [Rung(s, {"target": losses[s][:8]}) for s in (2, 2, 6, 16, 40, 100)]
    return Trained({"target": Losses(before, losses[100])}, rungs, 1.0, [])


def settings(budget):
    return Config.model_validate(
        {
            "output": "out",
            "targets": [{"name": "target", "source": "t.txt"}],
            "candidates": [{"name": n, "source": f"{n}.txt"} for n in "ab"],
            "sampling": {"sequence_length": 64},
            "search": {"token_budget": budget},
            "finetune": {"batch_size": 8},
        }
    )


def test_a_target_is_extrapolated_from_the_end_of_the_training_to_the_budget():
    rng = np.random.default_rng(5)
    runs = {name: [trained(rng, change) for _ in range(2)] for name, change in (("a", -0.1), ("b", -0.2))}
    found = extrapolations(settings(1_000_000), 800, runs)["target"]
    course = found["runs"]["b"]
    assert [p["tokens"] for p in course["measured"]] == [2 * 512, 6 * 512, 16 * 512, 40 * 512, 100 * 512]
    assert course["expected"][-1]["tokens"] == found["token_budget"] == 1_000_000
    assert course["expected"][0]["tokens"] > 51_200 and found["best"] == found["best_at_budget"] == "b"
    assert found == extrapolations(settings(1_000_000), 800, runs)["target"]


def test_nothing_is_extrapolated_within_what_was_trained_nor_of_a_run_that_diverged():
    rng = np.random.default_rng(6)
    runs = {name: [trained(rng, -0.1) for _ in range(2)] for name in "abc"}
    assert extrapolations(settings(51_200), 800, runs) == {}
    runs["b"] = [trained(rng, np.nan) for _ in range(2)]
    assert list(extrapolations(settings(1_000_000), 800, runs)["target"]["runs"]) == ["a", "c"]
    runs["c"] = runs["b"]
    assert extrapolations(settings(1_000_000), 800, runs) == {}

"""Posterior of the final losses, and who goes on: by simulation, then by replay of the same trainings."""

import numpy as np
import pytest

from align_ray.errors import ConfigError
from align_ray.training.loop import effective_steps
from align_ray.training.posterior import POWERS, SHARES, Curves, final_losses, row_noise
from align_ray.training.rungs import halve

STEPS = np.array([20.0, 60.0, 160.0, 400.0, 1000.0])
X = np.log1p(STEPS) / np.log1p(STEPS[-1])


def simulated(rng, k=12, share=0.3, worth=0.5, spread=0.1, rows=40, row_sd=0.3, power=1.0):
    """True final losses [k], losses by row [k, R, rows] and the prior: of the model that is assumed, with the rows of
    each candidate the same at all rungs."""
    x = X**power
    prior = rng.standard_normal(k)
    steps = np.diff(x, prepend=0.0)
    paths = np.sqrt(share) * np.cumsum(rng.standard_normal((k, len(x))) * np.sqrt(steps), axis=1)
    paths += np.sqrt(1 - share) * rng.standard_normal((k, 1)) * x
    common = 3.0 - 0.8 * X
    truth = common + spread * (paths + worth * prior[:, None] * x)
    own = rng.standard_normal((k, 1, rows)) * row_sd * x[:, None]
    everyone = rng.standard_normal((1, 1, rows))
    return truth[:, -1], truth[:, :, None] + own + everyone - everyone.mean(), prior


@pytest.mark.parametrize("rung", [1, 2, 3, 5])
def test_intervals_of_the_final_loss_cover(rung):
    """90%, over shares and powers of the grid: of what is a candidate's own, and of the loss itself. One rung says
    nothing of the power, and takes it to be 1."""
    rng, own, whole = np.random.default_rng(0), [], []
    for power in POWERS if rung > 1 else POWERS[:1]:
        of_power = []
        for share in SHARES * (4 if rung > 1 else 12):
            truth, rows, prior = simulated(rng, share=share, power=power)
            rows[:, rung:] = np.nan
            (drawn,) = final_losses([Curves(rows.mean(-1), row_noise(rows), STEPS, prior, 3.0)], rng)
            of_power += covered(drawn - drawn.mean(1, keepdims=True), truth - truth.mean())
            whole += covered(drawn, truth)
        print(f"rung {rung}, power {power:g}: own {np.mean(of_power):.3f}")
        own += of_power
    print(f"rung {rung}: own {np.mean(own):.3f}, whole {np.mean(whole):.3f}")
    assert 0.85 <= np.mean(own) <= 0.95 and np.mean(whole) >= 0.85


def test_targets_that_are_measured_on_the_same_trainings_are_no_further_evidence():
    _, rows, prior = simulated(np.random.default_rng(3), power=2.0)
    rows[:, 3:] = np.nan
    curves = Curves(rows.mean(-1), row_noise(rows), STEPS, prior, 3.0)
    one, many = (final_losses([curves] * n, np.random.default_rng(0))[0] for n in (1, 8))
    assert np.allclose(one, many)


def covered(drawn, truth):
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    return list((low <= truth) & (truth <= high))


def test_what_early_losses_say_is_learned_from_them_and_the_prior_counts_while_they_say_little():
    rng, early, late, words = np.random.default_rng(1), [], [], []
    for _ in range(30):
        truth, rows, prior = simulated(rng, worth=0.8, share=0.6, row_sd=0.3)
        for rung, into in ((1, early), (4, late)):
            part = np.where(np.arange(5)[:, None] < rung, rows, np.nan)
            (drawn,) = final_losses([Curves(part.mean(-1), row_noise(part), STEPS, prior, 3.0)], rng)
            into.append(np.corrcoef(drawn.mean(0), truth)[0, 1])
        words.append(np.corrcoef(prior, truth)[0, 1])
    assert np.mean(late) > np.mean(early) + 0.05 and np.mean(early) > np.mean(words) - 0.01


def replay(rows, priors, delta=0.005, order=None, calls=None):
    """Halving where the trainings are known; `rows` by target [K, R, m]."""
    k = len(next(iter(priors.values())))

    def train(who, rung):
        if calls is not None:
            calls.append((list(who), rung))
        assert order is None or who == sorted(who)
        return {t: values[who, rung] for t, values in rows.items()}

    *_, last = halve(train, STEPS, k, priors, lambda: dict.fromkeys(rows, 3.0), delta, seed=0)
    return last


def test_the_best_is_found_for_a_part_of_the_tokens():
    rng, spent, regret = np.random.default_rng(2), [], []
    for _ in range(25):
        truth, rows, prior = simulated(rng, k=16, spread=0.1, row_sd=0.1)
        found = replay({"target": rows}, {"target": prior})
        spent.append(sum(STEPS[r - 1] for r in found.reached) / (16 * STEPS[-1]))
        regret.append(truth[found.standings["target"].middle.argmin()] - truth.min())
    assert np.mean(spent) < 0.25 and np.mean(regret) < 0.005


def test_a_candidate_goes_on_while_one_target_has_hope_for_it():
    """Two targets whose best candidates differ: both go on to where their target is settled."""
    rng = np.random.default_rng(3)
    good = np.linspace(0, 1, 8)
    rows = {}
    for target, losses in (("one", good), ("other", good[::-1])):
        rows[target] = (
            3.0 - 0.5 * X[:, None] + 0.3 * losses[:, None, None] * X[:, None] + rng.normal(0, 0.05, (8, 1, 40))
        )
    calls = []
    found = replay(rows, dict.fromkeys(rows, np.zeros(8)), calls=calls)
    assert found.reached[0] > 1 and found.reached[7] > 1, "each target's best"
    assert min(found.reached) < max(found.reached), "what is hopeless for both stops"
    assert found.standings["one"].middle.argmin() == 0 and found.standings["other"].middle.argmin() == 7
    assert [rung for _, rung in calls] == list(range(len(calls))), "a rung is a barrier"


def test_nobody_stops_at_the_first_rung_but_what_diverged():
    rows = 3.0 - 0.5 * X[None, :, None] + np.arange(6)[:, None, None] * X[None, :, None] + np.zeros((6, 5, 40))
    rows = rows + np.random.default_rng(9).normal(0, 0.01, (6, 1, 40))
    rows[5] = np.nan
    calls = []
    replay({"target": rows}, {"target": np.zeros(6)}, calls=calls)
    assert calls[1] == ([0, 1, 2, 3, 4], 1), "hopeless ones as well"


def test_what_does_not_belong_to_a_target_is_no_candidate_of_it():
    truth, rows, prior = simulated(np.random.default_rng(4), k=6)
    prior[int(truth.argmin())] = np.nan
    standing = replay({"target": rows}, {"target": prior}).standings["target"]
    assert np.isnan(standing.middle[int(truth.argmin())]) and standing.p_best[int(truth.argmin())] == 0
    assert standing.p_best.sum() == pytest.approx(1)


def test_equal_candidates_are_within_delta_of_each_other():
    rng = np.random.default_rng(5)
    rows = 3.0 - X[None, :, None] + rng.normal(0, 1, (1, 1, 200)) + rng.normal(0, 1e-3, (6, 5, 200))
    standing = replay({"target": rows}, {"target": np.arange(6.0)}).standings["target"]
    assert standing.p_within.min() >= 0.9 and standing.regret.max() < 0.005


@pytest.mark.parametrize("bad", [np.nan, np.inf, 40.0])
@pytest.mark.parametrize("at", [0, 1])
def test_a_training_that_diverges_takes_no_further_part_and_spoils_nothing(bad, at):
    truth, rows, prior = simulated(np.random.default_rng(6), row_sd=0.05)
    best = int(truth.argmin())
    other = int(truth.argsort()[1])
    rows[best, at:] = bad
    found = replay({"target": rows}, {"target": prior})
    standing = found.standings["target"]
    assert found.diverged == [best] and found.reached[best] == at + 1
    assert np.isnan(standing.middle[best]) and standing.p_within[best] == 0
    assert standing.p_within.argmax() == other and standing.apart[other] < 0.1
    rows[:] = np.nan
    with pytest.raises(ConfigError, match="all trainings but one diverged; lower finetune.learning_rate"):
        replay({"target": rows}, {"target": prior})


@pytest.mark.parametrize("k", [2, 3])
def test_few_candidates_have_finite_errors_and_the_settled_one_is_first(k):
    rng = np.random.default_rng(7)
    for _ in range(10):
        truth, rows, prior = simulated(rng, k=k, row_sd=0.1)
        standing = replay({"target": rows}, {"target": prior}).standings["target"]
        assert standing.error.max() < 3 and standing.apart.max() < 1 and standing.regret.max() < 1
        if standing.settled:
            assert truth[standing.p_within.argmax()] < truth.min() + 0.05


def test_of_very_many_candidates_some_always_go_on():
    truth, rows, prior = simulated(np.random.default_rng(8), k=120, spread=0.02, row_sd=0.5)
    found = replay({"target": rows}, {"target": prior})
    assert max(found.reached) == 5 or found.standings["target"].settled


def test_steps_in_the_warm_up_count_less():
    assert effective_steps(2, 22) == pytest.approx(1.0) and effective_steps(22, 22) == pytest.approx(21.0)
    assert effective_steps(1000, 1000) == pytest.approx(1000 - 10)

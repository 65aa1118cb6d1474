"""What trainings made of a task, over seeds and items."""

from types import SimpleNamespace

import numpy as np
import pytest

from align_ray.training.jobs import Answers
from align_ray.training.tasks import task_scores


def asked(chance=0.5, measure="margin", unit="nats per byte", metric="accuracy"):
    return SimpleNamespace(chance=chance, measure=measure, unit=unit, metric=metric)


def test_scores_are_means_over_seeds_and_items_and_an_accuracy_stays_a_share():
    before = np.array([-1.0, -0.5, 0.5, -0.2])
    after = [np.array([0.3, 0.1, 0.9, -0.2]), np.array([-0.3, -0.1, 0.4, -0.4])]
    trained = [SimpleNamespace(tasks={"t": Answers(before, of_seed, before > 0, of_seed > 0)}) for of_seed in after]
    (found,) = task_scores(trained, {"t": asked()}).values()
    assert found["items"] == 4 and found["chance"] == 0.5
    assert found["accuracy_before"] == 0.25 and found["accuracy"]["value"] == 0.5
    assert found["accuracy_change"]["value"] == pytest.approx(0.25)
    assert found["accuracy"]["low"] == 0.0 and found["accuracy"]["high"] == 1.0, "two seeds that differ"
    assert found["score"]["value"] == pytest.approx(np.mean(after)) and found["score_before"] == before.mean()
    assert found["score_change"]["value"] == pytest.approx(np.mean(after) - before.mean())
    assert found["score"]["low"] < found["score"]["value"] < found["score"]["high"]


def test_of_a_single_training_the_interval_is_over_items():
    after = np.array([0.3, 0.1, 0.9, -0.2])
    trained = [SimpleNamespace(tasks={"t": Answers(after - 1, after, after > 1, after > 0)})]
    (found,) = task_scores(trained, {"t": asked()}).values()
    error = after.std(ddof=1) / 2
    assert found["score"]["error"] == pytest.approx(error)
    assert found["score"]["high"] == pytest.approx(after.mean() + 3.1824 * error, rel=1e-4), "t, three degrees"
    assert found["accuracy"]["value"] == 0.75 and found["score_change"]["value"] == pytest.approx(1.0)


def test_none_answered_is_no_certainty():
    nothing = np.zeros(64, dtype=bool)
    trained = [SimpleNamespace(tasks={"t": Answers(-np.ones(64), -np.ones(64), nothing, nothing)})] * 3
    (found,) = task_scores(trained, {"t": asked(chance=0.0, measure="log-likelihood")}).values()
    assert found["accuracy"]["value"] == found["accuracy"]["low"] == 0.0 and found["measure"] == "log-likelihood"
    assert found["accuracy"]["high"] == pytest.approx(1 - 0.025 ** (1 / 64)), "Clopper and Pearson, 64 items"
    change = found["accuracy_change"]
    assert change["value"] == 0.0 and change["high"] == -change["low"] == found["accuracy"]["high"]


def test_a_share_that_is_itself_the_score_has_a_shares_interval():
    nothing = np.zeros(64)
    trained = [SimpleNamespace(tasks={"t": Answers(nothing, nothing, nothing, nothing, "")})] * 3
    (found,) = task_scores(trained, {"t": asked(0.0, "exact_match", "", "exact_match")}).values()
    assert found["score"] == found["accuracy"] and found["score"]["high"] == pytest.approx(1 - 0.025 ** (1 / 64))


def test_a_metric_of_all_items_has_its_own_error_and_that_of_the_seeds():
    from align_ray.config_corpora import LmEval
    from align_ray.corpora.harness import HarnessTask
    from align_ray.training.jobs import Whole

    task = LmEval(kind="lm_eval", name="x.yaml")
    of = HarnessTask("t", task, "x", "{}", "chrf", "none", "chrf", "", True, False, 41, None, 0, "")
    runs = [SimpleNamespace(tasks={}, wholes={"t": Whole(10.0, after, 3.0, 4.0)}) for after in (20.0, 22.0, 24.0)]
    (found,) = task_scores(runs, {"t": of}).values()
    assert (found["score_before"], found["score"]["value"], found["score_change"]["value"]) == (10.0, 22.0, 12.0)
    assert found["score"]["error"] == pytest.approx((16 + 4 / 3) ** 0.5), "4 of the items, and 2 over three seeds"
    assert found["score_change"]["error"] == pytest.approx((16 + 9 + 4 / 3) ** 0.5)
    freedom = (16 + 4 / 3) ** 2 / (16**2 / 40 + (4 / 3) ** 2 / 2)
    from scipy import stats

    reach = stats.t.ppf(0.975, freedom) * found["score"]["error"]
    assert found["score"]["high"] == pytest.approx(22 + reach)
    (unknown,) = task_scores(
        [SimpleNamespace(tasks={}, wholes={"t": Whole(1.0, 2.0, np.nan, np.nan)})], {"t": of}
    ).values()
    assert np.isnan(unknown["score"]["error"]) and unknown["score"]["value"] == 2.0

"""What trainings made of a task, over seeds and items."""

from types import SimpleNamespace

import numpy as np
import pytest

from align_ray.training.jobs import Answers
from align_ray.training.tasks import task_scores


def test_scores_are_means_over_seeds_and_items_and_an_accuracy_stays_a_share():
    before = np.array([-1.0, -0.5, 0.5, -0.2])
    after = [np.array([0.3, 0.1, 0.9, -0.2]), np.array([-0.3, -0.1, 0.4, -0.4])]
    trained = [SimpleNamespace(tasks={"t": Answers(before, of_seed, before > 0, of_seed > 0)}) for of_seed in after]
    (found,) = task_scores(trained, {"t": SimpleNamespace(chance=0.5, measure="margin")}).values()
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
    (found,) = task_scores(trained, {"t": SimpleNamespace(chance=0.5, measure="margin")}).values()
    error = after.std(ddof=1) / 2
    assert found["score"]["error"] == pytest.approx(error)
    assert found["score"]["high"] == pytest.approx(after.mean() + 3.1824 * error, rel=1e-4), "t, three degrees"
    assert found["accuracy"]["value"] == 0.75 and found["score_change"]["value"] == pytest.approx(1.0)


def test_none_answered_is_no_certainty():
    nothing = np.zeros(64, dtype=bool)
    trained = [SimpleNamespace(tasks={"t": Answers(-np.ones(64), -np.ones(64), nothing, nothing)})] * 3
    (found,) = task_scores(trained, {"t": SimpleNamespace(chance=0.0, measure="log-likelihood")}).values()
    assert found["accuracy"]["value"] == found["accuracy"]["low"] == 0.0 and found["measure"] == "log-likelihood"
    assert found["accuracy"]["high"] == pytest.approx(1 - 0.025 ** (1 / 64)), "Clopper and Pearson, 64 items"
    change = found["accuracy_change"]
    assert change["value"] == 0.0 and change["high"] == -change["low"] == found["accuracy"]["high"]

"""The plain settings of `fisher` are those of the configuration: the same fields, defaults and values."""

import dataclasses

import pytest

from align_ray import config
from align_ray.fisher import settings

OTHER = {
    "estimator": "head", "draws": 3, "pooling": "unit", "head_tuning": "shared", "filters": 2048,
    "quirks": {
        "dropout": False, "head_epochs": 10, "shifted_labels": False, "mini_batch": 1, "pads_counted": False, "axis_0": False,
        "vocabulary": False, "absolute_epsilon": False, "seed_by_batch": True,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "plain", "left_out"),
    [
        (config.Embedding, settings.Estimator, {"dtype"}),
        (config.Quirks, settings.Quirks, set()),
        (config.Probe, settings.ProbeName, set()),
    ],
)
def test_the_fields_are_the_same(model, plain, left_out):
    assert set(model.model_fields) - left_out == {f.name for f in dataclasses.fields(plain)}


def test_the_defaults_are_the_same():
    assert config.Embedding().plain() == settings.Estimator()
    assert config.Probe().plain() == settings.ProbeName()


def test_the_epsilon_is_absolute_for_the_published_procedure_alone():
    published, none = settings.Quirks(), settings.Quirks(absolute_epsilon=False)
    assert settings.Estimator("reference", quirks=published).epsilon == 1e-8
    assert settings.Estimator("reference", quirks=none).epsilon is None
    assert settings.Estimator("exact", quirks=published).epsilon is None and settings.Estimator("head").epsilon is None


def test_batches_have_seeds_of_their_own_where_that_is_asked_for():
    by_batch = settings.Quirks(seed_by_batch=True)
    assert [settings.Estimator("reference", quirks=by_batch).seed_of(7, i) for i in range(3)] == [7, 8, 9]
    assert settings.Estimator("reference").seed_of(7, 2) == settings.Estimator(quirks=by_batch).seed_of(7, 2) == 7


def test_every_value_is_passed_on():
    assert dataclasses.asdict(config.Embedding(**OTHER, dtype="float32").plain()) == OTHER
    assert dataclasses.asdict(settings.Estimator(**{**OTHER, "quirks": settings.Quirks(**OTHER["quirks"])})) == OTHER
    probe = {"model": "owner/model", "revision": "v1", "trust_remote_code": True}
    assert dataclasses.asdict(config.Probe(**probe).plain()) == probe

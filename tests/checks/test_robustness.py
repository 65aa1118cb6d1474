"""Rank agreement: known values, the variants that are made, and rows that are split by layer."""

import numpy as np
import pytest

from align_ray.checks.robustness import (
    _agreement,
    _layers,
    _matrices,
    _row_sets,
    _scores,
    _variants,
    kendall_w,
    robustness,
)
from align_ray.config_file import load_config
from align_ray.context import Study
from align_ray.embedding.evidence import Evidence
from align_ray.errors import ConfigError
from align_ray.fisher.probe import locate_probe
from align_ray.fisher.unit import Unit
from align_ray.store import Store


def test_kendalls_w_is_one_for_equal_rankings_and_that_of_the_textbook_otherwise():
    assert kendall_w(np.array([[1.0, 2, 3, 4], [10, 20, 30, 40], [0, 1, 8, 9]])) == pytest.approx(1)
    assert kendall_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == pytest.approx(0)
    # three raters, four items: rank sums 4, 6, 8, 12, mean 7.5, S = 35, W = 12 * 35 / (9 * 60)
    assert kendall_w(np.array([[1.0, 2, 3, 4], [1, 3, 2, 4], [2, 1, 3, 4]])) == pytest.approx(12 * 35 / 540)
    chance = [kendall_w(np.random.default_rng(s).normal(size=(5, 9))) for s in range(300)]
    assert np.mean(chance) == pytest.approx(1 / 5, abs=0.02)


def test_every_variant_changes_one_choice_and_keeps_the_number_of_sequences():
    config = load_config()
    found = _variants(study_of(config), ["other/model"], reference=True)
    assert {axis for axis, _, _ in found} == {"seed", "batch size", "sequence length", "probe", "estimator"}
    for axis, _, variant in found:
        changed = {n for n in type(config).model_fields if getattr(variant, n) != getattr(config, n)}
        assert len(changed) == 1
        if axis == "batch size":
            assert (
                variant.sampling.batch_size * variant.sampling.batches
                == config.sampling.batch_size * config.sampling.batches
            )
        type(config).model_validate(variant.model_dump())


def study_of(config):
    return Study(config, Store(config.output), locate_probe(config.probe.plain()))


def unit(trunk, head):
    return Unit(
        {"trunk": trunk[None].astype(np.float32), "head": head[None].astype(np.float32)}, {}, 2.0, 8, (), 8, 0.0
    )


def test_rows_of_layers_are_told_apart():
    config = load_config()
    layers = _layers(study_of(config))
    assert set(layers) == {"all layers", "early layers", "middle layers", "late layers"}
    parts = np.stack([layers[k] for k in ("early layers", "middle layers", "late layers")])
    assert (parts.sum(0) == 1).all() and layers["all layers"].all()
    assert len(layers["all layers"]) == 4 * (768 + 256 + 1024 + 256), "four layers of width 256, output rows"


def test_agreement_over_rows_finds_the_block_that_ranks_otherwise():
    config = load_config()
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(size=(2, 60)))
    order = np.arange(len(config.candidates))
    embeddings = {t.name: [unit(base[0], base[1])] * 2 for t in config.targets}
    for c, k in zip(config.candidates, order, strict=True):
        noise = [np.exp(0.1 * (1 + level) * rng.normal(size=60)) for level in (k, len(order) - k)]
        embeddings[c.name] = [unit(base[0] * noise[0], base[1] * noise[1])] * 2
    evidence = Evidence({}, embeddings, {}, {}, "key", "float32")
    scores = {label: _scores(config, _matrices(evidence, blocks)) for label, blocks in _row_sets(evidence).items()}
    assert set(scores) == {"trunk", "head", "trunk and head"}
    found = _agreement({label: scores[label] for label in ("trunk", "head")})
    assert found["least"] < -0.9 and next(iter(found["w"].values())) < 0.1
    assert _agreement({"a": scores["trunk"], "b": scores["trunk"]})["least"] == pytest.approx(1)


def test_two_candidates_cannot_be_ranked_for_agreement():
    config = load_config()
    with pytest.raises(ConfigError, match="at least 3"):
        robustness(study_of(config.model_copy(update={"candidates": config.candidates[:2]})), [], False)

"""Pooling: the mean of sequences, and the mean of sequences of equal weight, which limits what one of them can do; and
what is stored of a batch where not all filters are kept."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from align_ray.fisher.estimators import embed_batch, kept_filters, pooled_rows, stored_numbers
from align_ray.fisher.settings import Estimator
from tests.tiny import tiny_model

MEAN, UNIT = Estimator(pooling="mean"), Estimator(pooling="unit")

ROWS = torch.rand(2, 20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1


def test_the_mean_leaves_sequences_as_they_are():
    assert pooled_rows(ROWS, MEAN) is ROWS


def test_unit_gives_every_sequence_the_same_weight_and_is_additive():
    pooled = pooled_rows(ROWS * torch.rand(2, 20, 1), UNIT)
    torch.testing.assert_close(pooled.sum(-1), torch.ones(2, 20, dtype=torch.float64))
    torch.testing.assert_close(pooled, pooled_rows(ROWS, UNIT))
    parts = [pooled_rows(ROWS[:, part], UNIT).mean(1) for part in (slice(10), slice(10, 20))]
    torch.testing.assert_close(sum(parts) / 2, pooled.mean(1))


def test_an_outlier_moves_the_mean_far_more():
    outlier = ROWS.clone()
    outlier[:, 7] *= 1e6
    moved = [(pooled_rows(rows, UNIT).mean(1)) for rows in (ROWS, outlier)]
    assert (moved[1] / moved[0]).max() < 1.5 and outlier.mean(1).max() > 1e4


IDS = np.random.default_rng(0).integers(0, 29, (4, 12))


@pytest.mark.parametrize("pooling", ["mean", "unit"])
def test_filters_that_are_kept_hold_what_they_held_among_all(pooling):
    whole, _ = embed_batch(tiny_model("llama"), IDS, Estimator(pooling=pooling), 0, 0)
    some, _ = embed_batch(tiny_model("llama"), IDS, Estimator(pooling=pooling, filters=20), 0, 0)
    for block, values in whole.blocks.items():
        at = kept_filters(values.shape[1], 20)
        assert len(set(at)) == 20 and (np.diff(at) > 0).all()
        np.testing.assert_array_equal(some.blocks[block], values[:, at])
        np.testing.assert_array_equal(some.variances[block], whole.variances[block][at])
    assert some.loss == whole.loss


def test_the_choice_of_filters_depends_on_their_number_alone_and_few_filters_are_all_kept():
    assert kept_filters(100, None) is kept_filters(20, 20) is kept_filters(20, 21) is None
    assert (kept_filters(1000, 50) == kept_filters(1000, 50)).all()
    assert 300 < kept_filters(1000, 200).mean() < 700


@pytest.mark.parametrize(
    "settings",
    [Estimator(), Estimator(draws=3, filters=20), Estimator("head"), Estimator("reference", draws=1)],
    ids=lambda s: f"{s.estimator}-{s.filters}",
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_numbers_of_a_unit_are_those_that_were_announced(family, settings):
    unit, _ = embed_batch(tiny_model(family, dtype=torch.float32), IDS, settings, 0, 0)
    with torch.device("meta"):
        entries, numbers = stored_numbers(tiny_model(family, dtype=torch.float32), settings)
    held = [*unit.blocks.values(), *unit.variances.values()]
    assert sum(values.size for values in held) == numbers
    if settings.filters is None:
        assert sum(values.shape[1] for values in unit.blocks.values()) == entries


@pytest.mark.parametrize(
    ("config", "entries", "megabytes"), [(GPT2Config(), 133_201, 1.4), (LlamaConfig(), 1_391_872, 16.6)]
)
def test_the_sizes_in_the_documentation_are_those_of_these_models(config, entries, megabytes):
    """docs/probes.md: GPT-2 small and Llama-2-7B, whose configurations are transformers' defaults."""
    with torch.device("meta"):
        found, numbers = stored_numbers(AutoModelForCausalLM.from_config(config), Estimator())
    assert found == entries and 4e-6 * numbers == pytest.approx(megabytes, abs=0.05)

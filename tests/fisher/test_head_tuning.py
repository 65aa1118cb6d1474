"""Head tuning: the tuned head is that of plain training with a frozen trunk, and the probe keeps its own."""

import numpy as np
import pytest
import torch

from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.head_tuning import EPOCHS, ROWS, tuned_head, with_head
from align_ray.fisher.settings import Estimator
from align_ray.fisher.trunk import fisher_embeddings
from tests.tiny import tiny_model


@pytest.fixture
def ids():
    rows = np.random.default_rng(0).integers(0, 29, (12, 10))
    rows[3, 6:] = -1
    return rows


def test_the_tuned_head_is_that_of_training_the_untied_model_with_a_frozen_trunk(ids):
    model = tiny_model("llama", tied=False, dtype=torch.float32)
    found = tuned_head(model, ids)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.lm_head.parameters(), lr=5e-5, eps=1e-8, weight_decay=1e-4)
    for _ in range(EPOCHS):
        for rows in torch.tensor(ids).split(ROWS):
            optimiser.zero_grad()
            labels = rows.masked_fill(rows < 0, -100)
            model(input_ids=rows.clamp(min=0), attention_mask=(rows >= 0).long(), labels=labels).loss.backward()
            optimiser.step()
    torch.testing.assert_close(found, model.lm_head.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_probe_keeps_its_own_head_and_shares_its_trunk(family, ids):
    model = tiny_model(family, dtype=torch.float32)
    before = model.get_output_embeddings().weight.clone()
    tuned = with_head(model, tuned_head(model, ids))
    assert tuned.base_model is model.base_model
    assert model.get_output_embeddings() is not tuned.get_output_embeddings()
    assert torch.equal(model.get_output_embeddings().weight, before)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert fisher_embeddings(tuned, ids, 1, 0).loss.mean() < fisher_embeddings(model, ids, 1, 0).loss.mean()


def test_a_unit_carries_the_variance_over_its_sequences(ids):
    model = tiny_model("gpt2", dtype=torch.float32)
    unit, _ = embed_batch(model, ids, Estimator(draws=3), 0, pad=0)
    result = fisher_embeddings(model, ids, 3, 0)
    np.testing.assert_allclose(unit.variances["trunk"], result.trunk.mean(0).var(0), rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(unit.blocks["trunk"], result.trunk.mean(1), rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(unit.variances["head"], result.head.var(0), rtol=1e-3, atol=1e-12)

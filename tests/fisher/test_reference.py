"""The published procedure: its parts by plain autograd, and what each quirk changes."""

import dataclasses
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from align_ray.errors import ProbeError
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.reference import reference_blocks, reference_embedding
from align_ray.fisher.settings import Estimator, Quirks
from align_ray.fisher.trunk import trunk_modules
from tests.tiny import tiny_model

PAD = 28
NONE = Quirks(
    dropout=False, head_epochs=0, shifted_labels=False, mini_batch=1, pads_counted=False, axis_0=False, vocabulary=False
)


@pytest.fixture
def rows():
    ids = torch.randint(0, PAD, (16, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[3:, 9:], mask[3:, 9:] = PAD, 0
    return ids, mask


def test_the_entries_are_those_of_the_published_embedding(rows):
    model = tiny_model("gpt2", dtype=torch.float32)
    width, layers = 16, 2
    embedding = reference_embedding(model, *rows, PAD, 0)
    per_layer = 4 * width + width + 4 * width  # ln_1, c_attn, c_proj, ln_2 and c_fc by their inputs; then mlp.c_proj
    assert len(embedding) == 29 + 64 + layers * per_layer + width
    assert torch.isfinite(embedding).all() and (embedding >= 0).all()


def test_the_same_seed_gives_the_same_embedding_and_leaves_the_model_as_it_was(rows):
    model = tiny_model("gpt2", dtype=torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, again = (reference_embedding(model, *rows, PAD, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, reference_embedding(model, *rows, PAD, 4))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and not model.training


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_the_random_states_of_the_caller_are_left_as_they_were(rows, fails):
    model = tiny_model("gpt2", dtype=torch.float32)
    if fails:
        model.transformer.ln_f.weight.data[0] = float("nan")
    before = random_states()
    with pytest.raises(ProbeError) if fails else nullcontext():
        reference_embedding(model, *rows, PAD, 3)
    assert random_states() == before


@pytest.mark.parametrize(
    "settings",
    [Estimator(), Estimator("head"), Estimator(head_tuning="per_batch"), Estimator("reference", draws=1)],
    ids=["exact", "head", "per batch", "reference"],
)
def test_the_callers_model_keeps_what_learns_in_it(rows, settings):
    model = tiny_model("gpt2", dtype=torch.float32)
    model.transformer.wpe.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    embed_batch(model, rows[0].numpy(), settings, 0, PAD)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before and len(set(before.values())) == 2
    assert all(p.grad is None for p in model.parameters()) and not any(m.training for m in model.modules())


@pytest.mark.parametrize(
    "change",
    [{"dropout": False}, {"head_epochs": 0}, {"shifted_labels": False}, {"mini_batch": 4}, {"pads_counted": False}],
    ids=lambda c: next(iter(c)),
)
def test_every_quirk_can_be_turned_off_alone(rows, change):
    model = tiny_model("gpt2", dtype=torch.float32)
    quirks = Quirks(**change)
    assert not torch.allclose(
        reference_embedding(model, *rows, PAD, 0), reference_embedding(model, *rows, PAD, 0, quirks), rtol=1e-3
    )


def test_without_its_quirks_it_estimates_the_same_fisher_information_as_the_exact_estimator(rows):
    from align_ray.fisher.trunk import fisher_embeddings

    model = tiny_model("gpt2", dtype=torch.float64)
    ids = rows[0][:3]
    seeds = 400
    reference = torch.stack([reference_embedding(model, ids, torch.ones_like(ids), PAD, s, NONE) for s in range(seeds)])
    # mean, not sum, loss
    exact = fisher_embeddings(model, ids.numpy(), draws=seeds, seed=0).trunk.mean(1) / ids.shape[1] ** 2
    error = (reference.var(0) / seeds + exact.var(0) / seeds).sqrt()
    z = (reference.mean(0) - exact.mean(0)) / error
    assert z.abs().mean() < 1.1 and z.abs().max() < 6


def test_rows_along_axis_0_are_inputs_of_a_conv1d(rows):
    model = tiny_model("gpt2", dtype=torch.float64)
    inputs = reference_embedding(model, *rows, PAD, 0, dataclasses.replace(NONE, axis_0=True))
    outputs = reference_embedding(model, *rows, PAD, 0, NONE)
    shapes = [m.weight.shape for m in trunk_modules(model).values()]
    assert len(inputs) == sum(s[0] for s in shapes) and len(outputs) == sum(s[1] for s in shapes)
    by_input = torch.stack([p.sum() for p in (inputs * 1).split([s[0] for s in shapes])]) / torch.tensor(
        [s[0] for s in shapes]
    )
    by_output = torch.stack([p.sum() for p in outputs.split([s[1] for s in shapes])]) / torch.tensor(
        [s[1] for s in shapes]
    )
    torch.testing.assert_close(by_input, by_output)  # both are the mean of the module's squared gradient


def test_the_vocabulary_rows_are_a_block_of_their_own(rows):
    model = tiny_model("gpt2", dtype=torch.float32)
    embedding = reference_embedding(model, *rows, PAD, 0)
    blocks = reference_blocks(model, embedding)
    assert torch.equal(blocks["vocabulary"], embedding[:29]) and torch.equal(blocks["trunk"], embedding[29:])
    assert list(reference_blocks(model, reference_embedding(model, *rows, PAD, 0, NONE), NONE)) == ["trunk"]

"""The predicted change of loss is the change of loss, and sketches keep inner products."""

import copy

import numpy as np
import pytest
import torch

from align_ray.alignment.gradients import MINI_BATCH, corpus_sketches, predicted_change, sketch
from tests.tiny import tiny_model

BOTH = ("trunk", "vocabulary")


def test_inner_products_of_sketches_are_unbiased_and_close():
    torch.manual_seed(0)
    a = torch.randn(20_000)
    b = 0.3 * a + torch.randn(20_000)
    found = [float(sketch(a, s, 4096) @ sketch(b, s, 4096)) for s in range(40)]
    error = float(a.norm() * b.norm()) / np.sqrt(4096)
    assert np.mean(found) == pytest.approx(float(a @ b), abs=4 * error / np.sqrt(40))
    assert np.std(found) < 2 * error


def test_a_sketch_is_a_function_of_seed_and_entry_and_linear():
    a, b = torch.randn(1000), torch.randn(1000)
    assert torch.equal(sketch(a, 3, 64), sketch(a, 3, 64))
    assert not torch.equal(sketch(a, 3, 64), sketch(a, 4, 64))
    assert torch.allclose(sketch(a + 2 * b, 1, 64), sketch(a, 1, 64) + 2 * sketch(b, 1, 64), atol=1e-5)


@pytest.fixture(scope="module")
def corpora():
    rng = np.random.default_rng(0)
    return [rng.choice(29, (4 * MINI_BATCH, 16), p=rng.dirichlet(np.full(29, 0.3))) for _ in range(2)]


def loss_of(model, ids):
    rows = torch.as_tensor(ids)
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), rows[:, 1:].flatten()).item()


def test_the_gain_is_the_change_of_loss_that_a_small_step_of_adam_makes(corpora, monkeypatch):
    monkeypatch.setattr("align_ray.alignment.gradients.has_bfloat16", lambda device: False)
    model = tiny_model("gpt2", dtype=torch.float32)
    parts = [corpus_sketches(copy.deepcopy(model), ids, 2**21) for ids in corpora]
    for source in (0, 1):
        moved = copy.deepcopy(model)
        chunks = torch.as_tensor(corpora[source]).split(MINI_BATCH)
        grads = []
        for chunk in chunks:
            moved.zero_grad()
            logits = moved(input_ids=chunk).logits[:, :-1]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten()).backward()
            grads.append([p.grad.clone() for p in moved.parameters()])
        step = 1e-4
        with torch.no_grad():
            for i, p in enumerate(moved.parameters()):
                g = torch.stack([one[i] for one in grads])
                p -= step * g.mean(0) / (g.pow(2).mean(0).sqrt() + 1e-12)
        for target in (0, 1):
            gain, damage = predicted_change(parts[source], parts[target], BOTH)
            found = loss_of(moved, corpora[target]) - loss_of(model, corpora[target])
            assert damage > 0
            assert found == pytest.approx(-step * gain, rel=0.15, abs=2e-5)


def test_a_step_on_a_corpus_helps_that_corpus_most(corpora):
    model = tiny_model("llama", tied=False, dtype=torch.float32)
    parts = [corpus_sketches(copy.deepcopy(model), ids, 2**15) for ids in corpora]
    gains = np.array([[predicted_change(s, t, BOTH)[0] for t in parts] for s in parts])
    assert gains[0, 0] > gains[1, 0] and gains[1, 1] > gains[0, 1] and (np.diag(gains) > 0).all()


def test_blocks_add_up_to_the_whole(corpora):
    model = tiny_model("gpt2", dtype=torch.float32)
    a, b = (corpus_sketches(copy.deepcopy(model), ids, 2**12) for ids in corpora)
    whole, trunk, vocabulary = (predicted_change(a, b, blocks) for blocks in (BOTH, BOTH[:1], BOTH[1:]))
    assert np.array(whole) == pytest.approx(np.array(trunk) + np.array(vocabulary))


def test_padding_changes_nothing(corpora, monkeypatch):
    monkeypatch.setattr("align_ray.alignment.gradients.has_bfloat16", lambda device: False)
    model = tiny_model("gpt2", dtype=torch.float32)
    padded = np.concatenate([corpora[0], np.full_like(corpora[0][:, :4], -1)], axis=1)
    a, b = (corpus_sketches(copy.deepcopy(model), ids, 2**12) for ids in (corpora[0], padded))
    for block in BOTH:
        # entries whose gradients are rounding noise have a direction of noise
        assert np.isclose(a.update[block], b.update[block], atol=1e-2).mean() > 0.98
        assert np.allclose(a.gradient[block], b.gradient[block], atol=1e-5)

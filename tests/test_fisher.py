"""The Fisher embedding is what autograd gives, its labels are fair, and grouping does not matter."""

import itertools

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from align_ray import fisher
from tests.tiny import tiny_model


def sequences(n, length, vocabulary=29, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (n, length))


def log_probabilities(model, row):
    return model(torch.tensor(row)[None]).logits[0].log_softmax(-1)


def autograd_rows(model, row, labels):
    """Mean squared gradient of every output row of every trunk weight for one sequence and its labels: the definition."""
    modules = list(fisher.trunk_modules(model).values())
    weights = [m.weight.requires_grad_() for m in modules]
    loss = -log_probabilities(model, row)[torch.arange(len(row)), torch.tensor(labels)].sum()
    gradients = torch.autograd.grad(loss, weights)
    squares = [g.pow(2).mean(0 if isinstance(m, Conv1D) else 1) for m, g in zip(modules, gradients, strict=True)]
    return torch.cat(squares).numpy()


def drawn_labels(model, row, uniforms):
    """The label at each position: how many of the cumulative probabilities its uniform number exceeds."""
    cumulative = log_probabilities(model, row).detach().exp().cumsum(-1).numpy()
    return (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(-1)


@pytest.mark.parametrize("length", [4, 40], ids=["gram", "weight-gradient"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "neox"])
def test_trunk_rows_equal_the_squared_gradients_of_autograd(family, tied, length):
    model, ids = tiny_model(family, tied=tied), sequences(2, length)
    found = fisher.fisher_embeddings(model, ids, draws=2, seed=3).trunk.numpy()
    uniforms = fisher.label_uniforms(ids, 2, 3)
    for r, s in itertools.product(range(2), range(2)):
        expected = autograd_rows(model, ids[s], drawn_labels(model, ids[s], uniforms[r, s]))
        np.testing.assert_allclose(found[r, s], expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_both_ways_of_the_row_squares_agree_with_the_definition():
    x, g = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 6, 16, dtype=torch.float64)
    for t in (6, 5):  # 6 * (8 + 16) > 8 * 16 forms the gradient, 5 * (8 + 16) does not
        expected = torch.einsum("nto,nti->noi", g[:, :t], x[:, :t]).pow(2).mean(-1)
        torch.testing.assert_close(fisher._row_squares(x[:, :t], g[:, :t]), expected, rtol=1e-12, atol=0)


def every_labelling(model, row, vocabulary):
    """All label sequences with their probabilities."""
    log_p = log_probabilities(model, row).detach().numpy()
    for labels in itertools.product(range(vocabulary), repeat=len(row)):
        yield labels, np.exp(log_p[np.arange(len(row)), labels].sum())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_mean_over_label_draws_is_the_filter_wise_fisher_information(family):
    model, ids, draws = tiny_model(family, vocabulary=7), sequences(1, 3, 7), 1000
    exact = sum(p * autograd_rows(model, ids[0], labels) for labels, p in every_labelling(model, ids[0], 7))
    rows = fisher.fisher_embeddings(model, ids, draws, seed=1).trunk[:, 0].numpy()
    z = (rows.mean(0) - exact) / (rows.std(0) / np.sqrt(draws))
    assert abs(z).max() < 4
    assert rows.mean(0).sum() == pytest.approx(exact.sum(), rel=0.1)


def test_head_rows_are_the_exact_expectation_over_labels():
    model, ids = tiny_model("gpt2", vocabulary=5, tied=False), sequences(1, 3, 5)
    exact = 0
    for labels, p in every_labelling(model, ids[0], 5):
        loss = -log_probabilities(model, ids[0])[torch.arange(3), torch.tensor(labels)].sum()
        (gradient,) = torch.autograd.grad(loss, model.lm_head.weight.requires_grad_())
        exact += p * gradient.pow(2).mean(1)
    found = fisher.fisher_embeddings(model, ids, draws=2, seed=0).head[0]
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)


def test_the_loss_is_that_of_the_true_next_tokens():
    model, ids = tiny_model("llama"), sequences(3, 12)
    tokens = torch.tensor(ids)
    expected = [model(row[None], labels=row[None]).loss.item() for row in tokens]
    np.testing.assert_allclose(fisher.fisher_embeddings(model, ids, 2, 0).loss, expected, rtol=1e-6)


def test_labels_depend_on_the_seed_and_the_sequence_alone():
    ids = sequences(3, 10)
    together = fisher.label_uniforms(ids, 2, seed=5)
    np.testing.assert_array_equal(together[:, 2:], fisher.label_uniforms(ids[2:], 2, seed=5))
    np.testing.assert_array_equal(together, fisher.label_uniforms(ids.astype(np.int64), 4, seed=5)[:2])
    assert not np.intersect1d(together, fisher.label_uniforms(ids, 2, seed=6)).size
    assert len(np.unique(together)) == together.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_without_probability_is_never_drawn(dtype):
    p = torch.tensor([[[0, 0.25, 0, 0.75, 0]]], dtype=dtype)
    u = np.array([0, 0.2, 0.25, 0.9, 1 - 2**-53])[:, None, None]  # the last is 1 in float32
    assert fisher._draw_labels(p, u).ravel().tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_embeddings_do_not_depend_on_how_sequences_are_grouped(monkeypatch, dtype, tolerance):
    model, ids = tiny_model("gpt2", dtype=dtype), sequences(7, 16)
    parts = []
    for elements in (2**22, 3 * 29 * 16, 1):
        monkeypatch.setattr(fisher, "CHUNK_ELEMENTS", elements)
        parts.append(fisher.fisher_embeddings(model, ids, 2, 0))
    assert fisher.micro_batch(29, 16) == 1
    for other in parts[1:]:
        for field in ("trunk", "head", "loss"):
            a, b = getattr(parts[0], field), getattr(other, field)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.max())


def test_the_trunk_holds_every_linear_module_but_the_head():
    names = list(fisher.trunk_modules(tiny_model("gpt2")))
    assert names == [f"h.{i}.{n}" for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert len(fisher.trunk_modules(tiny_model("llama"))) == 2 * 7


def test_a_probe_with_broken_weights_is_refused():
    model = tiny_model("gpt2")
    model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="non-finite Fisher embedding"):
        fisher.fisher_embeddings(model, sequences(1, 8), 2, 0)

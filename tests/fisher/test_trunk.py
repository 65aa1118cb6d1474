"""The Fisher embedding is what autograd gives, its labels are fair, and grouping does not matter."""

import itertools

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.errors import ProbeError
from align_ray.fisher import trunk as fisher
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.head import draw_labels
from align_ray.fisher.settings import Estimator
from align_ray.fisher.suited import check_probe
from align_ray.fisher.tokens import as_context
from tests.tiny import tiny_model


def sequences(n, length, vocabulary=29, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (n, length))


def log_probabilities(model, row):
    return model(torch.tensor(row)[None]).logits[0].log_softmax(-1)


def autograd_rows(model, row, labels):
    """Mean squared gradient of every output row of every trunk weight for one sequence and its labels: the
    definition."""
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


CONTEXT = np.array([[True] * 4 + [False] * 5, [False] * 9, [True] * 2 + [False] * 2 + [True] * 3 + [False] * 2])
"""Which tokens are only context: a prompt, nothing, and the turns of a conversation."""


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_context_the_rows_and_the_loss_are_those_of_the_completion_alone(family):
    """Against autograd: labels and squares at the positions before the tokens that count, context in the attention."""
    model, ids = tiny_model(family, tied=False), sequences(3, 9)
    found = fisher.fisher_embeddings(model, np.where(CONTEXT, as_context(ids), ids), draws=2, seed=3)
    uniforms = fisher.label_uniforms(np.where(CONTEXT, as_context(ids), ids), 2, 3)
    for s in range(3):
        foretells = ~np.append(CONTEXT[s, 1:], CONTEXT[s, -1])
        positions = np.flatnonzero(foretells)
        modules = list(fisher.trunk_modules(model).values())
        weights = [m.weight.requires_grad_() for m in modules]
        for r in range(2):
            labels = torch.tensor(drawn_labels(model, ids[s], uniforms[r, s]))
            log_p = log_probabilities(model, ids[s])
            gradients = torch.autograd.grad(-log_p[positions, labels[positions]].sum(), weights)
            squares = [
                g.pow(2).mean(0 if isinstance(m, Conv1D) else 1) for m, g in zip(modules, gradients, strict=True)
            ]
            expected = torch.cat(squares).numpy()
            np.testing.assert_allclose(found.trunk[r, s].numpy(), expected, rtol=1e-9, atol=1e-12 * expected.max())
        log_p = log_probabilities(model, ids[s]).detach()
        scored = [t for t in range(8) if not CONTEXT[s, t + 1]]
        losses = -log_p[scored, torch.tensor(ids[s])[1:][scored]]
        assert found.loss[s].item() == pytest.approx(losses.mean().item(), rel=1e-9)
        hidden = model.base_model(torch.tensor(ids[s])[None]).last_hidden_state[0].detach()
        p = log_p.exp()
        head = sum(p[t] * (1 - p[t]) * hidden[t].pow(2).mean() for t in positions)
        torch.testing.assert_close(found.head[s], head, rtol=1e-9, atol=0)


def test_both_ways_of_the_row_squares_agree_with_the_definition():
    x, g = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 6, 16, dtype=torch.float64)
    for t in (6, 5):  # 6 * (8 + 16) > 8 * 16 forms the gradient, 5 * (8 + 16) does not
        expected = torch.einsum("nto,nti->noi", g[:, :t], x[:, :t]).pow(2).mean(-1)
        torch.testing.assert_close(fisher._row_squares(x[:, :t], g[:, :t], {}), expected, rtol=1e-12, atol=0)


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
    u = torch.tensor([0, 0.2, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)[:, None, None]  # the last is 1 in float32
    assert draw_labels(p, u).ravel().tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("step", "chunk"), [(3, 2**22), (1, 29 * 16 * 2), (7, 29 * 5), (2, 1)])
def test_embeddings_do_not_depend_on_how_sequences_and_logits_are_grouped(monkeypatch, dtype, tolerance, step, chunk):
    model, ids = tiny_model("gpt2", dtype=dtype), sequences(7, 16)
    whole = fisher.fisher_embeddings(model, ids, 2, 0)
    monkeypatch.setattr(fisher, "CPU_CHUNK", chunk)
    parts = fisher.fisher_embeddings(model, ids, 2, 0, step)
    for field in ("trunk", "head", "loss"):
        a, b = getattr(whole, field), getattr(parts, field)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.max())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "neox"])
def test_padding_changes_nothing(family):
    model, ids = tiny_model(family), sequences(3, 11)
    padded = np.full((3, 20), -1)
    padded[:, :11] = ids
    bare, wide = (fisher.fisher_embeddings(model, rows, 2, 4) for rows in (ids, padded))
    for field in ("trunk", "head", "loss"):
        torch.testing.assert_close(getattr(wide, field), getattr(bare, field), rtol=1e-9, atol=1e-15)


def test_without_label_draws_the_head_rows_are_the_same_and_there_are_no_trunk_rows():
    model, ids = tiny_model("llama"), sequences(3, 11)
    forward = fisher.fisher_embeddings(model, ids, 0, 4)
    assert forward.trunk.numel() == 0
    torch.testing.assert_close(forward.head, fisher.fisher_embeddings(model, ids, 1, 4).head)


def test_bfloat16_differs_from_float32_by_less_than_labels_do():
    model, ids = tiny_model("llama", dtype=torch.float32), sequences(32, 16)
    exact = fisher.fisher_embeddings(model, ids, 2, 0).trunk.mean(1).numpy()
    low = fisher.fisher_embeddings(model.to(torch.bfloat16), ids, 2, 0).trunk.mean(1)
    assert low.dtype == torch.float32
    assert scaled_cosine_distance(exact[0], low.numpy()[0]) < 0.1 * scaled_cosine_distance(exact[0], exact[1])


def test_on_running_out_of_memory_fewer_sequences_go_through_at_once(monkeypatch, caplog):
    model, ids = tiny_model("gpt2"), sequences(7, 16)
    whole, real, sizes = fisher.fisher_embeddings(model, ids, 2, 0), fisher._embed, []

    def small_memory(model, ids, draws, seed):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, draws, seed)

    monkeypatch.setattr(fisher, "_embed", small_memory)
    parts = fisher.fisher_embeddings(model, ids, 2, 0)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1] and parts.step == 1
    torch.testing.assert_close(parts.trunk, whole.trunk)
    assert "going on with 3 sequences" in caplog.text


def test_the_trunk_holds_every_linear_module_but_the_head():
    names = list(fisher.trunk_modules(tiny_model("gpt2")))
    assert names == [f"h.{i}.{n}" for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert len(fisher.trunk_modules(tiny_model("llama"))) == 2 * 7


def test_a_probe_that_changes_its_logits_after_the_head_is_refused():
    model = tiny_model("gemma2")
    with pytest.raises(ProbeError, match="Gemma2ForCausalLM changes its logits"):
        check_probe(model)


def test_a_mixture_of_experts_is_refused_and_dense_models_are_not():
    with pytest.raises(ProbeError, match="mlp.* of Qwen2MoeForCausalLM does not see every token"):
        check_probe(tiny_model("qwen2moe", dtype=torch.float32))
    for family in ("gpt2", "llama", "qwen2", "neox"):
        check_probe(tiny_model(family))


def test_sequences_without_a_finite_embedding_are_named_and_left_out(caplog):
    model, ids = tiny_model("gpt2", tied=False, dtype=torch.float32), sequences(4, 8)
    ids[ids == 5] = 6
    good = embed_batch(model, ids[:3], Estimator(), 0, pad=0)[0]
    ids[3, 4] = 5
    model.transformer.wte.weight.data[5] = float("nan")
    unit, _ = embed_batch(model, ids, Estimator(), 0, pad=0)
    assert unit.skipped == (3,) and "[3]" in caplog.text
    np.testing.assert_allclose(unit.blocks["trunk"], good.blocks["trunk"], rtol=1e-4)
    with pytest.raises(ProbeError, match="no finite Fisher embedding"):
        embed_batch(model, ids[3:], Estimator(), 0, pad=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_large_batch_stays_within_the_memory_and_equals_the_cpu(dtype):
    model, ids = tiny_model("llama", vocabulary=5000, dtype=torch.float32), sequences(4096, 64, 5000)
    few = fisher.fisher_embeddings(model, ids[:8], 2, 0)
    model = model.to("cuda", dtype)
    torch.cuda.reset_peak_memory_stats()
    many = fisher.fisher_embeddings(model, ids, 2, 0)
    assert torch.cuda.max_memory_allocated() < 0.95 * torch.cuda.mem_get_info()[1]
    distance = scaled_cosine_distance(few.trunk.mean((0, 1)), many.trunk[:, :8].mean((0, 1)).cpu())
    assert distance < (1e-6 if dtype == torch.float32 else 0.01)


@pytest.mark.gpu
def test_on_a_gpu_that_is_nearly_full_fewer_sequences_go_through_at_once(caplog):
    model, ids = tiny_model("llama", vocabulary=5000, dtype=torch.float32).to("cuda"), sequences(512, 64, 5000)
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(int(0.97 * free), dtype=torch.uint8, device="cuda")
    found = fisher.fisher_embeddings(model, ids, 2, 0, step=512)
    assert len(found.loss) == 512 and torch.isfinite(found.trunk).all() and len(ballast)

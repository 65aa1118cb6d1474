"""Ways through a training step that spare memory: each gives what the plain step gives."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from align_ray.errors import ConfigError
from align_ray.training import step
from align_ray.training.loop import _differences, micro_batches
from align_ray.training.step import (
    Average,
    add_gradients,
    give_weights,
    learned,
    losses_of,
    master_weights,
    prepared,
    token_losses,
)
from tests.tiny import GROUPED, MODELS, tiny_model
from tests.training.test_loop import CPU, some_rows

SHAPES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=29, tie_word_embeddings=False, **GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(vocab_size=29, head_dim=4, tie_word_embeddings=False, **GROUPED)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=64, n_embd=16, n_layer=2, n_head=2)),
    "smollm2": lambda: LlamaForCausalLM(  # SmolLM2's: tied, three query heads a key
        LlamaConfig(
            vocab_size=29, hidden_size=18, intermediate_size=48, num_hidden_layers=3, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=64, bos_token_id=None,
            eos_token_id=None,
        )
    ),
}  # fmt: skip


def shaped(name, dtype=torch.float32):
    """A tiny model without dropout's draws, its weights large enough for uneven predictions."""
    torch.manual_seed(0)
    model = SHAPES[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def gradients(model, parts, scored):
    weights = master_weights(model)
    loss = add_gradients(losses_of(model), weights, parts, scored, CPU)
    return loss, {name: w.grad for name, w in weights.items()}


@pytest.fixture
def in_float32(monkeypatch):
    """Products are not rounded to bfloat16, so that two ways can be told to be one."""
    monkeypatch.setattr(step, "has_bfloat16", lambda device: False)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("way", ["accumulated", "checkpointed", "chunked", "all"])
def test_accumulation_checkpointing_and_chunked_logits_give_the_gradients_of_the_plain_step(
    name, way, in_float32, monkeypatch
):
    batch = some_rows(5)
    scored = int(batch.scored[:, 1:].sum())
    loss, plain = gradients(shaped(name), [batch], scored)
    model = shaped(name).train()
    if way in ("checkpointed", "all"):
        prepared(model, None, "all-linear", True)
        forwards = count_layers(model)
    if way in ("chunked", "all"):
        monkeypatch.setattr(step, "LOGITS", 29 * 7)  # seven tokens at once
    parts = micro_batches(batch, 0, 1, 2 if way in ("accumulated", "all") else None)
    assert len(parts) == (3 if way in ("accumulated", "all") else 1)
    model.eval() if way in ("accumulated", "chunked") else no_dropout(model)
    again, found = gradients(model, parts, scored)
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max())
    if way in ("checkpointed", "all"):
        assert len(forwards) == 2 * len(parts) * model.config.num_hidden_layers, "each layer is formed again"


def count_layers(model):
    """A list that grows by one at every forward pass of a layer."""
    seen = []
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for block in blocks:
        first = block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm
        first.register_forward_hook(lambda *_: seen.append(1))
    return seen


def no_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attn_dropout") and isinstance(module.attn_dropout, float):
            module.attn_dropout = 0.0


@pytest.mark.parametrize("kind", MODELS)
def test_logits_for_some_tokens_after_the_others_give_the_same_losses(kind, monkeypatch):
    """Also of a model that caps its logits (Gemma 2), of several documents in a row and without a gradient."""
    model, batch = tiny_model(kind, dtype=torch.float32), some_rows()
    ids, positions = torch.as_tensor(batch.ids, dtype=torch.long), torch.as_tensor(batch.positions)
    whole = token_losses(model, ids, positions)
    largest, real = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(step, "LOGITS", 29 * 5)
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda x, *a, **k: largest.append(len(x)) or real(x, *a, **k)
    )
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, ids, positions), whole, rtol=1e-5, atol=1e-5)
    assert max(largest) == 5 and sum(largest) == whole.numel()


def test_a_default_step_is_the_plain_one_bit_for_bit():
    batch, mine, theirs = some_rows(), shaped("llama"), shaped("llama")
    scored, counts = int(batch.scored[:, 1:].sum()), torch.as_tensor(batch.scored[:, 1:])
    ids, positions = torch.as_tensor(batch.ids, dtype=torch.long), torch.as_tensor(batch.positions)
    weights, losses = master_weights(mine), losses_of(mine)
    assert all(weights[name] is p for name, p in learned(mine).items())
    ours, other = (torch.optim.AdamW(of, lr=1e-2, weight_decay=0.0) for of in (weights.values(), theirs.parameters()))
    for _ in range(3):
        found = add_gradients(losses, weights, micro_batches(batch, 0, 1, None), scored, CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=step.has_bfloat16(CPU)):
            logits = theirs(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1].float()
            by_token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (by_token.view(len(ids), -1) * counts).sum() * (1 / scored)
        loss.backward()
        assert found.item() == loss.item()
        for optimiser in (ours, other):
            torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
            optimiser.step()
            optimiser.zero_grad()
        give_weights(mine, weights)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(mine.get_parameter(name), parameter)


@pytest.mark.parametrize("name", SHAPES)
def test_small_steps_of_bfloat16_weights_are_not_lost(name):
    """Float32 master weights move where a bfloat16 weight would stay, and the model has them, rounded."""
    model = shaped(name, torch.bfloat16)
    weights, before = master_weights(model), copy.deepcopy(model.state_dict())
    assert all(w.dtype == torch.float32 for w in weights.values())
    batch = some_rows()
    average, parts = Average(model, weights), micro_batches(batch, 0, 1, 2)
    optimiser = torch.optim.AdamW(weights.values(), lr=1e-5, weight_decay=0.0)
    exact = {n: w.detach().clone() for n, w in weights.items()}
    for _ in range(20):
        add_gradients(losses_of(model), weights, parts, int(batch.scored[:, 1:].sum()), CPU)
        assert all(p.grad is None for p in model.parameters())
        optimiser.step()
        optimiser.zero_grad()
        give_weights(model, weights)
        average.update()
    moved = torch.cat([(weights[n] - exact[n]).flatten() for n in exact])
    assert (moved != 0).float().mean() > 0.8  # GPT-2 has positions that no row reaches
    stayed = torch.cat([(p == before[n]).flatten() for n, p in learned(model).items()])
    assert stayed.float().mean() > 0.1, "weights whose small steps bfloat16 alone would have lost"
    for n, p in learned(model).items():
        assert torch.equal(p, weights[n].to(torch.bfloat16))
    with average.in_place():
        for n, p in learned(model).items():
            assert torch.equal(p, average.values[n].to(torch.bfloat16))


@pytest.mark.parametrize("name", SHAPES)
def test_lora_over_a_frozen_bfloat16_base_has_the_gradients_of_a_float32_one(name):
    batch = some_rows()
    scored, found, first = int(batch.scored[:, 1:].sum()), {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        base = shaped(name, dtype)
        model = prepared(base, 2, "all-linear", False).eval()
        adapters = learned(model)
        for key, p in adapters.items():
            # lora_B begins at zero, which would leave the others without a gradient
            p.data = first.setdefault(key, torch.randn_like(p) * 0.1).clone()
        assert adapters and all("lora_" in key and p.dtype == torch.float32 for key, p in adapters.items())
        frozen = [p for key, p in model.named_parameters() if key not in adapters and p.ndim == 2]
        assert all(p.dtype == dtype and not p.requires_grad for p in frozen)
        found[dtype] = gradients(model, [batch], scored)
    (exact_loss, exact), (loss, low) = found.values()
    assert loss.item() == pytest.approx(exact_loss.item(), rel=0.01)
    a, b = (torch.cat([g.flatten() for g in of.values()]) for of in (exact, low))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.995


def test_adapters_of_some_modules_and_of_none():
    model = prepared(shaped("llama"), 2, ["q_proj", "v_proj"], True)
    assert {name.split(".lora_")[0].split(".")[-1] for name in learned(model)} == {"q_proj", "v_proj"}
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    with pytest.raises(ConfigError, match="finetune.lora_targets.*'nothing'"):
        prepared(shaped("llama"), 2, ["nothing"], False)


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_worker_has_as_many_micro_batches_and_every_row_comes_once(rows, world):
    batch = some_rows(rows)
    parts = [micro_batches(batch, rank, world, 2) for rank in range(world)]
    assert len({len(of) for of in parts}) == 1
    kept = [row for of in parts for part in of for row in part.ids[part.scored.any(1)].tolist()]
    assert sorted(kept) == sorted(batch.ids[batch.scored.any(1)].tolist())
    assert all(len(part) <= 2 for of in parts for part in of)
    assert np.array_equal(micro_batches(batch, 0, 1, None)[0].ids, batch.ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_are_what_the_training_changed_whatever_the_parameters_hold(dtype):
    model = shaped("gpt2", dtype)
    first = {name: p.detach().float().clone() for name, p in learned(model).items()}
    weights = master_weights(model)
    average = Average(model, weights)
    change = {name: 1e-4 * torch.randn_like(w) for name, w in weights.items()}  # below bfloat16's steps at 0.1
    for name, weight in weights.items():
        weight.data += change[name]
    average.update()
    average.update()
    with average.in_place():
        kept = load(_differences(average.values, first, None))
        plain = {name: (p.detach().float() - first[name]).bfloat16() for name, p in learned(model).items()}
    for name, wanted in change.items():
        torch.testing.assert_close(kept[name].float(), wanted, rtol=1e-2, atol=1e-6)
        assert dtype != torch.float32 or torch.equal(kept[name], plain[name]), "bit by bit"

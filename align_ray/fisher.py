"""The Fisher embedding of token sequences: the filter-wise diagonal of a probe's Fisher information.

For a sequence s of T tokens, labels y_t ~ p(. | s_<=t) are drawn at every position and l = -sum_t log p(y_t | s_<=t). For
output row i of a linear module with inputs x_t and output gradients g_t (method A.1, after Task2Vec, arXiv 1902.03545):

    f_s[m, i] = (1/I) || sum_t g_t[i] x_t ||^2 = (1/I) sum_{t,u} g_t[i] g_u[i] <x_t, x_u>

The right-hand side (row-Gram identity) needs only activations and their gradients: no weight gradient is formed. Where
the sequence is so long that the weight gradient is cheaper, that is formed instead; the numbers are the same.

The vocabulary head has a closed form that needs no labels and no backward pass. Taken as untied,

    f_s[v] = sum_t p_t(v) (1 - p_t(v)) mean_c h_t[c]^2

with h_t the head's input. It is the exact expectation over labels (method 3.3) and is kept as a block of its own.

Cost: one forward pass, and per label draw one backward pass through activations only. Several draws share the forward.
"""

import dataclasses
import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

CHUNK_ELEMENTS = 2**22
"""Largest [tokens, vocabulary] array formed at once: 16 MiB in float32, about what a core's cache share holds."""


@dataclasses.dataclass(frozen=True)
class SequenceEmbeddings:
    """Embeddings of n sequences. D: rows of all trunk modules; V: vocabulary; R: label draws."""

    trunk: Tensor
    """[R, n, D], one embedding per label draw, in the probe's dtype (float32 or better)."""
    head: Tensor
    """[n, V], exact expectation over labels."""
    loss: Tensor
    """[n], mean cross-entropy of the true next tokens, nats per token."""


def trunk_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of the trunk by name, in a fixed order; vocabulary head and embeddings are left out."""
    return {n: m for n, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def micro_batch(vocabulary: int, length: int) -> int:
    """Sequences per forward pass, so that logits stay under CHUNK_ELEMENTS."""
    return max(1, CHUNK_ELEMENTS // (vocabulary * length))


def label_uniforms(ids: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Uniform numbers [R, n, T] that choose the labels: a function of (seed, the sequence's tokens) alone.

    The labels of a sequence are thus the same on any worker and beside any other sequences.
    """
    result = np.empty((draws, *ids.shape), dtype=np.float64)
    for i, row in enumerate(ids):
        key = hashlib.blake2b(row.astype("<i4").tobytes(), key=str(seed).encode(), digest_size=16).digest()
        result[:, i] = np.random.Generator(np.random.Philox(key=int.from_bytes(key))).random((draws, ids.shape[1]))
    return result


def fisher_embeddings(model: nn.Module, ids: np.ndarray, draws: int, seed: int) -> SequenceEmbeddings:
    """Embed sequences `ids` (int [n, T], no padding) by `model`, a causal LM in evaluation mode.

    Results do not depend on how sequences are grouped, up to rounding. Raises FloatingPointError where a sequence gives
    a non-finite embedding.
    """
    step = micro_batch(model.config.vocab_size, ids.shape[1])
    parts = [_embed(model, ids[i : i + step], draws, seed) for i in range(0, len(ids), step)]
    result = SequenceEmbeddings(
        trunk=torch.cat([p.trunk for p in parts], dim=1),
        head=torch.cat([p.head for p in parts]),
        loss=torch.cat([p.loss for p in parts]),
    )
    if not (torch.isfinite(result.trunk).all() and torch.isfinite(result.head).all()):
        raise FloatingPointError("the probe gave a non-finite Fisher embedding; its weights or its dtype are not usable")
    return result


def _embed(model: nn.Module, ids: np.ndarray, draws: int, seed: int) -> SequenceEmbeddings:
    model.requires_grad_(False)
    device = next(model.parameters()).device
    tokens = torch.as_tensor(ids, dtype=torch.long, device=device)
    modules = list(trunk_modules(model).values())
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module in outputs:
            raise ValueError("a trunk module is used twice in one pass; its rows would be counted wrongly")
        inputs[module], outputs[module] = args[0].detach(), output

    head = model.get_output_embeddings()
    hooks = [m.register_forward_hook(keep) for m in [*modules, head]]
    try:
        # Parameters are frozen; the embeddings carry the graph, so that gradients exist for activations alone.
        embeddings = model.get_input_embeddings()(tokens).requires_grad_()
        with torch.enable_grad():
            logits = model(inputs_embeds=embeddings, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()

    with torch.no_grad():
        log_p = logits.detach().log_softmax(-1)
        loss = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(-1)
        p = log_p.exp_()
        head_rows = torch.bmm(inputs[head].pow(2).mean(-1)[:, None, :], p - p * p).squeeze(1)
        labels = _draw_labels(p, label_uniforms(ids, draws, seed))

    trunk = []
    order = [m for m in modules if m in outputs]
    for r in range(draws):
        residual = p.clone()  # d l / d logits
        residual.scatter_add_(-1, labels[r][..., None], residual.new_full((*labels[r].shape, 1), -1.0))
        targets = [outputs[m] for m in order]
        gradients = torch.autograd.grad(logits, targets, residual, retain_graph=r + 1 < draws)
        trunk.append(torch.cat([_row_squares(inputs[m], g) for m, g in zip(order, gradients, strict=True)], dim=-1))
    return SequenceEmbeddings(torch.stack(trunk), head_rows, loss)


def _draw_labels(p: Tensor, uniforms: np.ndarray) -> Tensor:
    """Labels [R, n, T] by inversion of the cumulative distribution of p [n, T, V]."""
    cumulative = p.cumsum(-1)
    total = cumulative[..., -1:]
    u = torch.as_tensor(uniforms, dtype=p.dtype, device=p.device).permute(1, 2, 0) * total
    u = torch.minimum(u, total.nextafter(torch.zeros_like(total)))  # a uniform number may have been rounded to 1
    labels = torch.searchsorted(cumulative, u.contiguous(), right=True).clamp_(max=p.shape[-1] - 1)  # for p of NaN
    return labels.permute(2, 0, 1).contiguous()


def _row_squares(x: Tensor, g: Tensor) -> Tensor:
    """Mean squared weight gradient of every output row, [n, O], of inputs x [n, T, I] and output gradients g [n, T, O]."""
    t, i, o = x.shape[1], x.shape[2], g.shape[2]
    if t * (i + o) <= i * o:  # multiply-adds of the Gram form against those of the weight gradient
        gram = torch.bmm(x, x.transpose(1, 2))
        return (torch.bmm(gram, g) * g).sum(1) / i
    return torch.bmm(g.transpose(1, 2), x).pow(2).mean(-1)

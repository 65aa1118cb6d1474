"""The Fisher embedding of token sequences: the filter-wise diagonal of a probe's Fisher information.

For a sequence s of T tokens, labels y_t ~ p(. | s_<=t) are drawn at every position and l = -sum_t log p(y_t | s_<=t).
For output row i of a linear module with inputs x_t and output gradients g_t (method A.1, after Task2Vec, arXiv
1902.03545):

    f_s[m, i] = (1/I) || sum_t g_t[i] x_t ||^2 = (1/I) sum_{t,u} g_t[i] g_u[i] <x_t, x_u>

The right-hand side (row-Gram identity) needs only activations and their gradients: no weight gradient is formed. Where
the sequence is so long that the weight gradient is cheaper, that is formed instead; the numbers are the same. The
vocabulary head is a block of its own (`fisher/head.py`).

Cost: one forward pass, and per label draw one backward pass through activations only. Several draws share the forward.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from align_ray.fisher.head import head_pass
from align_ray.fisher.tokens import PADDING, counted_positions, plain_ids, scored_positions

log = logging.getLogger(__name__)

CPU_CHUNK = 2**23
"""Largest [tokens, vocabulary] array formed at once on a CPU: 32 MiB in float32; more gains nothing."""
CPU_TOKENS = 1024
"""Tokens per pass on a CPU: enough for full matrix rate, few enough for a module's activations to stay in the cache."""
GPU_CHUNK = 2**28
"""The same on a GPU: 1 GiB in float32, of which five are alive at once."""


@dataclasses.dataclass(frozen=True)
class SequenceEmbeddings:
    """Embeddings of n sequences. D: rows of all trunk modules; V: vocabulary; R: label draws."""

    trunk: Tensor
    """[R, n, D], one embedding per label draw; float32, or float64 for a float64 probe."""
    head: Tensor
    """[n, V], exact expectation over labels."""
    loss: Tensor
    """[n], mean cross-entropy of the true next tokens, nats per token."""
    step: int
    """Sequences per pass that the memory held."""

    def finite(self) -> Tensor:
        """bool [n]: the sequences whose embedding and loss have no infinity and no NaN."""
        return torch.isfinite(self.trunk).all(-1).all(0) & torch.isfinite(self.head).all(-1) & torch.isfinite(self.loss)


def trunk_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of the trunk by name, in a fixed order; vocabulary head and embeddings are left out."""
    return {n: m for n, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def label_uniforms(ids: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Uniform numbers [R, n, T] that choose the labels: a function of (seed, the sequence's tokens) alone.

    `ids`: int [n, T] (see `tokens.py`). The labels of a sequence are the same on any worker, beside any other sequences
    and under any padding.
    """
    result = np.zeros((draws, *ids.shape), dtype=np.float64)
    for i, row in enumerate(ids):
        row = row[row != PADDING]
        key = hashlib.blake2b(row.astype("<i4").tobytes(), key=str(seed).encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key)))
        result[:, i, : len(row)] = generator.random((draws, len(row)))
    return result


def sequences_per_pass(model: nn.Module, length: int, draws: int) -> int:
    """How many sequences of T tokens go through the model at once.

    A pass holds, for every token, the inputs and outputs of all trunk modules, about as much again for norms, attention
    and activations, and R + 3 copies of the head's input: bytes = 2 T s sum_m (I_m + O_m) + T s C (R + 3) a sequence, s
    bytes a number, beside five chunks of logits. On a GPU as many as fill 80 % of the free memory; on a CPU about
    CPU_TOKENS tokens, since more gain nothing.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return max(1, CPU_TOKENS // length)
    free, _ = torch.cuda.mem_get_info(parameter.device)
    free += torch.cuda.memory_reserved(parameter.device) - torch.cuda.memory_allocated(parameter.device)
    return max(1, int((0.8 * free - 5 * 4 * GPU_CHUNK) // bytes_of_a_sequence(model, length, draws)))


def bytes_of_a_sequence(model: nn.Module, length: int, draws: int) -> int:
    """What a pass holds for a sequence (see `sequences_per_pass`)."""
    modules = sum(sum(m.weight.shape) for m in trunk_modules(model).values())
    numbers = 2 * modules + model.config.get_text_config().hidden_size * (draws + 3)
    return length * next(model.parameters()).element_size() * numbers


def fisher_embeddings(
    model: nn.Module, ids: np.ndarray, draws: int, seed: int, step: int | None = None
) -> SequenceEmbeddings:
    """Embed sequences `ids` (int [n, T], see `tokens.py`; padding on the right) by `model`, a causal LM in evaluation
    mode. Where tokens are only context, labels are drawn and squares taken at the positions of the others alone.

    `draws` is R; 0 gives the head's block alone, for a forward pass. `step`: sequences per pass (default: by the
    memory); it is halved, with a warning, where memory runs out. Results do not depend on how sequences are grouped, up
    to rounding. Raises torch.OutOfMemoryError where not even one sequence fits.
    """
    step = step or sequences_per_pass(model, ids.shape[1], draws)
    parts, start = [], 0
    while start < len(ids):
        try:
            parts.append(_embed(model, ids[start : start + step], draws, seed))
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, a plain one from the CPU's allocator
            if step == 1 or not (
                isinstance(error, torch.OutOfMemoryError)
                or "not enough memory" in str(error)
                or "can't allocate" in str(error)
            ):
                raise
            step = max(1, min(step, len(ids) - start) // 2)
            log.warning("out of memory; going on with %d sequences per pass", step)
        else:
            start += step
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors of the failed pass
    trunk, head, loss = (
        torch.cat(columns, dim=-2 if i < 2 else 0) for i, columns in enumerate(zip(*parts, strict=True))
    )
    return SequenceEmbeddings(trunk, head, loss, step)


def _embed(model: nn.Module, ids: np.ndarray, draws: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trunk [R, n, D], head [n, V] and loss [n] of sequences that go through the model together."""
    device = next(model.parameters()).device
    tokens = torch.as_tensor(plain_ids(ids), dtype=torch.long, device=device)
    counted, scored = (torch.as_tensor(of(ids), device=device) for of in (counted_positions, scored_positions))
    uniforms = torch.as_tensor(label_uniforms(ids, draws, seed), device=device)
    chunk = GPU_CHUNK if device.type == "cuda" else CPU_CHUNK
    # Parameters are frozen; the embeddings carry the graph, so that gradients exist for activations alone.
    leaf = model.get_input_embeddings()(tokens).detach().requires_grad_(draws > 0)
    with _frozen(model), _row_squares_of(model) as squares, torch.set_grad_enabled(draws > 0):
        hidden = model.base_model(inputs_embeds=leaf, use_cache=False).last_hidden_state
        with torch.no_grad():
            head = head_pass(model.get_output_embeddings(), hidden, tokens, counted, scored, uniforms, chunk)
        for r in range(draws):
            torch.autograd.grad(hidden, leaf, head.gradient[r], retain_graph=r + 1 < draws)
    trunk = [torch.cat([of_module[r] for of_module in squares.values()], dim=-1) for r in range(draws)]
    return torch.stack(trunk) if draws else head.rows.new_zeros((0, len(ids), 0)), head.rows, head.loss


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """While it is open, no parameter has a gradient; after it those have one that had before."""
    learned = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def _row_squares_of(model: nn.Module) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """While it is open, every backward pass appends to each trunk module's list the mean squared weight gradients of
    its rows, [n, O], as soon as the gradient of the module's output is known (it is then freed)."""
    squares: dict[nn.Module, list[Tensor]] = {m: [] for m in trunk_modules(model).values()}
    grams: dict[tuple, Tensor] = {}  # by address of the inputs, which the graph keeps: shared by modules and draws

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x = args[0].detach()
        output.register_hook(lambda g: squares[module].append(_row_squares(x, g, grams)))

    hooks = [m.register_forward_hook(watch) for m in squares]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def _row_squares(x: Tensor, g: Tensor, grams: dict[tuple, Tensor]) -> Tensor:
    """Mean squared weight gradient of every output row, [n, O], of inputs x [n, T, I] and output gradients g [n, T, O].

    Products are in the model's dtype with wide accumulation; squares and sums in float32 or better.
    """
    t, i, o = x.shape[1], x.shape[2], g.shape[2]
    exact = torch.promote_types(x.dtype, torch.float32)
    if t * (i + o) > i * o:  # multiply-adds of the Gram form against those of the weight gradient
        return torch.bmm(g.transpose(1, 2), x).to(exact).pow(2).mean(-1)
    at = (x.data_ptr(), x.shape)
    if at not in grams:
        grams[at] = torch.bmm(x, x.transpose(1, 2))
    return (torch.bmm(grams[at], g).to(exact) * g).sum(1) / i

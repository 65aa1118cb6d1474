"""A companion to alignment: the change of a target's loss that one step on the candidate would make, to second order.

With g_T the gradient of the target's loss (true labels) and u the direction in which Adam moves on the candidate,

    L_T(theta - h u) - L_T(theta)  ~  -h <g_T, u> + h^2 / 2 sum_i F_T[i] u[i]^2,     u = m / sqrt(v)

with m and v the first and second moments of the candidate's mini-batch gradients and F_T the diagonal of the target's
(empirical) Fisher information in place of its Hessian. The first term is gradient agreement (LESS, arXiv 2402.04333);
the second is what a step breaks: without it a narrow corpus with consistent gradients looks good for everyone. The
diagonal leaves out most of the curvature, so that h has no meaning of its own: both terms are scaled to the same mean
size.

One forward and one full backward pass over a sample; no training. Vectors of the size of the model are kept as count
sketches, whose inner products are unbiased: sum_i a_i b_i = E <sketch(a), sketch(b)>, error about |a| |b| / sqrt(SIZE).
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from align_ray.fisher.probe import has_bfloat16
from align_ray.fisher.tokens import PADDING, plain_ids

SEQUENCES = 32
"""Taken of a corpus, spread evenly over its batches."""
MINI_BATCH = 8
SIZE = 2**19
"""Numbers a sketch."""
BLOCKS = ("trunk", "vocabulary")
VECTORS = ("gradient", "fisher", "update", "update_squared")


@dataclasses.dataclass(frozen=True)
class Sketches:
    """Sketches of one corpus, by block (`trunk`; `vocabulary`: embeddings and head), each float32 [SIZE]."""

    gradient: dict[str, np.ndarray]
    fisher: dict[str, np.ndarray]
    update: dict[str, np.ndarray]
    update_squared: dict[str, np.ndarray]


def sketch(vector: Tensor, seed: int, size: int = SIZE) -> Tensor:
    """Count sketch of a vector [n]: every entry is added, with a random sign, to a random one of `size` sums.
    Position and sign are functions of (seed, entry) alone."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2 * size, (len(vector),), generator=generator)
    signs = (drawn & 1).mul_(2).sub_(1).to(vector)
    return torch.zeros(size, dtype=vector.dtype).index_add_(0, drawn >> 1, signs * vector)


def corpus_sketches(model: nn.Module, ids: np.ndarray, size: int = SIZE) -> Sketches:
    """Sketches of a corpus from sequences int [n, T] (negative: right padding, not scored), n a multiple of
    MINI_BATCH and at least twice it; `model` in float32."""
    parameters = dict(model.named_parameters())
    vocabulary = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    model.requires_grad_(True)
    device = next(model.parameters()).device
    inputs, labels = (
        torch.as_tensor(x, dtype=torch.long, device=device) for x in (plain_ids(ids), np.maximum(ids, PADDING))
    )
    chunks = list(zip(inputs.split(MINI_BATCH), labels.split(MINI_BATCH), strict=True))
    mean = {n: torch.zeros_like(p) for n, p in parameters.items()}
    square = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for chunk, following in chunks:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = model(input_ids=chunk, use_cache=False).logits[:, :-1]
        wanted = following[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=PADDING).backward()
        for name, p in parameters.items():
            mean[name] += p.grad / len(chunks)
            square[name].addcmul_(p.grad, p.grad, value=1 / len(chunks))
    result: dict[str, dict[str, Tensor]] = {v: {b: torch.zeros(size) for b in BLOCKS} for v in VECTORS}
    for seed, (name, p) in enumerate(parameters.items()):
        block = "vocabulary" if id(p) in vocabulary else "trunk"
        update = mean[name] / square[name].sqrt().add_(1e-12)
        fisher = (square[name] - mean[name] ** 2) * (len(chunks) / (len(chunks) - 1) * ids.shape[1] * MINI_BATCH)
        for vector, values in zip(VECTORS, (mean[name], fisher, update, update**2), strict=True):
            result[vector][block] += sketch(values.flatten().cpu(), seed, size)
    return Sketches(**{v: {b: s.numpy() for b, s in blocks.items()} for v, blocks in result.items()})


def predicted_change(candidate: Sketches, target: Sketches, blocks: tuple[str, ...]) -> tuple[float, float]:
    """The two terms without h: <g_T, u>, the gain, and sum F_T u^2, the damage."""
    gain = sum(float(target.gradient[b] @ candidate.update[b]) for b in blocks)
    damage = sum(float(target.fisher[b] @ candidate.update_squared[b]) for b in blocks)
    return gain, damage

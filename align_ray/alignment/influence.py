"""Influence of a candidate's sequences on a target, by gradients of single sequences after a short warm-up.

Two scores from the same vectors, on the parameters of a LoRA adapter:

- **LESS** (Xia et al., arXiv 2402.04333): the cosine of the update that Adam would make of a candidate's sequence, with
  the moments that the warm-up has left, and the gradient of a target's sequence; the mean over all pairs of sequences.
- **Mean matching** (kernel mean matching of gradients, arXiv 2605.16704): minus the squared distance of the mean unit
  gradients of the two, less what belongs to the target alone. Unlike a cosine it counts against a candidate that it
  says the same thing over and over.

Every sequence is scaled to length 1, so that long or odd ones do not decide. The mean over pairs of a product is the
product of the means, so that two vectors of the size of the adapter are all that is kept of a corpus.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align_ray.fisher.tokens import PADDING, plain_ids

SEQUENCES = 64
"""Taken of a corpus, spread evenly over its sample."""
RANK = 8
WARM_UP = 8
"""Sequences of every candidate in the warm-up, and sequences a step."""
PASSES = 2
LEARNING_RATE = 3e-4
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclasses.dataclass(frozen=True)
class Influence:
    """Means over a corpus' sequences, each scaled to length 1; float32 [P], P the parameters of the adapter."""

    update: np.ndarray
    gradient: np.ndarray
    sequences: int


def adapted(model: Any, seed: int = 0) -> Any:
    """The model (transformers, float32) frozen, with a LoRA adapter of rank RANK on all linear modules of the trunk,
    its initial values drawn with the seed; in evaluation mode."""
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    return wrapped.eval()


def warm_up(model: Any, ids: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Train the adapter of `model` (see `adapted`) on sequences int [n, T], PASSES times, in an order drawn with the
    seed; the base stays. Returns the state after it: float32 arrays by `weight/NAME`, `first/NAME` and `second/NAME`
    (Adam's moments), and `steps`."""
    parameters = _trained(model)
    optimiser = torch.optim.Adam(parameters.values(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(ids)) for _ in range(PASSES)])
    parts = np.array_split(order, max(1, len(order) // WARM_UP))
    for part in parts:
        optimiser.zero_grad()
        _loss(model, ids[part]).backward()
        optimiser.step()
    state: dict[str, np.ndarray] = {"steps": np.array([len(parts)], np.float32)}
    for name, p in parameters.items():
        moments = optimiser.state[p]
        for kind, value in (("weight", p), ("first", moments["exp_avg"]), ("second", moments["exp_avg_sq"])):
            state[f"{kind}/{name}"] = value.detach().float().cpu().numpy()
    return state


def corpus_influence(model: Any, state: dict[str, np.ndarray], ids: np.ndarray) -> Influence:
    """The vectors of a corpus from sequences int [n, T] (encoded as `fisher/tokens.py` says; what does not count is not
    scored); `model` from `adapted`, `state` from `warm_up`. A sequence of which nothing counts is left out."""
    parameters = _trained(model)
    device = next(iter(parameters.values())).device

    def flat(kind: str) -> Tensor:
        return torch.cat([torch.as_tensor(state[f"{kind}/{n}"]).flatten() for n in parameters]).to(device)

    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.as_tensor(state[f"weight/{name}"]))
    first, second, step = flat("first"), flat("second"), float(state["steps"][0]) + 1
    update, gradient, count = torch.zeros_like(first), torch.zeros_like(first), 0
    for row in ids:
        if not (row[1:] >= 0).any():
            continue
        loss = _loss(model, row[None])
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(parameters.values()))])
        moved = adam_update(g, first, second, step)
        update += moved / moved.norm().clamp_min(1e-30)
        gradient += g / g.norm().clamp_min(1e-30)
        count += 1
    scale = 1 / max(1, count)
    return Influence((update * scale).cpu().numpy(), (gradient * scale).cpu().numpy(), count)


def adam_update(gradient: Tensor, first: Tensor, second: Tensor, step: float) -> Tensor:
    """What Adam's step number `step` adds up to for this gradient, before the learning rate, [P]; the moments are those
    before it."""
    m = BETAS[0] * first + (1 - BETAS[0]) * gradient
    v = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    return m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPSILON)


def less(candidate: Influence, target: Influence) -> float:
    """Mean cosine of the candidate's updates with the target's gradients, in [-1, 1]."""
    return float(candidate.update @ target.gradient)


def mean_matching(candidate: Influence, target: Influence) -> float:
    """Minus the squared distance of the mean unit gradients, but for the target's own square; at most 1. Pairs of a
    sequence with itself are left out of the candidate's square, which they would raise by chance."""
    n = candidate.sequences
    square = (n * float(candidate.gradient @ candidate.gradient) - 1) / max(1, n - 1)
    return 2 * float(candidate.gradient @ target.gradient) - square


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows [n, T], evenly over them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def _trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _loss(model: Any, ids: np.ndarray) -> Tensor:
    """Mean loss of the tokens that count, nats."""
    device = next(model.parameters()).device
    inputs, labels = (
        torch.as_tensor(x, dtype=torch.long, device=device) for x in (plain_ids(ids), np.maximum(ids, PADDING))
    )
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=PADDING
    )

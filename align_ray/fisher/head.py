"""The vocabulary head: its closed-form Fisher block, the labels drawn from it, and the gradient it sends to the trunk.

Taken as untied, the head's filter-wise Fisher information needs no labels and no backward pass (method 3.3):

    f_s[v] = sum_t p_t(v) (1 - p_t(v)) mean_c h_t[c]^2

with h_t the head's input. It is the exact expectation over labels: free of label noise, and additive like the trunk's.

The gradient of -log p(y_t) in h_t is W^T p_t - W[y_t]. The first term is shared by all label draws, so that a further
draw costs the head no matrix product. No array of [tokens, vocabulary] larger than `chunk` elements is ever formed.
"""

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class HeadPass:
    """What the head gives for n sequences of T tokens. V: vocabulary; C: width; R: label draws."""

    rows: Tensor
    """[n, V], Fisher block of the head."""
    loss: Tensor
    """[n], mean cross-entropy of the true next tokens that count, nats per token."""
    gradient: Tensor
    """[R, n, T, C], gradient of the summed label losses in the head's input, zero where no label is drawn."""


def head_pass(
    head: nn.Linear, hidden: Tensor, tokens: Tensor, counted: Tensor, scored: Tensor, uniforms: Tensor, chunk: int
) -> HeadPass:
    """Run the head on `hidden` [n, T, C].

    `tokens`: int64 [n, T]; `counted`, `scored`: bool [n, T], the positions at which labels are drawn, and those whose
    next token is in the loss (see `tokens.py`); `uniforms`: [R, n, T], choose the labels.
    Probabilities, squares and sums are float32, or float64 for a float64 model.
    """
    n, length, width = hidden.shape
    exact = torch.promote_types(hidden.dtype, torch.float32)
    vocabulary = head.weight.shape[0]
    rows = hidden.new_zeros((n, vocabulary), dtype=exact)
    true_losses = hidden.new_zeros((n, length), dtype=exact)
    gradient = hidden.new_empty((len(uniforms), n, length, width))
    scale = hidden.to(exact).pow(2).mean(-1) * counted
    following = tokens.roll(-1, 1)
    span = max(1, min(length, chunk // vocabulary))
    group = max(1, chunk // (vocabulary * length))
    for i in range(0, n, group):
        for t in range(0, length, span):
            at = (slice(i, i + group), slice(t, t + span))
            inputs = hidden[at]
            logits = head(inputs.reshape(-1, width)).to(exact).view(*inputs.shape[:2], vocabulary)
            level = logits.logsumexp(-1, keepdim=True)
            true_losses[at] = (level - logits.gather(-1, following[at][..., None])).squeeze(-1)
            p = logits.sub_(level).exp_()
            if len(uniforms):
                shared = (p.view(-1, vocabulary).to(hidden.dtype) @ head.weight).view(inputs.shape)
                for r, labels in enumerate(draw_labels(p, uniforms[(slice(None), *at)])):
                    gradient[(r, *at)] = (shared - head.weight[labels]) * counted[at][..., None]
            variance = p.addcmul_(p, p, value=-1)
            rows[at[0]] += torch.bmm(scale[at][:, None, :], variance).squeeze(1)
    return HeadPass(rows, (true_losses * scored).sum(1) / scored.sum(1).clamp(min=1), gradient)


def draw_labels(p: Tensor, uniforms: Tensor) -> Tensor:
    """Labels [R, n, T] by inversion of the cumulative distribution of p [n, T, V] at uniform numbers [R, n, T]."""
    cumulative = p.cumsum(-1)
    total = cumulative[..., -1:]
    u = uniforms.to(p.dtype).permute(1, 2, 0) * total
    u = torch.minimum(u, total.nextafter(torch.zeros_like(total)))  # a uniform number may have been rounded to 1
    labels = torch.searchsorted(cumulative, u.contiguous(), right=True).clamp_(max=p.shape[-1] - 1)  # for p of NaN
    return labels.permute(2, 0, 1)

"""Tuning the vocabulary head before the Fisher pass (arXiv 2501.08496, section on Task2Vec; method 1.2 step 4).

Unlike the published code the trunk is frozen and in evaluation mode, so that the head's inputs are computed once, and
the head is untied, so that the input embedding stays as it is.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from align_ray.fisher.tokens import PADDING, plain_ids

EPOCHS, ROWS = 5, 8


def tuned_head(model: nn.Module, ids: np.ndarray) -> Tensor:
    """Weight [V, C] of the head after 5 epochs of AdamW (5e-5, weight decay 1e-4, 8 rows a step) on `ids` (int [n, T],
    see `tokens.py`) in the order given; the model is left as it was."""
    device = next(model.parameters()).device
    tokens = torch.as_tensor(plain_ids(ids), dtype=torch.long, device=device)
    with torch.no_grad():
        parts = tokens.split(ROWS)
        hidden = torch.cat([model.base_model(input_ids=p, use_cache=False).last_hidden_state for p in parts])[
            :, :-1
        ].float()
    # what does not count is ignored by the loss
    following = torch.as_tensor(np.maximum(ids, PADDING), dtype=torch.long, device=device)[:, 1:]
    head = nn.Linear(*model.get_output_embeddings().weight.shape[::-1], bias=False, device=device)
    head.weight.data.copy_(model.get_output_embeddings().weight)
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-5, eps=1e-8, weight_decay=1e-4)
    for _ in range(EPOCHS):
        for x, y in zip(hidden.split(ROWS), following.split(ROWS), strict=True):
            optimiser.zero_grad()
            with torch.enable_grad():
                nn.functional.cross_entropy(head(x).flatten(0, 1), y.flatten(), ignore_index=PADDING).backward()
            optimiser.step()
    return head.weight.detach()


def with_head(model: nn.Module, weight: Tensor) -> nn.Module:
    """The model with an untied head of this weight; the trunk is shared, not copied."""
    # modules are held in a dict of the object: copy that, so that the original keeps its head
    result = copy.copy(model)
    result._modules = dict(model._modules)
    old = model.get_output_embeddings()
    head = nn.Linear(*weight.shape[::-1], bias=old.bias is not None, device=weight.device, dtype=old.weight.dtype)
    head.weight.data.copy_(weight)
    if old.bias is not None:
        head.bias.data.copy_(old.bias)
    result.set_output_embeddings(head)
    return result

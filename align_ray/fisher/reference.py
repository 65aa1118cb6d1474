"""The published Task2Vec procedure with all its quirks, each of which can be turned off (method 1.2 and 1.4).

Written from the description in the project's method notes. It exists to show what each quirk does to the numbers and to
compare with published runs; `fisher/trunk.py` is the estimator to use. Per batch of rows: tune the (tied) head by AdamW
with dropout on, then, per mini-batch of 8 rows, draw one label per position, square the gradient of the mini-batch's
mean loss, and average the squares over mini-batches and over every axis but the first of each weight.

Cost: (epochs + 1) forward and full backward passes.
"""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.pytorch_utils import Conv1D

from align_ray.errors import ProbeError
from align_ray.fisher.settings import Quirks
from align_ray.fisher.trunk import trunk_modules


def reference_embedding(
    model: nn.Module, ids: Tensor, mask: Tensor, pad: int, seed: int, quirks: Quirks = Quirks()
) -> Tensor:
    """Embedding of one batch, [E] in the model's dtype. `model` and the global random states are left as they were.

    `ids`, `mask`: int64 [n, T], right-padded with `pad`. E is 134,993 for GPT-2 small.
    """
    probe = copy.deepcopy(model)
    probe.requires_grad_(True)
    probe.train(quirks.dropout)
    rows = TensorDataset(ids, mask)
    with _seeded(seed, ids.device):
        _tune_head(probe, rows, pad, quirks)
        squares = _squared_gradients(probe, rows, pad, quirks)
    return torch.cat([_rows(module, squares[name], quirks) for name, module in _kept_modules(probe, quirks)])


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global random states start from `seed`; after it they are what they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def published_entries(model: nn.Module, quirks: Quirks = Quirks()) -> list[int]:
    """Entries of every module that is part of an embedding, in its order."""
    return [len(m.weight) if quirks.axis_0 else outputs(m) for _, m in _kept_modules(model, quirks)]


def reference_blocks(model: nn.Module, embedding: Tensor, quirks: Quirks = Quirks()) -> dict[str, Tensor]:
    """The parts of an embedding [E]: `vocabulary` (token embedding rows, the known confounder, where kept) and
    `trunk`."""
    sizes = published_entries(model, quirks)
    tokens = [m is model.get_input_embeddings() for _, m in _kept_modules(model, quirks)]
    parts = list(zip(embedding.split(sizes), tokens, strict=True))
    trunk = torch.cat([part for part, is_tokens in parts if not is_tokens])
    vocabulary = [part for part, is_tokens in parts if is_tokens]
    return {"trunk": trunk, "vocabulary": vocabulary[-1]} if vocabulary else {"trunk": trunk}


def outputs(module: nn.Module) -> int:
    """Output rows of a linear module."""
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def _tune_head(probe: nn.Module, rows: TensorDataset, pad: int, quirks: Quirks) -> None:
    head = probe.get_output_embeddings()
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-5, eps=1e-8, weight_decay=1e-4)
    loader = DataLoader(rows, batch_size=8, shuffle=False)
    for _ in range(quirks.head_epochs):
        for ids, mask in _with_progress_bar(loader):
            optimiser.zero_grad()
            logits = probe(input_ids=ids, attention_mask=mask, use_cache=False).logits
            _loss(logits[:, :-1], ids[:, 1:], pad).backward()
            optimiser.step()
    probe.zero_grad()


def _with_progress_bar(loader: DataLoader) -> DataLoader:
    """The loader, after what the published progress bar does to it: one more iterator, which advances torch's random
    state."""
    iter(loader)
    return loader


def _squared_gradients(probe: nn.Module, rows: TensorDataset, pad: int, quirks: Quirks) -> dict[str, Tensor]:
    """Mean over mini-batches of the squared gradient of every module's weight, by module name."""
    loader = DataLoader(rows, batch_size=quirks.mini_batch, shuffle=False)
    weights = {
        name: m.weight for name, m in probe.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)
    }
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    # the published code counts so after it has seeded (the pass before tuning comes before that)
    batches = len(list(loader))
    for ids, mask in _with_progress_bar(loader):
        probe.zero_grad()
        logits = probe(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if not (logits < torch.inf).all():
            raise ProbeError("the probe gives logits that are not finite numbers; its weights are not usable.")
        with torch.no_grad():
            labels = torch.stack([torch.multinomial(row.softmax(-1), 1).squeeze(1) for row in logits])
        if quirks.shifted_labels:
            scored, wanted, real = logits[:, :-1], labels[:, 1:], mask[:, 1:]
        else:
            scored, wanted, real = logits, labels, mask
        if quirks.pads_counted:
            loss = _loss(scored, wanted, pad)
        else:
            loss = _loss(scored, torch.where(real.bool(), wanted, -1), -1)
        loss.backward()
        for name, weight in weights.items():
            sums[name] += weight.grad**2
    return {name: total / batches for name, total in sums.items()}


def _loss(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=ignored)


def _kept_modules(probe: nn.Module, quirks: Quirks) -> list[tuple[str, nn.Module]]:
    if not quirks.vocabulary:
        trunk = set(trunk_modules(probe).values())
        return [(name, m) for name, m in probe.named_modules() if m in trunk]
    head = probe.get_output_embeddings()
    return [
        (name, m)
        for name, m in probe.named_modules()
        if isinstance(getattr(m, "weight", None), nn.Parameter) and m is not head
    ]


def _rows(module: nn.Module, squares: Tensor, quirks: Quirks) -> Tensor:
    if not quirks.axis_0 and isinstance(module, Conv1D):
        squares = squares.T
    return squares.reshape(len(squares), -1).mean(1)

"""The model of a training, its losses, and the average of its weights: torch alone, without Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from align_ray.corpora.rows import Rows
from align_ray.fisher.probe import has_bfloat16, load_model, random_model

AVERAGE = 3
"""The average of the weights is over about the last quarter of the steps: 1 / (1 + AVERAGE)."""

LORA_SCALE = 2
"""Of LoRA's alpha to its rank: what the product of an adapter's factors is multiplied by."""


def trainable_model(settings: dict[str, Any], device: Any) -> Any:
    """The model as a run starts from: its weights or random ones; with LoRA, frozen but for the adapters."""
    located, scratch, rank = settings["located"], settings["scratch"], settings["lora_rank"]
    model = load_model(located, str(device)) if scratch is None else random_model(located, scratch).to(device)
    return model if rank is None else with_adapters(model, rank)


def with_adapters(model: Any, rank: int) -> Any:
    """The model, frozen but for LoRA adapters of all its linear layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def learned(model: Any) -> dict[str, Any]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def token_losses(model: Any, ids: Any, positions: Any = None) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats.

    `ids`, `positions`: int [n, T]. Where positions begin at 0 again another document begins, which attends to nothing
    before it: transformers makes the block mask from the positions. Without positions every row is one document.
    """
    import torch

    where = {} if positions is None else {"position_ids": positions}
    logits = model(input_ids=ids, use_cache=False, **where).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def takes_positions(model: Any) -> bool:
    """Whether the model takes position ids, so that documents in one row can be kept apart (Bloom and MPT, whose
    positions are distances, do not)."""
    import inspect

    base = getattr(model, "module", model)  # inside of what Ray Train wraps around it for several workers
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    return "position_ids" in inspect.signature(base.forward).parameters


def on_device(rows: Rows, model: Any, device: Any) -> tuple[Any, Any]:
    """Token ids and position ids (None where every row is one document, or the model takes none), int64 [n, T]."""
    import torch

    positions = rows.positions
    several = bool((positions[:, 1:] == 0).any()) and takes_positions(model)
    as_tensor = lambda array: torch.as_tensor(array, dtype=torch.long, device=device)
    return as_tensor(rows.ids), as_tensor(positions) if several else None


def heldout_losses(model: Any, rows: Rows, device: Any, rows_at_once: int = 8) -> np.ndarray:
    """Cross-entropy of every next token, float32 [n, T-1], nats, NaN where it does not count; matrices in bfloat16
    where the device has it (which moves a loss by about 1e-4), softmax in float32."""
    import torch

    parts = []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        for start in range(0, len(rows), rows_at_once):
            some = rows[start : start + rows_at_once]
            parts.append(token_losses(model, *on_device(some, model, device)).float().cpu().numpy())
    losses = np.concatenate(parts)
    losses[~rows.scored[:, 1:]] = np.nan
    return losses


def sequence_losses(losses: np.ndarray) -> np.ndarray:
    """Mean of each row's tokens that count, float64 [n], nats per token, of losses [n, T-1] (see `heldout_losses`)."""
    return np.nanmean(losses.astype(np.float64), axis=1)


def step_loss(model: Any, rows: Rows, scored: int, device: Any, world: int = 1) -> Any:
    """A worker's part of a step's loss: the sum over its rows' tokens that count, divided by `scored`, those of all
    workers' rows together, times the number of workers, whose gradients are averaged. So every token weighs the same
    however rows are shared out."""
    import torch

    counts = torch.as_tensor(rows.scored[:, 1:], device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        losses = token_losses(model, *on_device(rows, model, device))
    return (losses * counts).sum() * (world / max(1, scored))


class Average:
    """The average of a model's trained parameters over about the last quarter of the steps so far, in float32, at any
    step and without knowing how many there will be: polynomial-decay averaging (Shamir and Zhang, arXiv 1212.1824)."""

    def __init__(self, model: Any) -> None:
        self.model, self.steps = model, 0
        self.values = {name: p.detach().float().clone() for name, p in learned(model).items()}

    def update(self) -> None:
        """Take in the weights after another step."""
        self.steps += 1
        share = (1 + AVERAGE) / (self.steps + AVERAGE)
        for name, parameter in learned(self.model).items():
            self.values[name].lerp_(parameter.detach().float(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the average as its weights and is in evaluation mode."""
        now = {name: p.detach().clone() for name, p in learned(self.model).items()}
        was = self.model.training
        self._set(self.values)
        self.model.eval()
        try:
            yield
        finally:
            self._set(now)
            self.model.train(was)

    def _set(self, values: dict[str, Any]) -> None:
        for name, parameter in learned(self.model).items():
            parameter.data.copy_(values[name])

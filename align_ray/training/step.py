"""The model of a training, its losses, its gradients and the average of its weights: torch alone, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from align_ray.corpora.rows import Rows
from align_ray.errors import ConfigError, first_line
from align_ray.fisher.probe import four_bit_model, has_bfloat16, load_model, random_model

AVERAGE = 3
"""The average of the weights is over about the last quarter of the steps: 1 / (1 + AVERAGE)."""

LORA_SCALE = 2
"""Of LoRA's alpha to its rank: what the product of an adapter's factors is multiplied by."""


LOGITS = 2**27
"""Elements of the largest [tokens, vocabulary] array that is formed at once: 512 MiB in float32."""


def trainable_model(settings: dict[str, Any], device: Any) -> Any:
    """The model as a run starts from: its weights or random ones, in `dtype`; with LoRA, frozen but for the adapters,
    which are float32. Raises ConfigError where `lora_targets` names no module of it."""
    import torch

    located, scratch, dtype = settings["located"], settings["scratch"], settings["dtype"]
    if dtype == "nf4":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(four_bit_model(located, device), use_gradient_checkpointing=False)
    elif scratch is None:
        model = load_model(located, str(device), dtype)
    else:
        model = random_model(located, scratch).to(device, getattr(torch, dtype))
    return prepared(model, settings["lora_rank"], settings["lora_targets"], settings["checkpoint_layers"])


def prepared(model: Any, lora_rank: int | None, lora_targets: str | list[str], checkpoint_layers: bool) -> Any:
    """A model as it is trained: with adapters where there is a rank, and activations of its layers formed again in
    the backward pass where `checkpoint_layers`."""
    if checkpoint_layers:
        # the second is the name before transformers 5.24
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model if lora_rank is None else with_adapters(model, lora_rank, lora_targets)


def with_adapters(model: Any, lora_rank: int, lora_targets: str | list[str]) -> Any:
    """The model, frozen but for float32 LoRA adapters. Raises ConfigError where `lora_targets` names no module."""
    from peft import LoraConfig, get_peft_model

    given = {"lora_alpha": LORA_SCALE * lora_rank, "target_modules": lora_targets, "task_type": "CAUSAL_LM"}
    try:
        return get_peft_model(model, LoraConfig(r=lora_rank, **given))
    except ValueError as error:
        raise ConfigError(f"field 'finetune.lora_targets': {first_line(error)}") from None


def learned(model: Any) -> dict[str, Any]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def causal_model(model: Any) -> Any:
    """The transformers model inside of adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_losses(model: Any, ids: Any, positions: Any = None) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats.

    `ids`, `positions`: int [n, T]. Where positions begin at 0 again another document begins, which attends to nothing
    before it: transformers makes the block mask from the positions. Without positions every row is one document.
    Where [tokens, vocabulary] has more than LOGITS elements, logits are formed for some tokens after the others, and
    again in the backward pass.
    """
    import torch

    where = {} if positions is None else {"position_ids": positions}
    causal = causal_model(model)
    span = max(1, LOGITS // causal.config.get_text_config().vocab_size)
    if ids.numel() > span:
        return getattr(causal, IN_CHUNKS, partial(losses_in_chunks, causal))(ids, where, span).view(len(ids), -1)
    # adapters are within the model itself; to call what peft has around it would pass by the hooks of a sharded one
    logits = causal(input_ids=ids, use_cache=False, **where).logits[:, :-1].float()
    by_token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return by_token.view(len(ids), -1)


IN_CHUNKS = "losses_in_chunks"
"""What `losses_in_chunks` is as a method of a sharded model (`shard.py`)."""


def losses_in_chunks(causal: Any, ids: Any, where: dict[str, Any], span: int) -> Any:
    """`token_losses`, [n (T-1)], with logits of `span` tokens at once."""
    import torch
    from torch.utils.checkpoint import checkpoint

    output, labels = causal.base_model(input_ids=ids, use_cache=False, **where), ids[:, 1:].flatten()
    hidden = output.last_hidden_state[:, :-1].flatten(0, 1)

    def of(hidden: Any, labels: Any) -> Any:
        logits = _logits(causal, type(output), hidden).float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    parts = zip(hidden.split(span), labels.split(span), strict=True)
    return torch.cat([checkpoint(of, *part, use_reentrant=False) for part in parts])


def _logits(causal: Any, kind: Any, hidden: Any) -> Any:
    """Logits [n, V] of the trunk's output [n, C], by the model's own forward pass with the trunk left out: some models
    scale or cap what their head gives. `kind`: the class of the trunk's output."""
    trunk, one = causal.base_model, hidden[None]
    trunk.forward = lambda *_, **__: kind(last_hidden_state=one)
    try:
        return causal.forward(inputs_embeds=one, use_cache=False).logits[0]
    finally:
        del trunk.forward  # the class' own is seen again


def losses_of(model: Any) -> Any:
    """A module that holds the model as `model` and whose forward pass is `token_losses` of it: what is wrapped for
    several workers, so that all that reads weights is within its forward pass."""
    import torch

    class Losses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, positions: Any = None) -> Any:
            return token_losses(self.model, ids, positions)

    return Losses()


def model_in(losses: Any) -> Any:
    """The model in a module of `losses_of`, also inside of what Ray Train wraps around it for several workers."""
    return getattr(losses, "module", losses).model


def takes_positions(model: Any) -> bool:
    """Whether the model takes position ids, so that documents in one row can be kept apart (Bloom and MPT, whose
    positions are distances, do not)."""
    import inspect

    return "position_ids" in inspect.signature(causal_model(model).forward).parameters


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


def step_loss(losses: Any, rows: Rows, scored: int, device: Any, world: int = 1) -> Any:
    """A worker's part of a step's loss by a module of `losses_of`: the sum over its rows' tokens that count, divided by
    `scored`, those of all workers' rows together, times the number of workers, whose gradients are averaged. So every
    token weighs the same however rows are shared out."""
    import torch

    counts = torch.as_tensor(rows.scored[:, 1:], device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        by_token = losses(*on_device(rows, model_in(losses), device))
    return (by_token * counts).sum() * (world / max(1, scored))


def master_weights(model: Any) -> dict[str, Any]:
    """What the optimiser moves, by name: the trained parameters, of bfloat16 ones float32 copies, which small steps
    are not lost in."""
    import torch

    return {
        name: torch.nn.Parameter(p.detach().float()) if p.dtype == torch.bfloat16 else p
        for name, p in learned(model).items()
    }


def give_weights(model: Any, weights: dict[str, Any]) -> None:
    """Set the trained parameters to their master weights, or to others of the same names."""
    for name, parameter in learned(model).items():
        if weights[name] is not parameter:
            parameter.data.copy_(weights[name])


def add_gradients(
    losses: Any, weights: dict[str, Any], parts: Sequence[Rows], scored: int, device: Any, world: int = 1
) -> Any:
    """Add the gradients of a step to those of its master weights, in float32, and return the worker's part of the loss
    (see `step_loss`).

    `parts`: the worker's rows, in groups that go through the model one after the other, as many on every worker.
    """
    copied = [(weights[n], p) for n, p in learned(model_in(losses)).items() if weights[n] is not p]
    total = None
    for i, part in enumerate(parts):
        # workers' gradients are averaged once, unless they are of bfloat16 parameters, which do not add up well
        waits = not copied and i + 1 < len(parts) and hasattr(losses, "no_sync")
        with losses.no_sync() if waits else nullcontext():
            loss = step_loss(losses, part, scored, device, world)
            loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
        for master, parameter in copied:
            gradient, parameter.grad = parameter.grad.float(), None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    return total


class Average:
    """The average of a training's weights over about the last quarter of the steps so far, in float32, at any
    step and without knowing how many there will be: polynomial-decay averaging (Shamir and Zhang, arXiv 1212.1824)."""

    def __init__(self, model: Any, weights: dict[str, Any] | None = None) -> None:
        """`weights`: the model's master weights (default: its trained parameters)."""
        self.model, self.steps = model, 0
        self.weights = learned(model) if weights is None else weights
        self.values = {name: w.detach().float().clone() for name, w in self.weights.items()}

    def update(self) -> None:
        """Take in the weights after another step."""
        self.steps += 1
        share = (1 + AVERAGE) / (self.steps + AVERAGE)
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight.detach().float(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the average as its weights and is in evaluation mode."""
        now = {name: p.detach().clone() for name, p in learned(self.model).items()}
        was = self.model.training
        give_weights(self.model, self.values)
        self.model.eval()
        try:
            yield
        finally:
            give_weights(self.model, now)
            self.model.train(was)


def whole_step(model: Any, parts: Sequence[Rows], device: Any) -> Callable[[], float]:
    """A function that takes a step as a training does, on one worker, over rows in groups that go through the model one
    after the other, and returns its loss: to see what a step takes, not to train."""
    import torch

    losses, weights = losses_of(model), master_weights(model)
    optimiser = torch.optim.AdamW(weights.values(), lr=1e-5, weight_decay=0.0)
    average, scored = Average(model, weights), sum(int(part.scored[:, 1:].sum()) for part in parts)

    def step() -> float:
        loss = add_gradients(losses, weights, parts, scored, device)
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        give_weights(model, weights)
        optimiser.zero_grad()
        average.update()
        return float(loss)

    return step

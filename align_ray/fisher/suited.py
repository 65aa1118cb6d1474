"""Whether a model is one that the estimator's identities hold for (method 3.3): a forward pass of eight tokens tells.

On torch's fake tensors, which have shapes but no numbers, the pass needs neither weights nor memory. Logits are there
taken to be the head of the trunk's output where nothing is computed between: where tensors share their memory.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from align_ray.errors import ProbeError
from align_ray.fisher.trunk import trunk_modules

LENGTH = 8
"""Tokens of the pass."""


def check_probe(model: nn.Module, name: str = "") -> None:
    """Raise ProbeError where the logits are not the head of the trunk's output (scaled or capped logits, a projection
    between), where the trunk has weight matrices beside embeddings and linear modules that see every token once
    (mixture of experts, state spaces), or where the model goes by more than its input embeddings: the estimator's
    identities need the first and the last, and its embedding would leave the second out. `name`: of the probe, for
    the sentence."""
    fake = isinstance(next(model.parameters()), FakeTensor)
    if (
        fault := _weights_fault(model)
        or _linear_fault(model)
        or (_between_fault(model) if fake else _logits_fault(model))
    ):
        which = f"probe '{name}'" if name else "probe"
        raise ProbeError(f"{which}: {fault}, which is not supported; use a dense decoder-only transformer.")


def _weights_fault(model: nn.Module) -> str:
    """Told by the modules alone."""
    kind = type(model).__name__
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        return f"{kind} has no linear vocabulary head"
    counted = {m.weight for m in model.base_model.modules() if isinstance(m, nn.Linear | Conv1D | nn.Embedding)}
    stray = [name for name, p in model.base_model.named_parameters() if p.ndim > 1 and p not in counted]
    if any(name.endswith("A_log") for name in stray):
        return f"{kind} is a state-space model, whose weights are not all in linear modules"
    return f"'{stray[0]}' of {kind} does not see every token once (as in a mixture of experts)" if stray else ""


def _linear_fault(model: nn.Module) -> str:
    """Told by what the linear modules of the trunk see on the estimator's way through it."""
    kind, names = type(model).__name__, {m: name for name, m in trunk_modules(model).items()}
    seen: list[tuple[str, Tensor, int]] = []
    with ExitStack() as hooks, torch.enable_grad():
        for module in names:
            see: Callable[..., None] = lambda m, args, _: seen.append((names[m], args[0], args[0]._version))
            hooks.callback(module.register_forward_hook(see).remove)
        leaf = model.get_input_embeddings()(_tokens(model)).detach().requires_grad_()
        try:
            model.base_model(inputs_embeds=leaf, use_cache=False)
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                raise
            return f"{kind} changes its input embeddings in place"
        except TypeError as error:
            if "inputs_embeds" not in str(error):
                raise
            return f"{kind} takes no embeddings in the place of tokens"
    called = [name for name, *_ in seen]
    for name in names.values():
        if called.count(name) != 1:
            return f"'{name}' of {kind} does not see every token once"
    for name, x, version in seen:
        if x._version != version:
            return f"{kind} changes the input of '{name}' in place"
        if x.shape[:2] != (1, LENGTH):
            how = "sees the tokens of all sequences in one row" if len(x) == LENGTH else "does not see every token once"
            return f"'{name}' of {kind} {how}"
    return ""


@torch.no_grad()
def _between_fault(model: nn.Module) -> str:
    """Whether anything is computed between the trunk's output and the head, or after it; told without numbers."""
    kind, trunk, passed = type(model).__name__, set(), []
    with ExitStack() as hooks:
        for module in (model.base_model, *model.base_model.children()):
            note: Callable[..., None] = lambda _, __, output: trunk.add(_memory(output))
            hooks.callback(module.register_forward_hook(note).remove)
        see: Callable[..., None] = lambda _, args, output: passed.append(
            (_memory(args[0]), _memory(output), output._version)
        )
        hooks.callback(model.get_output_embeddings().register_forward_hook(see).remove)
        logits = model(input_ids=_tokens(model), use_cache=False).logits
    before, *after = passed[0]
    if before not in trunk:
        return f"{kind} changes the trunk's output before the vocabulary head"
    return "" if after == [_memory(logits), logits._version] else _CHANGED.format(kind)


@torch.no_grad()
def _logits_fault(model: nn.Module) -> str:
    """Whether the logits are the head of what the trunk makes of input embeddings; told by the numbers."""
    tokens, head = _tokens(model), model.get_output_embeddings()
    logits = model(input_ids=tokens, use_cache=False).logits
    embedded = {"inputs_embeds": model.get_input_embeddings()(tokens)}
    if _close(logits, head(model.base_model(**embedded, use_cache=False).last_hidden_state)):
        return ""
    if _close(logits, head(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state)):
        return f"{type(model).__name__} goes by more than its input embeddings"
    return _CHANGED.format(type(model).__name__)


_CHANGED = "{} changes its logits after the vocabulary head"


def _tokens(model: nn.Module) -> Tensor:
    embedding = model.get_input_embeddings().weight
    return torch.arange(LENGTH, device=embedding.device)[None] % len(embedding)


def _memory(of: Any) -> int:
    """Where a tensor lies, or the first one of a module's output; views lie where what they are of does."""
    return (of if isinstance(of, Tensor) else of[0]).untyped_storage()._cdata


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)

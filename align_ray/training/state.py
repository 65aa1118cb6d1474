"""A training that is under way, in the store: what goes on from there is as if it had never stopped.

One safetensors file a training: trained weights, their average, AdamW's moments and, as UTF-8 bytes, the position. It
appears whole or not at all, so that a worker, node or driver may die at any time, and any worker can go on. Of a model
that workers share (`shard.py`) it holds all of every tensor, so that another number of workers can go on.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from align_ray.store import Store
from align_ray.training.shard import share_like, whole
from align_ray.training.step import Average, give_weights


@dataclasses.dataclass
class Progress:
    """How far a training is."""

    average: Average
    """Of the weights so far."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """The loss of every step's batch before the step, nats per token."""
    rungs: list[Any] = dataclasses.field(default_factory=list)
    """What was measured at the rungs that were passed."""
    seconds: float = 0.0
    """Of training alone, without what measures losses."""


def state_file(key: str) -> str:
    """Where in the store a training's state is."""
    return f"finetune/state/{key}.safetensors"


def save_state(store: Store, key: str, optimiser: Any, progress: Progress, write: bool = True) -> None:
    """Write a training's state, over the one before; of a model that workers share all take part, and one writes.
    Raises StoreError where that fails."""
    import torch
    from safetensors.torch import save

    tensors = {f"model/{name}": w.detach() for name, w in progress.average.weights.items()}
    tensors |= {f"average/{name}": value for name, value in progress.average.values.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{i}/{name}": value for name, value in moments.items()}
    tensors = {name: whole(value, write) for name, value in tensors.items()}
    if not write:
        return
    position = {"losses": progress.losses, "rungs": progress.rungs, "seconds": progress.seconds}
    position["averaged"] = progress.average.steps
    tensors["position"] = torch.from_numpy(np.frombuffer(json.dumps(position).encode(), np.uint8).copy())
    store.write_bytes(state_file(key), save({name: value.contiguous() for name, value in tensors.items()}))


def load_state(store: Store, key: str, optimiser: Any, progress: Progress) -> None:
    """Take up what the store holds of a training, if it holds anything whole."""
    from safetensors.torch import load

    found = store.find(state_file(key), load)
    if found is None:
        return
    position = json.loads(bytes(found.pop("position").numpy()))
    for name, weight in progress.average.weights.items():
        weight.data.copy_(share_like(found[f"model/{name}"], weight))
        progress.average.values[name].copy_(share_like(found[f"average/{name}"], weight))
    give_weights(progress.average.model, progress.average.weights)
    weights = list(progress.average.weights.values())
    moments: dict[int, dict[str, Any]] = {}
    for name, value in found.items():
        part, _, rest = name.partition("/")
        if part == "optimiser":
            index, _, which = rest.partition("/")
            # AdamW's own count of steps is one number, whole on every worker
            like = weights[int(index)] if value.ndim else value
            moments.setdefault(int(index), {})[which] = share_like(value, like)
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    progress.average.steps = position["averaged"]
    progress.losses, progress.rungs, progress.seconds = position["losses"], position["rungs"], position["seconds"]

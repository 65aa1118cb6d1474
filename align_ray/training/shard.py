"""A model that is shared out among the workers of a run: torch's FSDP2 (`fully_shard`).

Every worker holds its share of each weight, of its gradient and of AdamW's states; a block's weights are gathered where
it is computed, forward and backward, and given up again. Weights that are trained are shared out in float32, as master
weights; with `dtype: bfloat16` they are gathered in bfloat16, and gradients are added up in float32. LoRA's adapters
are whole on every worker, since they are small; the frozen base is shared out in its own dtype.

Gradients come as by data-parallel workers: their average (`step.step_loss`). torch alone, without Ray.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from align_ray.errors import ConfigError
from align_ray.training.step import IN_CHUNKS, causal_model, learned, losses_in_chunks


def shard(model: Any, device: Any, dtype: str) -> Any:
    """A model as it is trained (`step.prepared`), on the CPU and the same on every worker, shared out among all workers
    of torch's process group, on `device`. `dtype`: of `finetune.dtype`.

    Raises ConfigError where transformers does not say which modules are the model's blocks.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if device.type == "cuda":
        torch.cuda.set_device(device)  # the mesh takes the current device
    causal = causal_model(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    adapters = set(learned(model).values()) if causal is not model else set()
    for adapter in adapters:
        adapter.data = adapter.data.to(device)
    low = dtype == "bfloat16" and not adapters
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
    for module in [*blocks(causal), causal]:
        if low:
            for weight in module.parameters():  # one block after the other: the whole model in float32 is twice as much
                weight.data = weight.data.float()
        # a root that stayed gathered after a pass would have no shares to move its average or its state to
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=adapters)
        # add up and divide, on gloo as on NCCL, in place of each backend's own way to average
        module.set_force_sum_reduction_for_comms(True)
    setattr(causal, IN_CHUNKS, partial(losses_in_chunks, causal))
    register_fsdp_forward_method(causal, IN_CHUNKS)
    return model


def blocks(causal: Any) -> list[Any]:
    """The decoder blocks of a transformers model. Raises ConfigError where it does not name their class."""
    kinds = causal._no_split_modules or ()
    found = [module for module in causal.modules() if type(module).__name__ in kinds]
    if not found:
        raise ConfigError(
            f"field 'finetune.shard': {type(causal).__name__} does not say which modules are its blocks "
            "(_no_split_modules), so it cannot be shared out; take it out, or choose another model."
        )
    return found


def is_sharded(model: Any) -> bool:
    """Whether `shard` has shared it out."""
    return hasattr(causal_model(model), IN_CHUNKS)


def average_gradients(weights: Iterable[Any]) -> None:
    """Average over all workers the gradients of weights that every worker holds whole (LoRA's adapters); those of
    shares are averaged as they come."""
    import torch

    gradients = [w.grad for w in weights if w.grad is not None and not _is_share(w)]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def whole(tensor: Any, keep: bool = True) -> Any:
    """A tensor with all workers' shares, on the CPU, where `keep`, else None. All workers take part, in one order."""
    gathered = tensor.full_tensor() if _is_share(tensor) else tensor
    return gathered.cpu() if keep else None


def share_like(found: Any, tensor: Any) -> Any:
    """Of a whole tensor, the same on every worker, what `tensor` is: its worker's share, or all of it."""
    from torch.distributed.tensor import distribute_tensor

    if not _is_share(tensor):
        return found
    # without a source every worker cuts its share itself, and nothing is sent
    return distribute_tensor(found, tensor.device_mesh, tensor.placements, src_data_rank=None)


def _is_share(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")

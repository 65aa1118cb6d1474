"""The model of a training and its losses: torch alone, without Ray."""

from typing import Any

import numpy as np

from align_ray.fisher.probe import has_bfloat16, load_model, random_model


def trainable_model(settings: dict[str, Any], device: Any) -> Any:
    """The model as a run starts from: its weights or random ones; with LoRA, frozen but for the adapters."""
    located, scratch, rank = settings["located"], settings["scratch"], settings["lora_rank"]
    model = load_model(located, str(device)) if scratch is None else random_model(located, scratch).to(device)
    if rank is None:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def token_losses(model: Any, ids: Any) -> Any:
    """Cross-entropy of every next token, [n, T-1], nats."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def heldout_losses(model: Any, ids: Any) -> np.ndarray:
    """Cross-entropy of every next token, float32 [n, T-1], nats; matrices in bfloat16 where the device has it (which
    moves a loss by about 1e-4), softmax in float32."""
    import torch

    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=has_bfloat16(ids.device)):
        return torch.cat([token_losses(model, chunk).float().cpu() for chunk in ids.split(8)]).numpy()


def sequence_losses(model: Any, ids: Any) -> np.ndarray:
    """Mean cross-entropy of each sequence, float64 [n], nats per token."""
    return heldout_losses(model, ids).astype(np.float64).mean(1)

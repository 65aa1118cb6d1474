"""The loss of a mixture without training on it: of the base with the candidates' trained changes added, by its weights.

L(theta_0 + sum_k w_k delta_k), delta_k what a training on candidate k alone changed (DeMix, arXiv 2602.00747). Of LoRA
the products are added, never the factors. Mixtures are shared out among actors by Ray Data; what was measured is in the
store.
"""

import time
from typing import Any

import numpy as np

from align_ray.config import digest
from align_ray.context import Study
from align_ray.corpora.rows import Rows, validation_half
from align_ray.embedding.pool import on_actors
from align_ray.errors import StoreError, named
from align_ray.progress import counted
from align_ray.spending import deadline
from align_ray.store import Store
from align_ray.training.loop import weights_file
from align_ray.training.step import LORA_SCALE, heldout_losses, sequence_losses

ROWS = 16
"""Held-out rows of a target, of the half that chooses, on which a merged model is measured at most."""


def merged_losses(
    study: Study, heldout: dict[str, Rows], experts: list[str], mixtures: np.ndarray
) -> dict[str, np.ndarray]:
    """By target float64 [n], nats per token, of `mixtures` [n, K]; `experts`: the keys of the candidates' trainings,
    whose weights the store keeps. Raises CapReached where `cost.max_cost` is used up."""
    import ray

    store, part = study.store, {t: validation_half(rows)[:ROWS] for t, rows in heldout.items()}
    fixed = digest([experts, study.model.digest, {t: rows.digest() for t, rows in part.items()}])
    files = [f"finetune/merged/{digest([fixed, w.round(9).tolist()])}.json" for w in mixtures]
    todo = {f: w for f, w in zip(files, mixtures, strict=True) if store.find_json(f) is None}
    if todo:
        rows = ray.data.from_items([{"file": f, "weights": w.tolist()} for f, w in todo.items()])
        made_of = study.model, study.config.finetune.lora_rank, store, part, experts, deadline()
        for _ in counted(on_actors(study, rows, Merged, made_of, len(todo)), "merged models measured", len(todo)):
            pass
    found = [store.read_json(f) for f in files]
    return {t: np.array([losses[t] for losses in found]) for t in heldout}


class Merged:
    """An actor that holds the base and the candidates' changes, and measures one mixture after the other."""

    def __init__(
        self, located: Any, lora_rank: int | None, store: Store, heldout: dict[str, Rows], experts: list[str],
        until: float | None,
    ) -> None:  # fmt: skip
        import torch

        from align_ray.fisher.probe import load_model

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.store, self.heldout, self.until = store, heldout, until
        self.model = load_model(located, str(self.device)).eval()
        self.parameters = dict(self.model.named_parameters())
        self.first = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.changes = [changes(store, key, self.model, lora_rank) for key in experts]

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        (row,) = rows.to_pylist()
        error = ""
        if not (self.until and time.time() > self.until):
            try:
                self._set(row["weights"])
                losses = {t: heldout_losses(self.model, part, self.device) for t, part in self.heldout.items()}
                means = {t: float(sequence_losses(values).mean()) for t, values in losses.items()}
                self.store.write_json(row["file"], means)
            except StoreError as reason:
                error = named(reason)
        return {"file": [row["file"]], "error": [error]}

    def _set(self, weights: list[float]) -> None:
        for name, parameter in self.parameters.items():
            total = self.first[name].float()
            for share, change in zip(weights, self.changes, strict=True):
                if share > 0 and name in change:
                    total = total + share * change[name].to(total.device).float()
            parameter.data.copy_(total)


def changes(store: Store, key: str, model: Any, lora_rank: int | None) -> dict[str, Any]:
    """What a training changed, by the name of the base's parameter; of LoRA the product of its two factors."""
    from safetensors.torch import load
    from transformers.pytorch_utils import Conv1D

    found = store.read(weights_file(key), load)
    if lora_rank is None:
        return found
    transposed = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    products = {}
    for name, factor in found.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            product = LORA_SCALE * found[name.replace(".lora_A.", ".lora_B.")].float() @ factor.float()
            products[f"{module}.weight"] = product.T if module in transposed else product
    return products

"""One interface over the estimators: a model and a batch of token ids in, the batch's unit for the store out."""

import functools
import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align_ray.errors import ProbeError
from align_ray.fisher.head_tuning import tuned_head, with_head
from align_ray.fisher.reference import outputs, published_entries, reference_blocks, reference_embedding
from align_ray.fisher.settings import REPLICATE, Estimator
from align_ray.fisher.tokens import PADDING, plain_ids
from align_ray.fisher.trunk import fisher_embeddings, trunk_modules
from align_ray.fisher.unit import Unit

log = logging.getLogger(__name__)


def embed_batch(
    model: nn.Module, ids: np.ndarray, settings: Estimator, seed: int, pad: int, step: int | None = None
) -> tuple[Unit, int | None]:
    """Embed one batch, int [B, T] (see `tokens.py`), by the estimator the settings name.

    The model is left as it was. Returns the unit and the sequences per pass that the memory held (see
    `fisher_embeddings`). Sequences whose embedding is not finite are left out and named in `Unit.skipped`; raises
    ProbeError where none is left.
    """
    start = time.perf_counter()
    if settings.estimator == "reference":
        parts = _reference(model, ids, settings, seed, pad)
    else:
        if settings.head_tuning == "per_batch":
            model = with_head(model, tuned_head(model, ids))
        draws = settings.draws if settings.estimator == "exact" else 0
        result = fisher_embeddings(model, ids, draws, seed, step)
        step = result.step
        parts = _pooled(result, settings)
    return Unit(
        **parts, sequences=len(ids), tokens=int((ids != PADDING).sum()), seconds=time.perf_counter() - start
    ), step


def pooled_rows(rows: Tensor, settings: Estimator) -> Tensor:
    """Embeddings [..., n, D] whose mean over n is the batch's embedding: as they are (`mean`, the paper's), or
    normalised to unit sum (`unit`): per-sequence embeddings are heavy-tailed, so that one outlier can dominate a
    mean. Of D entries those that are kept."""
    pooled = rows / rows.sum(-1, keepdim=True) if settings.pooling == "unit" else rows
    kept = kept_filters(rows.shape[-1], settings.filters)
    return pooled if kept is None else pooled[..., torch.from_numpy(kept).to(rows.device)]


@functools.cache
def kept_filters(total: int, filters: int | None) -> np.ndarray | None:
    """Places of the entries of a block that are kept, int64, increasing; None for all. A random choice: the scaled
    cosine is a ratio of sums over entries, so that it is estimated from some of them. It depends on these two numbers
    alone, so that embeddings made at any time, of any corpus, hold the same entries."""
    if filters is None or filters >= total:
        return None
    return np.sort(np.random.Generator(np.random.Philox(key=total)).choice(total, filters, replace=False))


def stored_numbers(model: nn.Module, settings: Estimator) -> tuple[int, int]:
    """Entries D of the model's embedding, all blocks together, and how many numbers (float32) a batch's unit holds of
    them: those that are kept, once per label draw, and their variances. The model may be on torch's meta device."""
    if settings.estimator == "reference":
        entries = sum(published_entries(model, settings.quirks))
        return entries, settings.draws * entries
    vocabulary = len(model.get_output_embeddings().weight)
    blocks = [(vocabulary, 1)]
    if settings.estimator == "exact":
        blocks.append((sum(outputs(module) for module in trunk_modules(model).values()), settings.draws))
    kept = [(min(total, settings.filters or total), draws) for total, draws in blocks]
    return sum(total for total, _ in blocks), sum(entries * (draws + 1) for entries, draws in kept)


def _pooled(result: Any, settings: Estimator) -> dict[str, Any]:
    finite = result.finite()
    skipped = torch.nonzero(~finite).flatten().tolist()
    if skipped:
        log.warning("left out sequences %s of a batch: their Fisher embeddings are not finite", skipped)
    if not finite.any():
        raise ProbeError(
            "the probe gives no finite Fisher embedding for any sequence of a batch; its weights or its dtype are not "
            "usable."
        )
    rows = {"trunk": result.trunk[:, finite], "head": result.head[None, finite]}
    pooled = {name: pooled_rows(r, settings) for name, r in rows.items() if r.numel()}
    return {
        "blocks": {name: _array(r.mean(1)) for name, r in pooled.items()},
        "variances": {name: _array(r.mean(0).var(0, correction=min(1, r.shape[1] - 1))) for name, r in pooled.items()},
        "loss": result.loss[finite].mean().item(),
        "skipped": tuple(skipped),
    }


def _reference(model: nn.Module, ids: np.ndarray, settings: Estimator, seed: int, pad: int) -> dict[str, Any]:
    # as published: it knows no context, all tokens count
    tokens = torch.as_tensor(plain_ids(ids, pad), dtype=torch.long, device=next(model.parameters()).device)
    mask = torch.as_tensor(ids != PADDING, device=tokens.device).long()
    seeds = [seed + REPLICATE * r for r in range(settings.draws)]
    draws = [reference_embedding(model, tokens, mask, pad, s, settings.quirks) for s in seeds]
    parts = [reference_blocks(model, draw, settings.quirks) for draw in draws]
    if not all(torch.isfinite(draw).all() for draw in draws):
        raise ProbeError(
            "the reference procedure gives non-finite gradients on a batch; its sequences cannot be told apart."
        )
    loss = fisher_embeddings(model, ids, 0, seed).loss.mean().item()
    blocks = {name: _array(torch.stack([part[name] for part in parts])) for name in parts[0]}
    return {"blocks": blocks, "variances": {}, "loss": loss, "skipped": ()}


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()

"""How the embeddings of sequences make that of a batch.

Per-sequence embeddings are heavy-tailed: one outlier can dominate a mean. `mean` is the paper's and the definition of the
Fisher information; `unit` and `winsorised` limit what one sequence can do.
"""

from torch import Tensor

CLIP_QUANTILE = 0.9


def pooled_rows(rows: Tensor, pooling: str) -> Tensor:
    """Embeddings [..., n, D] whose mean over n is the batch's embedding: as they are (`mean`), normalised to unit sum
    (`unit`, additive over sequences), or clipped entry by entry at the 90 % quantile over n (`winsorised`)."""
    if pooling == "unit":
        return rows / rows.sum(-1, keepdim=True)
    if pooling == "winsorised":
        kept = max(1, round(CLIP_QUANTILE * rows.shape[-2]))
        return rows.minimum(rows.kthvalue(kept, dim=-2, keepdim=True).values)
    return rows

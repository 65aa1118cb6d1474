"""How token ids say which tokens count: numpy alone.

An array of token ids holds a token that counts as its id (0 or more), padding as -1, and a token that is only context,
such as a prompt's, as -2 - id. So one array goes through sampling, embedding and word counts, and a batch's digest
tells its mask as well.
"""

from typing import Any

import numpy as np

PADDING = -1
"""Stands for padding in token ids."""


def as_context(ids: np.ndarray) -> np.ndarray:
    """The same tokens, none of which counts."""
    return np.where(ids > PADDING, -2 - ids, ids)


def plain_ids(ids: np.ndarray, pad: int = 0) -> np.ndarray:
    """The tokens' own ids, whether they count or not; `pad` at padding."""
    return np.where(ids < PADDING, -2 - ids, np.where(ids == PADDING, pad, ids))


def counted_positions(ids: np.ndarray) -> np.ndarray:
    """bool [n, T]: the positions at which labels are drawn and squares taken. A position counts where the token that it
    predicts does; the last one of a row where its own does."""
    following = np.concatenate([ids[:, 1:], np.full((len(ids), 1), PADDING, ids.dtype)], axis=1)
    return np.where(following == PADDING, ids, following) >= 0


def scored_positions(ids: np.ndarray) -> np.ndarray:
    """bool [n, T]: the positions whose next token is there and counts."""
    following = np.concatenate([ids[:, 1:], np.full((len(ids), 1), PADDING, ids.dtype)], axis=1)
    return (ids != PADDING) & (following >= 0)


def texts_of(rows: np.ndarray, tokenizer: Any, counted: bool = False) -> list[str]:
    """Text of rows [n, T] of token ids, without special tokens: of all tokens, or of those that count."""
    kept = [row[row >= 0] if counted else plain_ids(row[row != PADDING]) for row in rows]
    return tokenizer.batch_decode([row.tolist() for row in kept], skip_special_tokens=True)

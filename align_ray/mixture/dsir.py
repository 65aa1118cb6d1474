"""The mixture that DSIR would choose: what n-gram importance resampling takes of every candidate."""

from typing import Any

import numpy as np

from align_ray.alignment.baselines import dsir_weights
from align_ray.config import Config
from align_ray.corpora.sample import read_sample
from align_ray.store import Store

DSIR_TEXTS = 256
"""Texts that DSIR selects, out of the candidates' training samples."""


def _dsir(config: Config, store: Store, tokenizer: Any) -> np.ndarray:
    def texts(rows: np.ndarray) -> list[str]:
        return tokenizer.batch_decode([row[row >= 0].tolist() for row in rows], skip_special_tokens=True)

    candidates = {c.name: texts(read_sample(store, c.name).training) for c in config.candidates}
    flat = lambda name: (b := read_sample(store, name).batches).reshape(-1, b.shape[-1])  # noqa: E731
    targets = [text for t in config.targets for text in texts(flat(t.name))]
    return dsir_weights(candidates, targets, DSIR_TEXTS, config.seed)

"""The mixture that DSIR would choose (Data Selection via Importance Resampling, arXiv 2302.03169): the share of
every candidate among the texts that n-gram importance resampling takes of their pool."""

import numpy as np

from align_ray.alignment.baselines import dsir_weights
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.fisher.tokens import texts_of

TEXTS = 256
"""Selected, out of the candidates' training samples."""


def dsir_mixture(study: Study) -> np.ndarray:
    """Weights [K]."""

    def texts(rows: np.ndarray) -> list[str]:
        return texts_of(rows, study.tokenizer, counted=True)

    candidates = {c.name: texts(read_sample(study.store, c.name).training.encoded) for c in study.config.candidates}
    samples = [read_sample(study.store, t.name).batches for t in study.config.targets]
    targets = [text for batches in samples for text in texts(batches.reshape(-1, batches.shape[-1]))]
    return dsir_weights(candidates, targets, TEXTS, study.config.seed)

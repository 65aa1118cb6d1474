"""Is the predicted alignment of a mixture what its text measures? Mixtures are drawn, embedded and compared."""

from typing import Any

import numpy as np

from align_ray.alignment.coefficients import batch_matrix, measures, pooled_alignment
from align_ray.config import Config
from align_ray.corpora.sample import read_sample
from align_ray.embedding.pool import embed_batches
from align_ray.embedding.units import unit_id
from align_ray.fisher.probe import Located
from align_ray.mixture.constraints import Constraints
from align_ray.mixture.describe import mixture_alignment
from align_ray.mixture.goals import main_rows
from align_ray.store import Store
from align_ray.training.rows import mixture_rows

CHECKED = ("recommended", "uniform", "bad")


def check_mixtures(
    config: Config,
    store: Store,
    probe: Located,
    embedded: dict[str, Any],
    embeddings: dict[str, Any],
    limits: Constraints,
    mixtures: dict[str, Any],
) -> dict[str, Any]:
    """Draw sequences in each mixture's proportions, batch them together, embed them, and compare with the prediction.

    Independent text of the same kind: the prediction is from the first half of every corpus' batches, the mixture is drawn from the
    sequences of the second half. By mixture and target: predicted and measured pooled alignment with intervals.
    """
    size, batches = config.sampling.batch_size, {n: read_sample(store, n).batches[: len(embeddings[n])] for n in limits.names}
    halves = {n: len(b) // 2 for n, b in batches.items()}
    drawn_from = {n: b[halves[n] :].reshape(-1, b.shape[-1]) for n, b in batches.items()}
    drawn = {}
    for name in CHECKED:
        # as many batches as the text fills without repetition: copies are not independent
        shares = mixtures[name]["weights"]
        fills = min(len(drawn_from[n]) / shares[n] for n in limits.names if shares[n] > 0.01)
        count = min(max(2, int(fills) // size), max(2, config.sampling.batches // 2))
        everything = {n: len(rows) for n, rows in drawn_from.items()}
        rows = mixture_rows(drawn_from, everything, shares, size * count, config.seed)
        order = np.random.default_rng(config.seed).permutation(len(rows))
        drawn[name] = list(rows[order].reshape(count, size, -1))
    embed_batches(config, store, probe, [b for parts in drawn.values() for b in parts], embedded["dtype"])
    blocks = next(iter(measures(next(iter(embeddings.values()))).values()))
    rows_of = main_rows(embeddings)
    corpora = [rows_of[n][: max(1, halves[n])] for n in limits.names]
    result: dict[str, Any] = {}
    for name, parts in drawn.items():
        w = np.array([mixtures[name]["weights"][n] for n in limits.names])
        measured = batch_matrix([store.read_unit(embedded["key"], unit_id(b)) for b in parts], blocks)
        result[name] = {
            t.name: {
                "predicted": mixture_alignment(w, corpora, [rows_of[t.name]], np.ones(1)),
                "measured": vars(pooled_alignment(measured, rows_of[t.name])),
            }
            for t in config.targets
        }
    return result

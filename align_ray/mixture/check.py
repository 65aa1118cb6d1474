"""Is the predicted alignment of a mixture what its text measures? Mixtures are drawn, embedded and compared."""

from typing import Any

import numpy as np

from align_ray.alignment.coefficients import batch_matrix, main_blocks, pooled_alignment
from align_ray.context import Study
from align_ray.corpora.rows import Rows
from align_ray.embedding.evidence import Evidence
from align_ray.embedding.pool import embed_batches
from align_ray.embedding.units import units_of
from align_ray.mixture.constraints import Constraints
from align_ray.mixture.describe import mixture_alignment
from align_ray.training.rows import mixture_rows

CHECKED = ("recommended", "uniform", "bad")


def check_mixtures(
    study: Study, evidence: Evidence, constraints: Constraints, mixtures: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Draw sequences in each mixture's proportions, batch them together, embed them, and compare with the prediction.

    Independent text of the same kind: the prediction is from the first half of every corpus' batches, the mixture is
    drawn from the sequences of the second half. By mixture and target: predicted and measured pooled alignment with
    intervals.
    """
    config, rows_of = study.config, evidence.rows
    size, halves = config.sampling.batch_size, {n: len(evidence.batches[n]) // 2 for n in constraints.names}
    second = {n: evidence.batches[n][half:] for n, half in halves.items()}
    drawn_from = {n: Rows.plain(b.reshape(-1, b.shape[-1])) for n, b in second.items()}
    drawn = {}
    for name in CHECKED:
        # as many batches as the text fills without repetition: copies are not independent
        shares = mixtures[name]["weights"]
        fills = min(len(drawn_from[n]) / shares[n] for n in constraints.names if shares[n] > 0.01)
        count = min(max(2, int(fills) // size), max(2, config.sampling.batches // 2))
        everything = {n: len(rows) for n, rows in drawn_from.items()}
        rows = mixture_rows(drawn_from, everything, shares, size * count, config.seed).ids
        order = np.random.default_rng(config.seed).permutation(len(rows))
        drawn[name] = list(rows[order].reshape(count, size, -1))
    embed_batches(study, drawn.values(), evidence.dtype)
    corpora = [rows_of[n][: max(1, halves[n])] for n in constraints.names]
    result: dict[str, Any] = {}
    for name, parts in drawn.items():
        w = np.array([mixtures[name]["weights"][n] for n in constraints.names])
        units = units_of(study.store, evidence.key, parts)
        measured = batch_matrix(units, main_blocks(units))
        result[name] = {
            t.name: {
                "predicted": mixture_alignment(w, corpora, [rows_of[t.name]], np.ones(1), config.embedding.epsilon),
                "measured": vars(pooled_alignment(measured, rows_of[t.name], config.embedding.epsilon)),
            }
            for t in config.targets
        }
    return result

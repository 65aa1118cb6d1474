"""Sequential embedding: stop embedding a corpus as soon as its rank is settled (`sampling.sequential`).

All corpora start with FIRST_LOOK batches. At every look the ranking of every target is tested
(`comparison.unsettled`); the corpora whose place is not settled, and the targets concerned, get twice as many batches,
up to `sampling.batches`. The error is divided among the looks, so that the chance of any wrong decision about a
target's ranking stays below 5%.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from align_ray.alignment.comparison import contrasts, looks_of, unsettled
from align_ray.alignment.distance import distance_matrix
from align_ray.config import FIRST_LOOK
from align_ray.context import Study
from align_ray.embedding.evidence import read_evidence
from align_ray.embedding.pool import embed_missing


def embed_until_settled(study: Study) -> dict[str, Any]:
    """Embed look by look; returns the counts of `embed_missing` summed over looks, `used`: batches used by corpus,
    and `looks`: by look the batches embedded so far and the number of corpora whose rank is `unsettled`."""
    config = study.config
    looks = looks_of(FIRST_LOOK, config.sampling.batches)
    used = {c.name: looks[0] for c in config.corpora}
    total: dict[str, Any] = {}
    past = []
    for look, following in enumerate([*looks[1:], None]):
        done = embed_missing(study, used)
        for count in ("computed", "tokens", "actor_seconds"):
            done[count] += total.get(count, 0)
        total = done
        rows = read_evidence(study, done | {"used": used}, keep=False).rows
        waiting = open_corpora(rows, [t.name for t in config.targets], len(looks), config.embedding.epsilon)
        embedded = sum(map(len, rows.values()))
        study.say(f"look {look + 1}: {embedded} batches, rank not settled: {', '.join(sorted(waiting)) or 'none'}")
        past.append({"batches": embedded, "unsettled": len(waiting)})
        if not waiting or following is None:
            break
        used |= {name: following for name in waiting}
    return {**total, "used": used, "looks": past}


def open_corpora(
    rows: Mapping[str, np.ndarray], targets: list[str], looks: int, absolute: float | None = None
) -> set[str]:
    """The candidates whose rank for some target is not settled, and those targets; `rows`: batch embeddings [N, D]
    by corpus; `absolute`: epsilon of the distance, default relative."""
    candidates = [name for name in rows if name not in targets]
    waiting: set[str] = set()
    for target in targets:
        found = unsettled(contrasts([1 - distance_matrix(rows[c], rows[target], absolute) for c in candidates]), looks)
        waiting |= {candidates[k] for k in found} | ({target} if found else set())
    return waiting

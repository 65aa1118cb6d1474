"""Influence of every corpus (`alignment/influence.py`): one warm-up on all candidates together, then one Ray task a
corpus; kept in the store."""

import numpy as np

from align_ray.alignment.influence import (
    RANK,
    SEQUENCES,
    WARM_UP,
    Influence,
    adapted,
    corpus_influence,
    spread,
    warm_up,
)
from align_ray.config import digest
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.kept import is_kept, keep, kept
from align_ray.fisher.probe import Located
from align_ray.progress import counted
from align_ray.runtime import as_they_end, capacity
from align_ray.store import Store


def influences(study: Study) -> tuple[dict[str, Influence], dict[str, float]]:
    """Influence vectors of every corpus, and the seconds each took, its part of the warm-up included."""
    import ray

    store, located = study.store, study.probe
    rows = {c.name: np.concatenate(list(read_sample(store, c.name).batches)) for c in study.config.corpora}
    together = np.concatenate([spread(rows[c.name], WARM_UP) for c in study.config.candidates])
    start = f"influence/{digest([located.digest, RANK, together.tolist()])}.safetensors"
    some = {name: spread(r, SEQUENCES) for name, r in rows.items()}
    keys = {name: f"influence/{digest([start, ids.tolist()])}.safetensors" for name, ids in some.items()}
    resources = capacity(study.config.cluster).resources
    if not is_kept(store, start):
        ray.get(ray.remote(**resources)(_warm_up_task).remote(located, store, start, together))
    task = ray.remote(**resources)(_influence_task)
    todo = [name for name, key in keys.items() if not is_kept(store, key)]
    waiting = [task.remote(located, store, start, keys[name], some[name]) for name in todo]
    for _ in counted(as_they_end(waiting), "corpora's influence measured", len(todo)):
        pass
    found = {name: kept(store, key) for name, key in keys.items()}
    shared = kept(store, start)[1] / len(rows)
    vectors = {n: Influence(a["update"], a["gradient"], int(a["sequences"])) for n, (a, _) in found.items()}
    return vectors, {name: shared + seconds for name, (_, seconds) in found.items()}


def _warm_up_task(located: Located, store: Store, key: str, ids: np.ndarray) -> None:
    keep(store, key, located, lambda model: warm_up(adapted(model), ids))


def _influence_task(located: Located, store: Store, start: str, key: str, ids: np.ndarray) -> None:
    state, _ = kept(store, start)
    keep(store, key, located, lambda model: vars(corpus_influence(adapted(model), state, ids)))

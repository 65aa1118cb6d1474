"""Influence of every corpus (`alignment/influence.py`): one warm-up on all candidates together, then one Ray task a
corpus; kept in the store."""

from typing import Any

import numpy as np
import torch

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
from align_ray.fisher.probe import Located, load_model
from align_ray.runtime import capacity
from align_ray.store import Store


def influences(study: Study) -> tuple[dict[str, Influence], dict[str, float]]:
    """Influence vectors of every corpus, and the seconds each took, its part of the warm-up included."""
    import ray

    store, located = study.store, study.probe
    rows = {c.name: np.concatenate(list(read_sample(store, c.name).batches)) for c in study.config.corpora}
    together = np.concatenate([spread(rows[c.name], WARM_UP) for c in study.config.candidates])
    start = f"influence/{digest([located.digest, RANK, together.tolist()])}.safetensors"
    keys = {n: (f"influence/{digest([start, spread(r, SEQUENCES).tolist()])}.safetensors", r) for n, r in rows.items()}
    resources = capacity(study.config.cluster).resources
    if _found(store, start) is None:
        ray.get(ray.remote(**resources)(_warm_up_task).remote(located, store, start, together))
    task = ray.remote(**resources)(_influence_task)
    todo = [(key, spread(r, SEQUENCES)) for key, r in keys.values() if _found(store, key) is None]
    ray.get([task.remote(located, store, start, key, ids) for key, ids in todo])
    found = {name: _read(store, key) for name, (key, _) in keys.items()}
    shared = float(_read(store, start)["seconds"][0]) / len(rows)
    vectors = {
        name: Influence(arrays["update"], arrays["gradient"], int(arrays["sequences"]))
        for name, arrays in found.items()
    }
    return vectors, {name: shared + float(arrays["seconds"][0]) for name, arrays in found.items()}


def _found(store: Store, key: str) -> Any:
    from safetensors.numpy import load

    return store.find(key, load)


def _read(store: Store, key: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load(store.read_bytes(key))


def _probe(located: Located) -> Any:
    torch.set_num_threads(1)
    return adapted(load_model(located, "cuda" if torch.cuda.is_available() else "cpu"))


def _warm_up_task(located: Located, store: Store, key: str, ids: np.ndarray) -> None:
    _timed(store, key, lambda: warm_up(_probe(located), ids))


def _influence_task(located: Located, store: Store, start: str, key: str, ids: np.ndarray) -> None:
    _timed(store, key, lambda: vars(corpus_influence(_probe(located), _read(store, start), ids)))


def _timed(store: Store, key: str, work: Any) -> None:
    import time

    from safetensors.numpy import save

    begun = time.perf_counter()
    arrays = {name: np.asarray(value) for name, value in work().items()}
    store.write_bytes(key, save({**arrays, "seconds": np.array([time.perf_counter() - begun])}))

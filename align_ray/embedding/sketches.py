"""Gradient sketches of every corpus, one Ray task a corpus, kept in the store."""

from typing import Any

import numpy as np
import torch

from align_ray.alignment.gradients import BLOCKS, MINI_BATCH, SEQUENCES, SIZE, VECTORS, Sketches, corpus_sketches
from align_ray.config import digest
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.fisher.probe import Located, load_model
from align_ray.runtime import capacity
from align_ray.store import Store


def gradient_sketches(study: Study) -> tuple[dict[str, Sketches], dict[str, float]]:
    """Sketches of every corpus, and the seconds each took; one Ray task a corpus, results kept in the store."""
    import ray
    from safetensors.numpy import load

    store, located = study.store, study.probe
    room = capacity(study.config.cluster)
    keys = {}
    for corpus in study.config.corpora:
        rows = np.concatenate(list(read_sample(store, corpus.name).batches))
        count = min(SEQUENCES, len(rows) // MINI_BATCH * MINI_BATCH)
        ids = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
        keys[corpus.name] = (digest([located.digest, SIZE, ids.tolist()]), ids)
    todo = [(key, ids) for key, ids in keys.values() if store.find(f"gradients/{key}.safetensors", load) is None]
    task = ray.remote(**room.resources)(_sketch_task)
    ray.get([task.remote(located, store, key, ids) for key, ids in todo])
    found = {name: _read(store, key) for name, (key, _) in keys.items()}
    return {name: sketches for name, (sketches, _) in found.items()}, {
        name: seconds for name, (_, seconds) in found.items()
    }


def _sketch_task(located: Located, store: Store, key: str, ids: np.ndarray) -> None:
    import time

    from safetensors.numpy import save

    torch.set_num_threads(1)
    start = time.perf_counter()
    sketches = corpus_sketches(load_model(located, "cuda" if torch.cuda.is_available() else "cpu"), ids)
    tensors = {f"{v}/{b}": values for v in VECTORS for b, values in getattr(sketches, v).items()}
    store.write_bytes(
        f"gradients/{key}.safetensors", save({**tensors, "seconds": np.array([time.perf_counter() - start])})
    )


def _read(store: Store, key: str) -> tuple[Sketches, float]:
    from safetensors.numpy import load

    tensors: dict[str, Any] = load(store.read_bytes(f"gradients/{key}.safetensors"))
    return Sketches(**{v: {b: tensors[f"{v}/{b}"] for b in BLOCKS} for v in VECTORS}), float(tensors["seconds"][0])

"""Gradient sketches of every corpus, one Ray task a corpus, kept in the store."""

import numpy as np

from align_ray.alignment.gradients import BLOCKS, MINI_BATCH, SEQUENCES, SIZE, VECTORS, Sketches, corpus_sketches
from align_ray.alignment.influence import spread
from align_ray.config import digest
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.kept import is_kept, keep, kept
from align_ray.fisher.probe import Located
from align_ray.progress import counted
from align_ray.runtime import as_they_end, capacity
from align_ray.store import Store


def gradient_sketches(study: Study) -> tuple[dict[str, Sketches], dict[str, float]]:
    """Sketches of every corpus, and the seconds each took; one Ray task a corpus, results kept in the store."""
    import ray

    store, located = study.store, study.probe
    some, keys = {}, {}
    for corpus in study.config.corpora:
        rows = np.concatenate(list(read_sample(store, corpus.name).batches))
        ids = some[corpus.name] = spread(rows, min(SEQUENCES, len(rows) // MINI_BATCH * MINI_BATCH))
        keys[corpus.name] = f"gradients/{digest([located.digest, SIZE, ids.tolist()])}.safetensors"
    task = ray.remote(**capacity(study.config.cluster).resources)(_sketch_task)
    todo = [name for name, key in keys.items() if not is_kept(store, key)]
    waiting = [task.remote(located, store, keys[name], some[name]) for name in todo]
    for _ in counted(as_they_end(waiting), "corpora's gradients measured", len(todo)):
        pass
    found = {name: kept(store, key) for name, key in keys.items()}
    sketches = {
        name: Sketches(**{v: {b: arrays[f"{v}/{b}"] for b in BLOCKS} for v in VECTORS})
        for name, (arrays, _) in found.items()
    }
    return sketches, {name: seconds for name, (_, seconds) in found.items()}


def _sketch_task(located: Located, store: Store, key: str, ids: np.ndarray) -> None:
    def work(model):
        sketches = corpus_sketches(model, ids)
        return {f"{v}/{b}": values for v in VECTORS for b, values in getattr(sketches, v).items()}

    keep(store, key, located, work)

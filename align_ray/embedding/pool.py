"""The embedding stage: draw and batch every corpus, then compute the missing Fisher embeddings on a pool of actors.

One row of the Ray Data set is one batch, so that what a batch holds never depends on Ray's blocks. A batch whose unit is
already in the store is not computed again; an actor writes its unit before it returns, so nothing finished is lost.
"""

import itertools
import time
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from align_ray.config import Config, Corpus, Embedding
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import stored_units, unit_folder, unit_id
from align_ray.errors import ProbeError, StoreError, mistake
from align_ray.fisher.probe import Located, load_model, load_tokenizer
from align_ray.fisher.unit import Unit
from align_ray.progress import counted
from align_ray.runtime import capacity
from align_ray.spending import check_cap, deadline
from align_ray.store import Store


class FisherActor:
    """Holds the probe; embeds one batch per call and writes it to the store.

    A ProbeError or StoreError is returned, not raised: it is the user's to mend, and Ray would wrap it in the worker's traceback.
    After `until` (seconds since the epoch) nothing is computed any more.
    """

    def __init__(
        self,
        located: Located,
        store: Store,
        key: str,
        settings: Embedding,
        seed: int,
        dtype: str,
        head: str | None,
        until: float | None = None,
    ):
        torch.set_num_threads(1)
        self.until = until
        self.pad = load_tokenizer(located).eos_token_id or 0
        self.store, self.key, self.settings, self.seed = store, key, settings, seed
        self.load = lambda: probe_with_head(located, "cuda" if torch.cuda.is_available() else "cpu", dtype, store, head)
        self.model: Any = None
        self.step: int | None = None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        from align_ray.fisher.estimators import embed_batch

        if self.until and time.time() > self.until:
            return {"seconds": [0.0], "tokens": [0], "error": [""]}
        ids = np.asarray(rows["ids"][0]).reshape(rows["shape"][0])
        try:
            self.model = self.model or self.load()
            unit, self.step = embed_batch(self.model, ids, self.settings, self.seed, self.pad, self.step)
            self.store.write_unit(self.key, rows["unit"][0], unit)
        except (ProbeError, StoreError) as error:
            return {"seconds": [0.0], "tokens": [0], "error": [f"{type(error).__name__}: {error}"]}
        return {"seconds": [unit.seconds], "tokens": [unit.tokens], "error": [""]}


def probe_with_head(located: Located, device: str, dtype: str, store: Store, head: str | None) -> Any:
    """The probe, checked, with its own head or the stored one."""
    from align_ray.fisher.head_tuning import with_head
    from align_ray.fisher.trunk import check_probe

    model = load_model(located, device, dtype)
    check_probe(model)
    return with_head(model, load(store.read_bytes(head))["weight"].to(device)) if head else model


def _tune_shared_head(
    config: Config, store: Store, located: Located, dtype: str, head: str, resources: dict[str, float]
) -> None:
    """Tune the head on the first batch of every corpus, on one worker, and store it."""
    import ray

    def tune(rows: np.ndarray) -> bytes:
        from safetensors.torch import save

        from align_ray.fisher.head_tuning import tuned_head

        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return save({"weight": tuned_head(load_model(located, device, dtype), rows).cpu()})

    rows = np.concatenate([read_sample(store, c.name).batches[0] for c in config.corpora])
    store.write_bytes(head, ray.get(ray.remote(**resources)(tune).remote(rows)))


def embed_missing(config: Config, store: Store, located: Located, limits: dict[str, int] | None = None) -> dict[str, Any]:
    """Compute the units that the store does not hold, of the first `limits[name]` batches of every corpus (default: all);
    returns what `embed_batches` does."""
    limits = limits or {}
    by_corpus = [read_sample(store, c.name).batches[: limits.get(c.name)] for c in config.corpora]
    # the first batch of every corpus, then the second: what is there when a run stops early is even
    rounds = itertools.zip_longest(*by_corpus)
    return embed_batches(config, store, located, [b for r in rounds for b in r if b is not None])


def embedded_so_far(config: Config, store: Store, located: Located) -> dict[str, Any]:
    """What `embed_batches` returns, of the leading batches of every corpus that are stored: their number is in `limits`."""
    dtype, _, key = unit_folder(config, store, located)
    done = stored_units(store, key)
    batches = {c.name: [unit_id(b) for b in read_sample(store, c.name).batches] for c in config.corpora}
    limits = {name: len(list(itertools.takewhile(done.__contains__, units))) for name, units in batches.items()}
    counts = {"planned": sum(limits.values()), "computed": 0, "tokens": 0, "actor_seconds": 0.0}
    return {"key": key, "dtype": dtype, **counts, "limits": limits}






def embed_batches(
    config: Config, store: Store, located: Located, batches: list[np.ndarray], dtype: str | None = None
) -> dict[str, Any]:
    """Compute the units of batches (int32 [B, T] each) that the store does not hold whole; `dtype` of the probe: default, what
    `auto` means on the cluster as it is now.

    Returns counts: units planned, computed, tokens, actor seconds; the dtype of the probe and the folder of the units (`key`).
    Raises CapReached where `cost.max_cost` is used up.
    """
    import ray
    from ray.data import ActorPoolStrategy

    room = capacity(config.cluster)
    dtype, head, key = unit_folder(config, store, located, dtype)
    planned = {unit_id(b): b for b in batches}
    done = store.sound_units(key, planned)
    todo = [{"unit": u, "ids": b.ravel(), "shape": list(b.shape)} for u, b in planned.items() if u not in done]
    result = {"key": key, "dtype": dtype, "planned": len(planned), "computed": len(todo), "tokens": 0, "actor_seconds": 0.0}
    if todo:
        most = min(room.most, len(todo))
        if head and store.find(head, load) is None:
            _tune_shared_head(config, store, located, dtype, head, room.resources)
        receipts = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            FisherActor,
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=max(1, min(room.now, most))),
            fn_constructor_args=(located, store, key, config.embedding, config.seed, dtype, head, deadline()),
            num_cpus=room.resources["num_cpus"],
            num_gpus=room.resources["num_gpus"],
        )
        for receipt in counted(receipts.iter_rows(), "batches embedded", len(todo)):
            if receipt["error"]:
                raise mistake(receipt["error"])
            result["tokens"] += receipt["tokens"]
            result["actor_seconds"] += receipt["seconds"]
        check_cap(config)
    return result


def read_embeddings(
    config: Config, store: Store, embedded: dict[str, Any] | None = None, corpora: list[Corpus] | None = None
) -> dict[str, list[Unit]]:
    """The units of `corpora` (default: all) in the order of their batches. `embedded`: `key`, their folder, and where not all
    batches were embedded `limits`, their number by corpus; default: what the embedding stage left in embedding.json."""
    embedded = embedded or store.read_json("embedding.json")
    key, limits = embedded["key"], embedded.get("limits") or {}
    batches = {c.name: read_sample(store, c.name).batches[: limits.get(c.name)] for c in corpora or config.corpora}
    return {name: [store.read_unit(key, unit_id(b)) for b in rows] for name, rows in batches.items()}

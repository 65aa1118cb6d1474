"""A pool of actors that hold the probe: what is embedded or scored goes through here, a row of a Ray Data set at a
time.

A row is one batch (or one chunk of documents), so that what it holds never depends on Ray's blocks. Its result is in
the store before the actor returns, so nothing finished is lost, and what is there already is not computed again.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load

from align_ray import metrics
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import Folder, sound_units, stored_units, unit_folder, unit_id, write_unit
from align_ray.errors import ProbeError, StoreError, mistake, named
from align_ray.fisher.probe import Located, has_dropout, load_model
from align_ray.fisher.settings import Estimator
from align_ray.progress import counted
from align_ray.runtime import capacity
from align_ray.spending import check_cap, deadline
from align_ray.store import Store


class Work(Protocol):
    """What an actor does with a row; picklable."""

    def receipt(self, row: dict[str, Any]) -> dict[str, Any]:
        """What comes back of a row whether or not it was computed."""

    def __call__(
        self, probe: Callable[[], Any], row: dict[str, Any], step: int | None
    ) -> tuple[dict[str, Any], int | None]:
        """The counts of a row, and the sequences per pass that the memory held (`step`: those of the row before).
        `probe` gives the model, loading it the first time."""


class ProbeActor:
    """Holds the probe; does `work` on one row per call.

    A ProbeError or StoreError is returned, not raised: it is the user's to fix, and Ray would wrap it in the worker's
    traceback. After `until` (seconds since the epoch) nothing is computed any more.
    """

    def __init__(self, located: Located, folder: Folder, store: Store, work: Work, until: float | None = None):
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.probe = functools.cache(lambda: probe_with_head(located, device, folder, store))
        self.work, self.until = work, until
        self.step: int | None = None

    def __call__(self, rows: pa.Table) -> dict[str, list]:
        (row,) = rows.to_pylist()
        start, found, error = time.perf_counter(), {"tokens": 0, "computed": 0, **self.work.receipt(row)}, ""
        if not (self.until and time.time() > self.until):
            try:
                counts, self.step = self.work(self.probe, row, self.step)
                found |= counts
            except (ProbeError, StoreError) as reason:
                error = named(reason)
        return {k: [v] for k, v in {"seconds": time.perf_counter() - start, "error": error, **found}.items()}


def on_pool(study: Study, rows: Any, folder: Folder, work: Work, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Do `work` on every row of a Ray Data set, on as many actors as the cluster holds, at most `most`; yields what
    each gave.

    Raises the ProbeError or StoreError that an actor met, and CapReached where `cost.max_cost` is used up.
    """
    yield from on_actors(study, rows, ProbeActor, (study.probe, folder, study.store, work, deadline()), most)


def on_actors(
    study: Study, rows: Any, actor: type, arguments: tuple[Any, ...], most: int | None = None
) -> Iterator[dict[str, Any]]:
    """The same with any class of actors, made of the `arguments`: called with a row (Arrow), an actor gives lists of
    one value each, among them `error`, a user's mistake as `errors.named` writes it, or empty."""
    from ray.data import ActorPoolStrategy

    room = capacity(study.config.cluster)
    largest = min(room.most, most or room.most)
    receipts = rows.map_batches(
        actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=largest, initial_size=max(1, min(room.now, largest))),
        fn_constructor_args=arguments,
        num_cpus=room.resources["num_cpus"],
        num_gpus=room.resources["num_gpus"],
    )
    for receipt in receipts.iter_rows():
        if receipt["error"]:
            raise mistake(receipt["error"])
        yield receipt
    check_cap(study.config)


def probe_with_head(located: Located, device: str, folder: Folder, store: Store) -> Any:
    """The probe, checked, with its own head or the stored one."""
    from align_ray.fisher.head_tuning import with_head
    from align_ray.fisher.suited import check_probe

    model = load_model(located, device, folder.dtype)
    check_probe(model, located.name)
    return with_head(model, store.read(folder.head, load)["weight"].to(device)) if folder.head else model


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embeds the batch of a row and writes its unit."""

    store: Store
    key: str
    settings: Estimator
    seed: int
    pad: int

    def receipt(self, row: dict[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(
        self, probe: Callable[[], Any], row: dict[str, Any], step: int | None
    ) -> tuple[dict[str, Any], int | None]:
        from align_ray.fisher.estimators import embed_batch

        ids = np.frombuffer(row["ids"], "<i4").reshape(row["shape"]).copy()  # torch wants it writable
        unit, step = embed_batch(
            probe(), ids, self.settings, self.settings.seed_of(self.seed, row["number"]), self.pad, step
        )
        write_unit(self.store, self.key, row["unit"], unit)
        return {"tokens": unit.tokens, "computed": 1, "seconds": unit.seconds}, step


def embed_missing(study: Study, used: dict[str, int] | None = None) -> dict[str, Any]:
    """Compute the units that the store does not hold, of the first `used[name]` batches of every corpus (default: all);
    returns what `embed_batches` does."""
    used = used or {}
    return embed_batches(
        study, [read_sample(study.store, c.name).batches[: used.get(c.name)] for c in study.config.corpora]
    )


def say_if_inert(study: Study) -> None:
    """Say so where the published procedure's dropout does nothing, because the probe has none."""
    settings = study.config.embedding
    if settings.estimator == "reference" and settings.quirks.dropout and not has_dropout(study.probe):
        study.say("note: the probe has no dropout, so that embedding.quirks.dropout changes nothing")


def embedded_so_far(study: Study) -> dict[str, Any]:
    """What `embed_batches` returns, of the leading batches of every corpus that are stored: their number is in
    `used`."""
    folder = unit_folder(study)
    done = stored_units(study.store, folder.key)
    batches = {c.name: [unit_id(b) for b in read_sample(study.store, c.name).batches] for c in study.config.corpora}
    used = {name: len(list(itertools.takewhile(done.__contains__, units))) for name, units in batches.items()}
    counts = {"planned": sum(used.values()), "computed": 0, "tokens": 0, "actor_seconds": 0.0}
    return {"key": folder.key, "dtype": folder.dtype, **counts, "used": used}


def embed_batches(study: Study, by_corpus: Iterable[Iterable[np.ndarray]], dtype: str | None = None) -> dict[str, Any]:
    """Compute the units of batches (int32 [B, T] each, in their corpus' order) that the store does not hold whole;
    `dtype` of the probe: default, what `auto` means on the cluster as it is now.

    Returns counts: units planned, computed, tokens, actor seconds; the dtype of the probe and the folder of the units
    (`key`). Raises CapReached where `cost.max_cost` is used up.
    """
    import ray

    store, folder = study.store, unit_folder(study, dtype)
    # the first batch of every corpus, then the second: what is there when a run stops early is even
    rounds = enumerate(itertools.zip_longest(*by_corpus))
    planned: dict[str, tuple[int, np.ndarray]] = {}
    for number, batch in ((i, b) for i, batches in rounds for b in batches if b is not None):
        planned.setdefault(unit_id(batch), (number, batch))
    done = sound_units(store, folder.key, planned)
    todo = [
        {"unit": u, "number": i, "ids": b.astype("<i4").tobytes(), "shape": list(b.shape)}
        for u, (i, b) in planned.items()
        if u not in done
    ]
    tokens, seconds = 0, 0.0
    if folder.head and store.find(folder.head, load) is None:  # `samples` and `select` read it too
        _tune_shared_head(study, folder, folder.head)
    if todo:
        settings, pad = study.config.embedding.plain(), study.tokenizer.eos_token_id or 0
        work = Embed(store, folder.key, settings, study.config.seed, pad)
        rows = ray.data.from_items(todo, override_num_blocks=len(todo))
        for receipt in counted(on_pool(study, rows, folder, work, len(todo)), "batches embedded", len(todo)):
            tokens += receipt["tokens"]
            metrics.count("align_ray_batches", receipt["computed"])
            metrics.count("align_ray_tokens", receipt["tokens"], work="embedded")
            seconds += receipt["seconds"] if receipt["computed"] else 0.0
    counts = {"planned": len(planned), "computed": len(todo), "tokens": tokens, "actor_seconds": seconds}
    return {"key": folder.key, "dtype": folder.dtype, "used": None, **counts}


def _tune_shared_head(study: Study, folder: Folder, head: str) -> None:
    """Tune the head on the first batch of every corpus, on one worker, and store it under this name."""
    import ray

    located = study.probe

    def tune(rows: np.ndarray) -> bytes:
        from safetensors.torch import save

        from align_ray.fisher.head_tuning import tuned_head

        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return save({"weight": tuned_head(load_model(located, device, folder.dtype), rows).cpu()})

    rows = np.concatenate([read_sample(study.store, c.name).batches[0] for c in study.config.corpora])
    task = ray.remote(**capacity(study.config.cluster).resources)(tune)
    study.store.write_bytes(head, ray.get(task.remote(rows)))

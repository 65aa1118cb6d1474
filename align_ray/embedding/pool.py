"""The embedding stage: draw and batch every corpus, then compute the missing Fisher embeddings on a pool of actors.

One row of the Ray Data set is one batch, so that what a batch holds never depends on Ray's blocks. A batch whose unit is
already in the store is not computed again; an actor writes its unit before it returns, so nothing finished is lost.
"""

import dataclasses
import itertools
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load

from align_ray.config import Config, Corpus, Embedding, digest
from align_ray.corpora.draw import draw_corpora, make_batches
from align_ray.errors import CorpusError, ProbeError, StoreError, mistake
from align_ray.fisher.probe import Located, load_model, load_tokenizer
from align_ray.progress import counted
from align_ray.runtime import capacity
from align_ray.spending import check_cap, deadline
from align_ray.store import Store, Unit

VERSION = 2
"""Of the estimators and the unit's format; part of the key of every stored unit."""


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """What the study uses of one corpus; written to corpora/NAME.parquet."""

    batches: np.ndarray
    """int32 [N, B, T], embedded."""
    training: np.ndarray
    """int32 [n, T], sequences for fine-tuning (candidates)."""
    heldout: np.ndarray
    """int32 [m, T], sequences for the target's loss (targets); no document in common with `batches`."""


def embedding_key(config: Config, located: Located, dtype: str, head: str | None) -> str:
    """The folder of units that belong together: same probe, dtype, head, estimator and seed."""
    unused = {"quirks": {"absolute_epsilon"}} if config.embedding.estimator == "reference" else {"quirks"}
    settings = {**config.embedding.model_dump(exclude=unused), "dtype": dtype}
    return digest({"version": VERSION, "probe": located.digest, "head": head, "embedding": settings, "seed": config.seed})


def probe_dtype(settings: Embedding, use_gpu: bool) -> str:
    """The dtype that `auto` stands for here."""
    if settings.estimator == "reference":
        return "float32"
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if use_gpu or torch.cpu._is_avx512_bf16_supported() else "float32"


def head_name(config: Config, store: Store, located: Located, dtype: str) -> str | None:
    """File of the vocabulary head that is tuned once on the first batch of every corpus (`head_tuning: shared`)."""
    if config.embedding.head_tuning != "shared":
        return None
    rows = [unit_id(read_sample(store, c.name).batches[0]) for c in config.corpora]
    return f"heads/{digest([located.digest, dtype, rows])}.safetensors"


def unit_id(batch: np.ndarray) -> str:
    """Name of a batch: the digest of its token ids."""
    return digest([list(batch.shape), batch.ravel().tolist()])


def sample_corpora(config: Config, store: Store, located: Located) -> dict[str, Any]:
    """Draw every corpus and write its batches; returns and stores the counts by corpus (corpora.json).

    Documents of a target are split by their key: one half is embedded, the other is the held-out text on which
    fine-tuning is judged. A candidate's document that is also a target's (same text) is left out and counted as
    `in_target`. Raises CorpusError where a corpus gives fewer than two batches.
    """
    tokenizer = load_tokenizer(located)
    sampling, tune = config.sampling, config.finetune
    per_batch = sampling.batch_size * sampling.sequence_length
    target_tokens = 2 * max(sampling.batches * per_batch, tune.eval_tokens) + per_batch
    candidate_tokens = max(sampling.batches * per_batch, tune.tokens) + per_batch
    target_keys: set[bytes] = set()
    report: dict[str, Any] = {}
    wanted = [*((c, target_tokens) for c in config.targets), *((c, candidate_tokens) for c in config.candidates)]
    for corpus, drawn in draw_corpora(wanted, sampling, config.seed):
        is_target = corpus in config.targets
        counts = Counter(drawn.counts)
        if is_target:
            target_keys |= {key for key, _ in drawn.documents}
            embedded = [d for d in drawn.documents if d[0][-1] % 2 == 0]
            heldout = [d for d in drawn.documents if d[0][-1] % 2 == 1]
            training = []
        else:
            embedded = [d for d in drawn.documents if d[0] not in target_keys]
            counts["in_target"] = len(drawn.documents) - len(embedded)
            heldout, training = [], embedded
        sample = CorpusSample(
            _embedding_batches(corpus, embedded, tokenizer, config, counts),
            _sequences(training, tokenizer, config, tune.tokens),
            _sequences(heldout, tokenizer, config, tune.eval_tokens),
        )
        if is_target and len(sample.heldout) == 0:
            raise CorpusError(f"target '{corpus.name}' is too small to hold out text for its loss; give more documents.")
        _write_sample(store, corpus.name, sample)
        ratio = counts["sampled_tokens"] / max(1, counts["sampled_bytes"])
        report[corpus.name] = {
            "role": "target" if is_target else "candidate",
            "batches": len(sample.batches),
            "estimated_tokens": round(counts["bytes"] * ratio),
            "sample_digest": digest([k.hex() for k, _ in drawn.documents]),
            **counts,
        }
    store.write_json("corpora.json", report)
    return report


def _embedding_batches(corpus: Corpus, documents: list, tokenizer: Any, config: Config, counts: Counter) -> np.ndarray:
    batches = make_batches(documents, tokenizer, config.sampling, config.sampling.batches, counts).ids
    if len(batches) < 2:
        need = 2 * config.sampling.batch_size * config.sampling.sequence_length
        raise CorpusError(
            f"corpus '{corpus.name}' gives {len(batches)} batches ({counts['documents']} documents were read, {len(documents)} "
            f"different ones drawn), an interval needs 2 ({need} tokens); give more text or lower sampling.batch_size."
        )
    return batches


def _sequences(documents: list, tokenizer: Any, config: Config, tokens: int) -> np.ndarray:
    """Up to `tokens` tokens as int32 [n, T], one document after the other."""
    single = config.sampling.model_copy(update={"batch_size": 1, "packing": "pack"})
    rows = make_batches(documents, tokenizer, single, -(-tokens // single.sequence_length), Counter()).ids
    return rows[:, 0]


def _write_sample(store: Store, name: str, sample: CorpusSample) -> None:
    parts: dict[str, np.ndarray] = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
    rows = {
        "part": list(parts),
        "shape": [list(array.shape) for array in parts.values()],
        "ids": pa.array([array.ravel() for array in parts.values()], pa.list_(pa.int32())),
    }
    store.write_table(f"corpora/{name}.parquet", pa.table(rows))


def read_sample(store: Store, name: str) -> CorpusSample:
    """The stored sample of a corpus."""
    table = store.read_table(f"corpora/{name}.parquet")
    arrays = {}
    for row in range(table.num_rows):
        ids = np.asarray(table["ids"][row].values.to_numpy())
        arrays[table["part"][row].as_py()] = ids.reshape(table["shape"][row].as_py())
    return CorpusSample(**arrays)


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


def unit_folder(config: Config, store: Store, located: Located, dtype: str | None = None) -> tuple[str, str | None, str]:
    """The probe's dtype on the cluster as it is (unless it is given), the file of its tuned head, and the units' folder."""
    dtype = dtype or probe_dtype(config.embedding, capacity(config.cluster).use_gpu)
    head = head_name(config, store, located, dtype)
    return dtype, head, embedding_key(config, located, dtype, head)


def stored_units(store: Store, key: str) -> set[str]:
    """Names of the units of a folder."""
    return {name.removesuffix(".parquet") for name in store.names(f"embeddings/{key}")}


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

"""Names of stored embeddings: the folder of those that belong together, and the digest of each batch."""

import numpy as np
import torch

from align_ray.config import Config, Embedding, digest
from align_ray.corpora.sample import read_sample
from align_ray.fisher.probe import Located
from align_ray.runtime import capacity
from align_ray.store import Store

VERSION = 2
"""Of the estimators and the unit's format; part of the key of every stored unit."""


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


def unit_folder(config: Config, store: Store, located: Located, dtype: str | None = None) -> tuple[str, str | None, str]:
    """The probe's dtype on the cluster as it is (unless it is given), the file of its tuned head, and the units' folder."""
    dtype = dtype or probe_dtype(config.embedding, capacity(config.cluster).use_gpu)
    head = head_name(config, store, located, dtype)
    return dtype, head, embedding_key(config, located, dtype, head)


def stored_units(store: Store, key: str) -> set[str]:
    """Names of the units of a folder."""
    return {name.removesuffix(".parquet") for name in store.names(f"embeddings/{key}")}

"""Arrays that are computed once, in Ray tasks, and kept in the store with the seconds that it took."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from align_ray.fisher.probe import Located, load_model
from align_ray.store import Store


def is_kept(store: Store, name: str) -> bool:
    """Whether the arrays are there, whole."""
    return store.find(name, load) is not None


def kept(store: Store, name: str) -> tuple[dict[str, np.ndarray], float]:
    """The arrays by name, and the seconds they took. Raises StoreError where they are not there."""
    arrays = load(store.read_bytes(name))
    return arrays, float(arrays.pop("seconds")[0])


def keep(store: Store, name: str, located: Located, work: Callable[[Any], Mapping[str, Any]]) -> None:
    """Write what `work` makes of the model, which is loaded here (float32, one thread on a CPU)."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    arrays = work(load_model(located, "cuda" if torch.cuda.is_available() else "cpu"))
    seconds = np.array([time.perf_counter() - start])
    store.write_bytes(name, save({**{n: np.asarray(a) for n, a in arrays.items()}, "seconds": seconds}))

"""How this output folder was made, with version 0.1.0 (commit f9daaa1) checked out at V:

    cd V && PYTHONPATH=V:. python tests/embedding/output_0_1_0/make.py FOLDER      # V has tests/tiny.py

It prints the literal names that tests/embedding/test_old_output.py expects.
"""

import sys

import numpy as np
from align_ray.estimators import embed_batch
from align_ray.probe import Located

from align_ray.config import Config
from align_ray.embedding import CorpusSample, _write_sample, embedding_key, head_name, unit_id
from align_ray.store import Store
from tests.tiny import tiny_model

MAPPING = {
    "output": sys.argv[1],
    "targets": [{"name": "t", "source": "t.jsonl"}],
    "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
    "sampling": {"sequence_length": 12, "batch_size": 4, "batches": 2},
}
VARIANTS = (
    {"embedding": {"dtype": "float32"}},
    {"embedding": {"dtype": "bfloat16", "estimator": "head", "draws": 1}},
    {
        "embedding": {
            "dtype": "float32",
            "estimator": "reference",
            "quirks": {"dropout": False, "absolute_epsilon": False},
        }
    },
    {"embedding": {"dtype": "float32", "head_tuning": "shared", "pooling": "unit"}, "seed": 7},
)
probe, store = Located("", {}, "0123456789abcdef", 64), Store(sys.argv[1])
model = tiny_model("gpt2")
for i, corpus in enumerate("tab"):
    ids = np.random.default_rng(i).integers(0, 29, (2, 4, 12)).astype(np.int32)
    empty = np.zeros((0, 12), np.int32)
    _write_sample(store, corpus, CorpusSample(ids, empty, empty))
    config = Config.model_validate(MAPPING | VARIANTS[0])
    for batch in ids:
        unit, _ = embed_batch(model, batch, config.embedding, config.seed, 0)
        store.write_unit(embedding_key(config, probe, "float32", None), unit_id(batch), unit)
for variant in VARIANTS:
    config = Config.model_validate(MAPPING | variant)
    head = head_name(config, store, probe, config.embedding.dtype)
    print(variant, embedding_key(config, probe, config.embedding.dtype, head), head)

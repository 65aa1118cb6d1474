"""What a training's result is kept under."""

import numpy as np

from align_ray.config import Config, digest
from align_ray.context import Study
from align_ray.corpora.rows import Rows
from align_ray.fisher.probe import has_dropout, locate_probe
from align_ray.store import Store
from align_ray.training.jobs import TRAINER, Job, job_keys


def test_keys_of_the_default_are_those_from_before_there_were_dtypes_targets_and_tasks(tmp_path):
    def study(**finetune):
        mapping = {
            "output": str(tmp_path),
            "targets": [{"name": "t", "source": "t.jsonl"}],
            "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
            "finetune": {"batch_size": 4, **finetune},
        }
        config = Config.model_validate(mapping)
        return Study(config, Store(config.output), locate_probe(config.probe.plain()))

    rows, heldout = Rows.plain(np.arange(64).reshape(4, 16)), {"t": Rows.plain(np.arange(32).reshape(2, 16))}
    (key,) = job_keys(study(), heldout, [Job(rows, 1e-3, 7)])
    held, model = {"t": heldout["t"].digest()}, study().model
    fixed = [TRAINER + has_dropout(model), model.digest, 1, 4, None, held, None]
    assert key == digest([fixed, None, rows.digest(), 1e-3, 7])

    def keyed(**finetune):
        return job_keys(study(**finetune), heldout, [Job(rows, 1e-3, 7)])[0]

    assert keyed(micro_batch_size=1, checkpoint_layers=True, workers=2, shard=True, lora_targets=["c_attn"]) == key
    lora = keyed(lora_rank=2)
    assert len({key, lora, keyed(dtype="bfloat16"), keyed(lora_rank=2, lora_targets=["c_attn"])}) == 4

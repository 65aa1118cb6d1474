"""What a training's result is kept under, and what becomes of a share of trainings whose workers die."""

import os

import numpy as np
import pytest
from ray.train import WorkerGroupError

from align_ray.config import Config, digest
from align_ray.context import Study
from align_ray.corpora.rows import Rows
from align_ray.fisher.probe import has_dropout, locate_probe
from align_ray.store import Store
from align_ray.training.jobs import TRAINER, Job, job_keys, reached, train_share
from align_ray.training.loop import rungs_file
from align_ray.training.state import state_file


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


class Deaths:
    """Stands for Ray Train: `dies[key]` deaths before a job is through, with a checkpoint after each of `steps`."""

    def __init__(self, dies, steps=()):
        self.left, self.steps, self.done, self.written, self.shares = dict(dies), {*steps}, [], {}, []

    def reached(self, share):
        return [(job["key"] in self.done, self.written.get(job["key"])) for job in share]

    def run(self, share):
        self.shares.append("".join(job["key"] for job in share))
        failures = 0
        for job in share:
            while self.left.get(key := job["key"], 0):
                self.left[key] -= 1
                failures += 1
                if key in self.steps:
                    self.written[key] = self.written.get(key, 0.0) + 1.0
                if failures == 3:
                    raise WorkerGroupError(f"{key} died", {})
            self.done.append(key)

    def train(self, keys):
        train_share([{"key": key} for key in keys], self.run, self.reached)


def test_deaths_beside_a_training_that_goes_on_do_not_add_up():
    ray = Deaths({"a": 2, "b": 2, "c": 2, "d": 20}, steps="d")
    ray.train("abcd")
    assert ray.done == [*"abcd"] and ray.shares == ["abcd", "bcd", "cd", *["d"] * 6]


def test_a_job_that_dies_again_and_again_keeps_no_other_from_its_end():
    ray = Deaths({"b": 9})
    with pytest.raises(WorkerGroupError, match="b died"):
        ray.train("abcd")
    assert ray.done == [*"acd"] and ray.shares == ["abcd", "bcd", "cd"]
    ray.left = {}  # as when Ray Tune tries the share again
    ray.train("abcd")
    assert ray.done == [*"acdb"] and ray.shares[-1] == "b"


def test_where_the_next_job_dies_too_it_is_not_the_jobs_fault():
    ray = Deaths(dict.fromkeys("abcd", 9))
    with pytest.raises(WorkerGroupError, match="b died"):
        ray.train("abcd")
    assert ray.shares == ["abcd", "bcd"]


def test_how_far_a_job_is_follows_from_its_files(tmp_path):
    store, job = Store(str(tmp_path)), [{"key": "k"}]
    assert reached(store, job, None, False) == [(False, None)]
    store.write_bytes(state_file("k"), b"some")
    ((done, first),) = reached(store, job, None, False)
    assert not done and first > 0
    os.utime(tmp_path / state_file("k"), (first + 1, first + 1))
    assert reached(store, job, None, False) == [(False, pytest.approx(first + 1))]
    store.write_json(rungs_file("k"), {"rungs": [1, 2]})
    assert reached(store, job, 1, False)[0][0] and not reached(store, job, 2, False)[0][0]

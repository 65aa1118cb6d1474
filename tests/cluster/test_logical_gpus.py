"""Actors that Ray gives a GPU each, on a node that says it has two: Ray counts them, and the arithmetic is the CPU's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from align_ray import pipeline
from align_ray.config import Config
from align_ray.pipeline import evidence_of, open_study
from tests.conftest import actors_here

REPOSITORY = Path(__file__).resolve().parents[2]

CLUSTER = """
import json, os, sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from align_ray import pipeline
from align_ray.config import Config
from align_ray.embedding import pool
from align_ray.pipeline import open_study
from align_ray.runtime import capacity, connect
from align_ray.training.jobs import runs_at_once, scaling

mapping, notes = json.loads(sys.argv[1]), sys.argv[2]


class Tight(pool.ProbeActor):
    \"\"\"On a device whose memory holds three sequences; it writes down which GPU it has and how many go at once.\"\"\"

    def __init__(self, *arguments):
        import torch

        from align_ray.fisher import trunk

        super().__init__(*arguments)
        real = trunk._embed

        def tight(model, ids, draws, seed):
            if len(ids) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, ids, draws, seed)

        trunk._embed = tight
        self.note()

    def __call__(self, rows):
        found = super().__call__(rows)
        self.note()
        return found

    def note(self):
        (gpu,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        Path(notes, str(os.getpid())).write_text(json.dumps([gpu, os.environ["CUDA_VISIBLE_DEVICES"], self.step]))


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=2, num_gpus=2)
mapping["cluster"]["address"] = cluster.address
study = open_study(Config.model_validate(mapping))
connect(study.config.cluster)
room = capacity(study.config.cluster)
found = {"room": [room.resources, room.now, room.most]}
for name, said in {"whole": {}, "halves": {"gpus_per_worker": 0.5}, "shared": {"workers": 2, "shard": True}}.items():
    config = study.changed(finetune=said).config
    one = scaling(config, room.use_gpu)
    found[name] = [runs_at_once(config, room), one.num_workers, one.use_gpu, one.resources_per_worker]
pool.ProbeActor = Tight
pipeline.embed(study)
Path(notes, "found").write_text(json.dumps(found))
ray.shutdown()  # a driver that outlives its raylet exits with 1, and at the end of the process either may be first
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_actors_have_a_gpu_each_and_halve_their_passes_where_its_memory_runs_out(small_config, local_ray, tmp_path):
    """With the embeddings of one worker in this process; trainings are counted by the shares of GPUs that they take."""
    settings = {"embedding": {"dtype": "float32"}, "cluster": {}}
    notes = tmp_path / "notes"
    notes.mkdir()
    gpus = small_config(tmp_path / "gpus", **settings)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, json.dumps(gpus), str(notes)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((notes / "found").read_text())
    assert found["room"] == [{"num_cpus": 1.0, "num_gpus": 1.0}, 2, 2]
    assert found["whole"] == [2, 1, True, {"GPU": 1.0}] and found["halves"] == [4, 1, True, {"GPU": 0.5}]
    assert found["shared"] == [1, 2, True, {"GPU": 1.0}]
    actors = [json.loads(file.read_text()) for file in notes.iterdir() if file.name != "found"]
    assert sorted(gpu for gpu, *_ in actors) == ["0", "1"] and all(gpu == seen for gpu, seen, _ in actors)
    held = [step for *_, step in actors if step is not None]
    assert held and set(held) <= {1, 2, 3}, "four sequences of a batch did not fit"

    one = open_study(Config.model_validate(small_config(tmp_path / "one", **settings | {"cluster": {"max_actors": 1}})))
    with actors_here():
        pipeline.embed(one)
    mine, theirs = (dict(evidence_of(study).units) for study in (open_study(Config.model_validate(gpus)), one))
    assert mine.keys() == theirs.keys()
    for name, units in theirs.items():
        for a, b in zip(mine[name], units, strict=True):
            for block, values in b.blocks.items():
                np.testing.assert_allclose(a.blocks[block], values, rtol=1e-4, atol=1e-10)

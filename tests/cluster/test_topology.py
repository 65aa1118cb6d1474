"""The same study by one worker in this process, and on a cluster of several nodes from files in other order and other
pieces: the same result. Two workers of one node, and files in other order, are in embedding/test_stage.py."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from align_ray import pipeline
from align_ray.config import Config
from align_ray.embedding.units import read_unit
from align_ray.pipeline import open_study
from align_ray.store import Store
from tests.conftest import actors_here

REPOSITORY = Path(__file__).resolve().parents[2]

CLUSTER = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from align_ray import pipeline
from align_ray.pipeline import open_study
from align_ray.corpora import files as corpora
from align_ray.corpora import tasks
from align_ray.config import Config

mapping = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=2)
corpora.FRAGMENT_BYTES = tasks.TASK_BYTES = 2**13
mapping["cluster"]["address"] = cluster.address
pipeline.embed(open_study(Config.model_validate(mapping)))
ray.shutdown()  # a driver that outlives its raylet exits with 1, and at the end of the process either may be first
cluster.shutdown()
"""


def shuffled(source: Path, folder: Path) -> str:
    """The records of a file in random order, over five files."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"{9 - i}.jsonl").write_text("".join(lines[i::5]), encoding="utf-8")
    return str(folder)


@pytest.mark.slow
@pytest.mark.full
def test_workers_nodes_file_order_and_pieces_change_nothing(small_config, local_ray, corpora, tmp_path):
    def mapping(name, workers):
        search = {"method": "closed_form", "token_budget": 10_000}
        return small_config(tmp_path / name, cluster={"max_actors": workers}, search=search)

    many = mapping("nodes", 3)
    for corpus in many["targets"] + many["candidates"]:
        corpus["source"] = shuffled(Path(corpus["source"]), tmp_path / "shuffled" / corpus["name"])
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, json.dumps(many)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with actors_here():
        one = open_study(Config.model_validate(mapping("one", 1)))
        pipeline.embed(one)
        for study in (one, open_study(Config.model_validate(many))):
            pipeline.search(study)

    def units(name):
        (folder,) = (tmp_path / name / "embeddings").iterdir()
        return {p.name: p for p in folder.iterdir()}

    def blocks(name, unit):
        (folder,) = (tmp_path / name / "embeddings").iterdir()
        return read_unit(Store(str(tmp_path / name)), folder.name, unit.removesuffix(".parquet")).blocks

    def read(name, file):
        return json.loads((tmp_path / name / file).read_text())

    samples = {c: row["sample_digest"] for c, row in read("one", "corpora.json").items()}
    assert {c: row["sample_digest"] for c, row in read("nodes", "corpora.json").items()} == samples
    assert set(units("nodes")) == set(units("one"))  # names are digests of the batches' tokens
    for unit in units("one"):
        for block, values in blocks("one", unit).items():
            np.testing.assert_allclose(blocks("nodes", unit)[block], values, rtol=1e-5)
    found, expected = (read(n, "search.json")["mixtures"]["recommended"]["weights"] for n in ("nodes", "one"))
    assert found == pytest.approx(expected, abs=1e-6)

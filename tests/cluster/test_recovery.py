"""A worker and the driver killed in embed and finetune: the stage is started again and ends as an undisturbed one
(the search: mixture/test_search.py)."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from align_ray import pipeline
from align_ray.config import Config
from align_ray.config_file import load_config
from align_ray.context import Study
from tests.cluster.test_jobs import free_port
from tests.conftest import actors_here, trainings_here

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from soak_run import furthest, results, start_driver, workers  # noqa: E402

STAGES: dict[str, tuple[Callable[[Path], bool], tuple[str, ...]]] = {
    "embed": (lambda out: any((out / "embeddings").rglob("*.parquet")), ("ray::MapWorker(MapBatches(ProbeActor",)),
    "finetune": (lambda out: any((out / "finetune").glob("*.json")), ("ray::RayTrainWorker",)),
}
"""What a stage leaves once it is under way, and what its workers are called."""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a cluster in a process of their own; yields its address and that process' id. With a dashboard, as
    clusters have it: without one Ray Train leaves the placement groups of a killed driver."""
    script = f"""
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=3, include_dashboard=True, dashboard_port={free_port()}))
cluster.add_node(num_cpus=2)
print(cluster.address, flush=True)
input()
"""
    head = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    yield head.stdout.readline().strip(), head.pid
    family = psutil.Process(head.pid).children(recursive=True)
    head.kill()
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            pass


def kill_a_worker(driver: subprocess.Popen, head: int, kinds: tuple[str, ...], rng: random.Random) -> str:
    """Wait for workers while the driver lives, kill one and say which."""
    while driver.poll() is None:
        running = workers([head], kinds)
        for victim in rng.sample(running, len(running)):
            with contextlib.suppress(psutil.Error):  # it ended by itself: another one
                name = victim.name()
                victim.send_signal(signal.SIGKILL)
                return name
        time.sleep(0.05)
    raise AssertionError(f"the driver ended before any of {kinds} was killed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stages_with_workers_survive_the_death_of_one_and_of_the_driver(cluster, local_ray, small_config, tmp_path):
    """What is between the two, and the undisturbed run, is in this process, on the Ray of the tests."""
    address, head = cluster
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    sizes = {
        "probe": {},  # enough work for several workers to be killed in
        "sampling": {"sequence_length": 64, "batch_size": 8, "batches": 8},
        "search": {"token_budget": 10_000, "method": "closed_form"},
        "finetune": {"tokens": 4096, "eval_tokens": 1024},
        "cluster": {"max_actors": 2},  # with room beside: Ray may keep what a training held whose driver was killed
    }

    def kill_and_go_on(stage: str) -> None:
        under_way, kinds = STAGES[stage]
        driver = start_driver(config, address, stage)
        while not under_way(out):
            assert driver.poll() is None, f"{stage}: the driver ended before the stage was under way"
            time.sleep(0.05)
        print(f"{stage}: killed {kill_a_worker(driver, head, kinds, rng)}")
        time.sleep(rng.uniform(0.0, 1.0))
        assert driver.poll() is None, f"{stage}: the driver ended before it was killed"
        driver.kill()
        driver.wait()
        driver = start_driver(config, address, stage)
        assert driver.wait(300) == 0, config.with_suffix(".log").read_text()[-3000:]

    def go_on(study: Study) -> None:
        with actors_here():
            pipeline.align(study)
            pipeline.search(study)

    out, config = tmp_path / "killed", tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(small_config(out, **sizes)))
    kill_and_go_on("embed")
    go_on(pipeline.open_study(load_config(config)))
    kill_and_go_on("finetune")
    killed = results(out)
    undisturbed = pipeline.open_study(Config.model_validate(small_config(tmp_path / "undisturbed", **sizes)))
    with actors_here():
        pipeline.embed(undisturbed)
    go_on(undisturbed)
    with trainings_here():
        pipeline.finetune(undisturbed)
    expected = results(tmp_path / "undisturbed")
    assert killed["units"] == expected["units"], "a batch is lost or doubled"
    np.testing.assert_allclose(killed["embeddings"], expected["embeddings"], rtol=1e-5)
    assert furthest(killed["alignment"], expected["alignment"]) < 1e-6
    assert furthest(killed["weights"], expected["weights"]) < 1e-5
    assert furthest(killed["losses"], expected["losses"]) < 2e-3

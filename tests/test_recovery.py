"""Workers and the driver killed in every stage: the run is started again and ends as an undisturbed one."""

import json
import os
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

from align_ray.store import Store

REPOSITORY = Path(__file__).resolve().parents[1]
DRIVER = [sys.executable, "-c", "from align_ray.cli import app; app()"]

STAGES: dict[str, Callable[[Path], bool]] = {
    "embedding": lambda out: any((out / "embeddings").rglob("*.parquet")),
    "search": lambda out: any((out / "tune").rglob("result.json")),
    "fine-tuning": lambda out: any((out / "finetune").glob("*.json")),
}
"""What a stage leaves once it is under way."""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a cluster in a process of their own; yields its address and the worker processes of a moment."""
    script = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
cluster.add_node(num_cpus=2)
print(cluster.address, flush=True)
input()
"""
    head = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    address = head.stdout.readline().strip()

    def workers() -> list[psutil.Process]:
        found = []
        for process in psutil.Process(head.pid).children(recursive=True):
            try:
                if (name := process.name()).startswith("ray::") and "IDLE" not in name:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    yield address, workers
    family = psutil.Process(head.pid).children(recursive=True)
    head.kill()
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            pass


def start(config: Path, address: str) -> subprocess.Popen:
    log = config.with_suffix(".log").open("a")
    command, environment = [*DRIVER, "run", str(config)], os.environ | {"RAY_ADDRESS": address}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)


def results(out: Path) -> dict:
    def read(name: str) -> dict:
        return json.loads((out / name).read_text())

    (folder,) = (out / "embeddings").iterdir()
    names = sorted(p.stem for p in folder.iterdir() if p.suffix == ".parquet")
    units = [Store(str(out)).read_unit(folder.name, n).blocks for n in names]
    rows = read("alignment.json")["ranking"]["target"]
    return {
        "units": names,
        "embeddings": np.concatenate([b.ravel() for blocks in units for b in blocks.values()]),
        "alignment": [(r["candidate"], r["value"]) for r in rows],
        "weights": read("search.json")["mixtures"]["closed_form"]["weights"],
        "losses": {n: r["targets"]["target"]["after"] for n, r in read("finetune.json")["runs"].items()},
    }


@pytest.mark.slow
def test_every_stage_survives_the_death_of_its_workers_and_of_the_driver(cluster, small_config, tmp_path):
    address, workers = cluster
    found = {}
    for label in ("undisturbed", "killed"):
        out = tmp_path / label
        mapping = small_config(out, sampling={"sequence_length": 64, "batch_size": 8, "batches": 12}, finetune={"tokens": 4096, "eval_tokens": 1024})
        (tmp_path / f"{label}.yaml").write_text(yaml.safe_dump(mapping))
        driver = start(tmp_path / f"{label}.yaml", address)
        if label == "killed":
            for under_way in STAGES.values():
                end = time.monotonic() + 120
                while not under_way(out) and driver.poll() is None and time.monotonic() < end:
                    time.sleep(0.05)
                running = workers()
                if running:
                    random.choice(running).send_signal(signal.SIGKILL)
                time.sleep(random.uniform(0.0, 1.0))
                driver.kill()
                driver.wait()
                driver = start(tmp_path / f"{label}.yaml", address)
        assert driver.wait(240) == 0, (tmp_path / f"{label}.log").read_text()[-3000:]
        found[label] = results(out)
    expected, killed = found["undisturbed"], found["killed"]
    assert killed["units"] == expected["units"], "a batch is lost or doubled"
    np.testing.assert_allclose(killed["embeddings"], expected["embeddings"], rtol=1e-5)
    assert killed["alignment"] == [(n, pytest.approx(v, abs=1e-6)) for n, v in expected["alignment"]]
    assert killed["weights"] == pytest.approx(expected["weights"], abs=1e-5)
    assert killed["losses"] == pytest.approx(expected["losses"], abs=2e-3)

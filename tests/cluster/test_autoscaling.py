"""Ray's autoscaler with its fake provider, which starts nodes as processes: they come when there is work, and go
after it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.job import RAY, free_port
from tests.job import ROOT as REPOSITORY

HEAD = "f" * 51 + "00000"
"""Of the head node: the provider takes it for given."""

FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Named as a provider of one's own: as `fake_multinode` it needs an example file that Ray's wheel does not hold."""


def nodes(address: str) -> dict:
    """The cluster's configuration: up to two spot nodes, which go after six seconds without work."""
    fake = {"launch_multiple": True, "head_node_id": HEAD, "gcs_address": address}
    head = {"resources": {"CPU": 1, "driver": 1}, "node_config": {}, "max_workers": 0}
    spot = {"resources": {"CPU": 2, "spot": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    return {
        "cluster_name": "fake",
        "provider": {"type": "external", "module": FAKE, "disable_node_updaters": True, **fake},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "spot": spot},
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        **{f"{which}setup_commands": [] for which in ("", "head_", "worker_")},
        **{f"{which}_start_ray_commands": [] for which in ("head", "worker")},
        "initialization_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "auth": {},
    }


STUDY = """
import json, sys, threading, time
import ray
from align_ray import pipeline
from align_ray.pipeline import open_study
from align_ray.config import Config

mapping, seen, stop = json.loads(sys.argv[1]), [], threading.Event()
study = open_study(Config.model_validate(mapping))

def alive():
    return sum(n["Alive"] for n in ray.nodes()) - 1

def watch():
    while not stop.wait(0.5):
        if ray.is_initialized():
            seen.append(alive())

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
result = pipeline.embed(study)
end = time.monotonic() + 90
while alive() and time.monotonic() < end:
    time.sleep(1)
stop.set()
watcher.join()
print(json.dumps({"seen": seen, "left": alive(), "planned": result["work"]["planned"]}))
"""


THINNING = """
import json, sys, threading, time
import ray
from align_ray import pipeline
from align_ray.pipeline import open_study
from align_ray.config import Config
from align_ray.training.jobs import train_jobs, train_to_rung
from align_ray.training.rows import candidate_jobs, heldout_rows, with_rate

study = with_rate(open_study(Config.model_validate(json.loads(sys.argv[1]))))
pipeline.embed(study)
jobs, heldout = candidate_jobs(study, study.config.finetune.tokens), heldout_rows(study)
seen, rung, stop = {"all": [], "one": []}, "all", threading.Event()

def watch():
    while not stop.wait(0.5):
        seen[rung].append(sum(n["Alive"] for n in ray.nodes()) - 1)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
train_to_rung(study, heldout, jobs, 2)  # as `choose` does with all, then with the one that has hope
rung = "one"
train_jobs(study, heldout, jobs[:1])
stop.set()
watcher.join()
print(json.dumps(seen))
"""


@contextmanager
def growing(folder: Path, cpus: int, drivers: int) -> Iterator[Callable[[str, dict], str]]:
    """A head node with the fake provider; gives a function that runs a script with a study's mapping on it and returns
    what that printed last."""
    from ray.util import get_node_ip_address

    port = free_port()
    config = nodes(f"{get_node_ip_address()}:{port}")
    config["available_node_types"]["ray.head.default"]["resources"] = {"CPU": cpus, "driver": drivers}
    (folder / "nodes.json").write_text(json.dumps(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    command = [
        RAY, "start", "--head", "--block", f"--num-cpus={cpus}", f'--resources={{"driver": {drivers}}}', f"--port={port}",
        f"--autoscaling-config={folder / 'nodes.json'}", f"--dashboard-agent-listen-port={free_port()}",
        f"--dashboard-port={free_port()}", "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    # short: Ray's sockets
    with tempfile.TemporaryDirectory(prefix="aray", dir="/tmp") as temp, (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [*command, f"--temp-dir={temp}"], env=environment | fake, stdout=log, stderr=log, start_new_session=True
        )

        def run(script: str, mapping: dict) -> str:
            mapping = mapping | {"cluster": {"address": f"127.0.0.1:{port}", "max_actors": 3}}
            done = subprocess.run(
                [sys.executable, "-c", script, json.dumps(mapping)],
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                timeout=500,
            )
            assert done.returncode == 0, done.stderr[-3000:] + (folder / "log").read_text()[-2000:]
            return done.stdout.splitlines()[-1]

        try:
            time.sleep(5)
            yield run
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.mark.slow
@pytest.mark.full
def test_nodes_come_with_the_work_and_go_after_it(small_config, tmp_path):
    with growing(tmp_path, cpus=1, drivers=1) as run:
        mapping = small_config(
            tmp_path / "out",
            probe={},  # more work than the head does before a node is there
            sampling={"sequence_length": 128, "batch_size": 8, "batches": 12},
        )
        found = json.loads(run(STUDY, mapping))
    assert found["seen"][0] == 0, "nodes before there was work"
    assert max(found["seen"]) >= 1, "no node came"
    assert found["left"] == 0, "a node stayed"
    assert found["planned"] >= 12, "too little work to see anything"


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(900)
def test_as_rungs_thin_out_nodes_go_while_the_training_that_is_left_goes_on(small_config, tmp_path):
    """Three trainings of a CPU each want both nodes of two; one wants one. The head takes none."""
    with growing(tmp_path, cpus=0, drivers=100) as run:
        mapping = small_config(
            tmp_path / "out",
            candidates=("python-stdlib", "licences", "cpp-headers"),
            probe={},
            finetune={"tokens": 40_960, "eval_tokens": 1024, "learning_rate": 1e-4, "seeds": 1},
        )
        seen = json.loads(run(THINNING, mapping))
    assert max(seen["all"]) == 2, seen
    assert seen["one"][-1] == 1 == min(seen["one"]), f"the second node stayed: {seen}"

"""Ray's autoscaler with its fake provider, which starts nodes as processes: they come when there is work, and go
after it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

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


@pytest.mark.slow
@pytest.mark.full
def test_nodes_come_with_the_work_and_go_after_it(small_config, tmp_path):
    from ray.util import get_node_ip_address

    port = free_port()
    (tmp_path / "nodes.json").write_text(json.dumps(nodes(f"{get_node_ip_address()}:{port}")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=1", '--resources={"driver": 1}', f"--port={port}", "--include-dashboard=false",
        f"--autoscaling-config={tmp_path / 'nodes.json'}", f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    # short: Ray's sockets
    with tempfile.TemporaryDirectory(prefix="aray", dir="/tmp") as temp, (tmp_path / "log").open("w") as log:
        head = subprocess.Popen(
            [*command, f"--temp-dir={temp}"], env=environment | fake, stdout=log, stderr=log, start_new_session=True
        )
        try:
            mapping = small_config(
                tmp_path / "out",
                probe={},  # more work than the head does before a node is there
                cluster={"address": f"127.0.0.1:{port}", "max_actors": 3},
                sampling={"sequence_length": 128, "batch_size": 8, "batches": 12},
            )
            time.sleep(5)
            done = subprocess.run(
                [sys.executable, "-c", STUDY, json.dumps(mapping)],
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "log").read_text()[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"][0] == 0, "nodes before there was work"
    assert max(found["seen"]) >= 1, "no node came"
    assert found["left"] == 0, "a node stayed"
    assert found["planned"] >= 12, "too little work to see anything"

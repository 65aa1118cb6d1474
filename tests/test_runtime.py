"""The Ray that a run starts: beside another on the machine each run keeps to its own, and a container's quota is
kept to."""

import subprocess
import sys
import time

import ray

from align_ray import runtime
from align_ray.config import Cluster

SCRIPT = """
import sys
from align_ray.config import Cluster
from align_ray.runtime import connect

connect(Cluster())
import ray

@ray.remote
def state():
    from ray.util.state import list_nodes
    return [node["node_id"] for node in list_nodes()]

print("ready", flush=True)
input()
assert ray.get(state.remote()) == [ray.get_runtime_context().get_node_id()]
"""


def test_a_worker_asks_its_own_ray_for_its_state_where_two_run():
    both = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        while (line := process.stdout.readline()) and line.strip() != "ready":
            time.sleep(0)
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(120) for process in both] == [0, 0]


def test_a_ray_started_here_has_a_cpu_more_than_ray_detects(monkeypatch):
    """Ray's own count keeps to the quota of a container, for example 2 of 64."""
    given = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **options: given.update(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for detected, wanted in ((2, 3), (0, 2)):  # a quota below one CPU is cut to 0
        monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda *_, detected=detected, **__: detected)
        runtime.connect(Cluster())
        assert given["num_cpus"] == wanted

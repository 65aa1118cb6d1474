"""Two Rays on one machine: each run keeps to its own."""

import subprocess
import sys
import time

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
    both = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        while (line := process.stdout.readline()) and line.strip() != "ready":
            time.sleep(0)
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(120) for process in both] == [0, 0]

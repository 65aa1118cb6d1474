"""The Ray that a run starts: beside another on the machine each run keeps to its own, and a container's quota is
kept to."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
import ray

from align_ray import runtime
from align_ray.config import Cluster
from align_ray.errors import ClusterError
from align_ray.runtime import _without_ray_log_level_line

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


@pytest.mark.full
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


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", r"names a web page \(http://\), of a dashboard perhaps.*ray job submit --address"),
        (
            "ray://127.0.0.1:10001",
            "names Ray's client .* through which Ray Data and Ray Train do not run; submit the work",
        ),
        ("127.0.0.1:1", "no Ray answers where field 'cluster.address' says .*start the cluster, or remove"),
        ("nowhere.invalid:6379", "no Ray .* where field 'cluster.address' says"),
        ("127.0.0.1:port", "no Ray"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence_at_once(address, words):
    script = "import sys; from align_ray.runtime import connect; from align_ray.config import Cluster; connect(Cluster(address=sys.argv[1]))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("align_ray.errors.ClusterError: ") and re.search(words, last), (
        done.stderr
    )
    assert time.monotonic() - start < 45


def test_a_folder_for_temporary_files_with_too_long_a_name_is_one_sentence(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    script = "from align_ray.runtime import connect; from align_ray.config import Cluster; connect(Cluster())"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "ClusterError: cannot start Ray on this machine" in last and "set TMPDIR=/tmp" in last, done.stderr


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_full_folder_for_temporary_files_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    with pytest.raises(ClusterError, match=rf"{tmp_path}, has 2 MB left; make room, or set TMPDIR"):
        runtime._start_local()


def test_a_home_that_cannot_be_written_to_is_one_sentence():
    script = "from align_ray.runtime import connect; from align_ray.config import Cluster; connect(Cluster())"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"HOME": "/proc/1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "ClusterError: cannot start Ray" in last and "check that HOME" in last, done.stderr


def test_a_start_is_silent_and_what_else_is_written_meanwhile_is_not_lost(capfd):
    with _without_ray_log_level_line():
        os.write(
            2, b"[x] logging.cc:303: Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\nother\n"
        )
    assert capfd.readouterr().err == "other\n"


@pytest.mark.parametrize(
    ("nodes", "total", "words"),
    [
        (1, {"CPU": 3.0, runtime.LOGICAL: 1.0}, "1 node, 2 CPUs"),
        (3, {"CPU": 48.0, "GPU": 8.0, "accelerator_type:H100": 2.0}, "3 nodes, 48 CPUs, 8 GPUs (H100)"),
    ],
    ids=["started here, with a CPU that is not there", "a cluster"],
)
def test_the_machine_is_named_by_what_it_has(monkeypatch, nodes, total, words):
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {}}] * nodes + [{"Alive": False, "Resources": {}}]
    )
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    assert runtime.machines() == words


def test_a_cluster_that_does_not_answer_has_no_name(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: 1 / 0)
    assert runtime.machines() is None


NICENESS = """
import os, ray
from align_ray.config import Cluster
from align_ray.runtime import connect, niceness

connect(Cluster())
print(ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote()) - os.nice(0), niceness())
"""


@pytest.mark.full
@pytest.mark.parametrize("given", [None, "0"])
def test_workers_run_at_the_niceness_that_is_said(given):
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_worker_niceness")}
    environment |= {"RAY_worker_niceness": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", NICENESS], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.split() == [given or "15", given or "15"], done.stderr

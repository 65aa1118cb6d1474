"""Run a whole study while workers, nodes and the driver are killed: is anything lost, doubled or different?

    python benchmarks/soak_run.py [--kills 30] [--in-training 6] [--batches 24] [--nodes 3]

A cluster of several nodes on this machine; at random moments, whatever stage is under way, a random worker process
(embedding actor, reader, trial, training), a whole node, which another replaces, or the driver is killed with SIGKILL.
Further kills wait for trainings: by turns a training's worker and the node of one, when every training under way has
written a checkpoint. A driver that was killed or gave up is started again with the same command. What is stored in the
end is compared with an undisturbed run.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
import yaml
from safetensors import SafetensorError, safe_open

from align_ray.training.state import state_file

DRIVER = [sys.executable, "-c", "from align_ray.cli.main import app; app()"]
STUDY: dict[str, Any] = {
    "targets": [{"name": "target", "source": "installed:python-stdlib-heldout"}],
    "candidates": [{"name": n, "source": f"installed:{n}"} for n in ("python-stdlib", "licences")],
    "search": {"token_budget": 1_000_000, "trials": 6},
    "finetune": {"tokens": 32_768, "eval_tokens": 2048, "learning_rate": 1e-4, "checkpoint_every": 0.1},
    "cluster": {"max_actors": 2},
}
TRIAL = ("ray::MixtureTrial", "ray::ResourceTrainable")  # the search's; the second one while it computes
TRAINING = ("ray::RayTrainWorker",)
WORK = ("ray::Map", *TRIAL, "ray::ImplicitFunc", "ray::TrainController", *TRAINING)
"""What processes are called that do a stage's work: readers and actors of Ray Data, trials of Tune, trainings.
Others are idle, or helpers and agents of Ray, whose death is that of a node."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def workers(roots: list[int], kinds: tuple[str, ...] = WORK) -> list[psutil.Process]:
    """Processes below the given ones whose names begin with one of `kinds`."""
    found = []
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(root).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith(kinds):
                        found.append(process)
    return found


def start_driver(config: Path, address: str, command: str = "run") -> subprocess.Popen:
    """`align-ray run CONFIG`, or one stage of it, on the cluster; its output goes beside the configuration."""
    line, environment = [*DRIVER, command, str(config)], os.environ | {"RAY_ADDRESS": address}
    with config.with_suffix(".log").open("a") as log:
        return subprocess.Popen(line, env=environment, stdout=log, stderr=log)


def results(out: Path) -> dict[str, Any]:
    """What a finished run has stored: names and values of the units, alignment, weights, losses."""
    from align_ray.embedding.units import read_unit
    from align_ray.store import Store

    store = Store(str(out))
    key = store.read_json("embedding.json")["key"]
    names = sorted(n.removesuffix(".parquet") for n in store.names(f"embeddings/{key}"))
    units = [read_unit(store, key, n).blocks for n in names]
    return {
        "units": names,
        "embeddings": np.concatenate([b.ravel() for blocks in units for b in blocks.values()]),
        "alignment": {r["candidate"]: r["value"] for r in store.read_json("alignment.json")["ranking"]["target"]},
        "weights": store.read_json("search.json")["mixtures"]["closed_form"]["weights"],
        "losses": {n: r["targets"]["target"]["after"] for n, r in store.read_json("finetune.json")["runs"].items()},
    }


def furthest(a: dict[str, float], b: dict[str, float]) -> float:
    """Largest difference of two mappings of numbers; infinite where their keys differ."""
    return max(abs(a[k] - b[k]) for k in a) if a.keys() == b.keys() else float("inf")


def raylets(nodes: list[Any]) -> list[int]:
    """Process ids of nodes, below which their workers are."""
    return [info.process.pid for node in nodes for info in node.all_processes.get("raylet", [])]


def trainings(roots: list[int], out: Path) -> tuple[list[psutil.Process], dict[str, int]]:
    """Workers below processes that train, and by training the steps at its last checkpoint; none unless every worker
    has written one since it started."""
    with contextlib.suppress(psutil.Error, OSError, SafetensorError):  # one ended meanwhile
        running = workers(roots, TRAINING)
        since, found = max((w.create_time() for w in running), default=0.0), {}
        for file in (out / state_file("any")).parent.glob("*.safetensors"):
            if file.stat().st_mtime > since:
                with safe_open(file, "np") as tensors:
                    found[file.stem] = len(json.loads(tensors.get_tensor("position").tobytes())["losses"])
        if len(found) == len(running):
            return running, found
    return [], {}


def broken_off(out: Path, states: dict[str, int]) -> bool:
    """Whether these trainings have not ended."""
    return all((out / state_file(key)).exists() for key in states)


def kill_in_training(cluster: Any, spare: list[Any], out: Path, kind: str, rng: random.Random) -> bool:
    """Kill a training's worker or its whole node (`kind`), if every training that is under way has a checkpoint;
    returns whether one was broken off so."""
    running, states = trainings(raylets(cluster.list_all_nodes()), out)
    nodes = {node: dying for node in spare if (dying := workers(raylets([node]), TRAINING))}
    if not running or not nodes:
        return False
    if kind == "node":
        node, dying = rng.choice([*nodes.items()])
        cluster.remove_node(node, allow_graceful=False)
    else:
        dying = [rng.choice(running)]
        with contextlib.suppress(psutil.Error):
            dying[0].send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(dying, timeout=30)
    hit = not alive and broken_off(out, states)
    if kind == "node":
        spare[spare.index(node)] = cluster.add_node(num_cpus=2)
    print(f"{kind} killed, {'in' if hit else 'not in'} a training: steps at checkpoints {states}", flush=True)
    return hit


def disturb(
    cluster: Any, config: Path, kills: int, in_training: int, seed: int, longest: float
) -> tuple[Counter, Counter, int]:
    """Run the study and kill until `kills` at random moments and `in_training` within trainings are done; returns what
    was killed of either kind, and how often the driver was started."""
    rng, done, broken, runs = random.Random(seed), Counter(), Counter(), 1
    driver, end, due = start_driver(config, cluster.address), time.monotonic() + longest, time.monotonic()
    due += rng.uniform(1.0, 6.0)
    spare, out = [n for n in cluster.list_all_nodes() if n is not cluster.head_node], config.with_suffix("")
    while time.monotonic() < end:
        time.sleep(0.05)
        if driver.poll() is not None:
            if driver.returncode == 0:
                return done, broken, runs
            driver, runs = start_driver(config, cluster.address), runs + 1
        elif broken.total() < in_training and kill_in_training(
            cluster, spare, out, kind := ("worker", "node")[broken.total() % 2], rng
        ):
            broken[kind] += 1
        elif done.total() < kills and time.monotonic() > due:
            due = time.monotonic() + rng.uniform(1.0, 6.0)
            kind = rng.choices(["worker", "node", "driver"], [0.7, 0.15, 0.15])[0]
            running = workers(raylets(cluster.list_all_nodes()))
            if kind == "driver":
                driver.kill()
                driver.wait()
                done["driver"] += 1
            elif kind == "node" and running:
                cluster.remove_node(spare.pop(rng.randrange(len(spare))), allow_graceful=False)
                spare.append(cluster.add_node(num_cpus=2))
                done["node"] += 1
            elif running:
                victim = rng.choice(running)
                with contextlib.suppress(psutil.Error):
                    name = re.sub(r"[^A-Za-z_].*", "", victim.name().removeprefix("ray::"))
                    victim.send_signal(signal.SIGKILL)
                    done[name] += 1
    driver.kill()
    raise SystemExit(f"not finished after {longest:.0f} s: {config.with_suffix('.log').read_text()[-3000:]}")


def main(
    kills: Annotated[int, typer.Option(min=0)] = 30,
    in_training: Annotated[int, typer.Option(min=0, help="Kills that wait for a training's first checkpoint.")] = 6,
    batches: Annotated[int, typer.Option(min=2)] = 24,
    nodes: Annotated[int, typer.Option(min=2)] = 3,
    seed: int = 0,
    longest: Annotated[float, typer.Option(help="Give up after so many seconds a run.")] = 3000.0,
) -> None:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        # with a dashboard, as clusters have it: without one Ray Train leaves the placement groups of a killed driver
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port()},
        )
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        found, report = {}, {}
        for label in ("undisturbed", "killed"):
            out, config = Path(folder) / label, Path(folder) / f"{label}.yaml"
            sampling = {"sequence_length": 128, "batch_size": 8, "batches": batches}
            config.write_text(yaml.safe_dump(STUDY | {"output": str(out), "sampling": sampling}))
            start = time.perf_counter()
            wanted = (kills, in_training) if label == "killed" else (0, 0)
            report[label] = (*disturb(cluster, config, *wanted, seed, longest), time.perf_counter() - start)
            found[label] = results(out)
        cluster.shutdown()
    a, b = found["undisturbed"], found["killed"]
    killed, broken, runs, seconds = report["killed"]
    print(json.dumps({"at random": killed, "in training": broken}))
    apart = float("inf")
    if len(a["embeddings"]) == len(b["embeddings"]):
        apart = float(np.max(np.abs(a["embeddings"] - b["embeddings"]) / (np.abs(a["embeddings"]) + 1e-12)))
    row = {
        "kills": killed.total() + broken.total(),
        "of them in training": broken.total(),
        "drivers started": runs,
        "batches": len(a["units"]),
        "lost or doubled": len(set(a["units"]) ^ set(b["units"])),
        "embeddings differ by (relative)": f"{apart:.1e}",
        **{name: f"{furthest(a[name], b[name]):.1e}" for name in ("alignment", "weights", "losses")},
        "s, undisturbed": round(report["undisturbed"][3]),
        "s, killed": round(seconds),
    }
    for line in (row, ["---"] * len(row), row.values()):
        print(f"| {' | '.join(map(str, line))} |")


if __name__ == "__main__":
    typer.run(main)

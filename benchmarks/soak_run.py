"""Run a whole study while workers, nodes and the driver are killed: is anything lost, doubled or different?

    python benchmarks/soak_run.py [--kills 30] [--batches 24] [--nodes 3]

A cluster of several nodes on this machine; at random moments, whatever stage is under way, a random worker process
(embedding actor, reader, trial, training), a whole node, which another replaces, or the driver is killed with SIGKILL.
A driver that was killed or gave up is started again with the same command. What is stored in the end is compared with
an undisturbed run.
"""

import contextlib
import json
import os
import random
import re
import signal
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

DRIVER = [sys.executable, "-c", "from align_ray.cli.main import app; app()"]
STUDY: dict[str, Any] = {
    "targets": [{"name": "target", "source": "installed:python-stdlib-heldout"}],
    "candidates": [{"name": n, "source": f"installed:{n}"} for n in ("python-stdlib", "licences")],
    "search": {"token_budget": 1_000_000, "trials": 6},
    "finetune": {"tokens": 8192, "eval_tokens": 2048},
}
TRIAL = ("ray::MixtureTrial", "ray::ResourceTrainable")  # the search's; the second one while it computes
WORK = ("ray::Map", *TRIAL, "ray::ImplicitFunc", "ray::TrainController", "ray::RayTrainWorker")
"""What processes are called that do a stage's work: readers and actors of Ray Data, trials of Tune, trainings.
Others are idle, or helpers and agents of Ray, whose death is that of a node."""


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


def disturb(cluster: Any, config: Path, kills: int, seed: int, longest: float) -> tuple[Counter, int]:
    """Run the study and kill until `kills` are done; returns what was killed and how often the driver was started."""
    rng, done, runs = random.Random(seed), Counter(), 1
    driver, end = start_driver(config, cluster.address), time.monotonic() + longest
    spare = [n for n in cluster.list_all_nodes() if n is not cluster.head_node]
    while time.monotonic() < end:
        time.sleep(rng.uniform(1.0, 6.0))
        if driver.poll() is not None:
            if driver.returncode == 0:
                return done, runs
            driver, runs = start_driver(config, cluster.address), runs + 1
        elif done.total() < kills:
            kind = rng.choices(["worker", "node", "driver"], [0.7, 0.15, 0.15])[0]
            raylets = [info for node in cluster.list_all_nodes() for info in node.all_processes.get("raylet", [])]
            running = workers([info.process.pid for info in raylets])
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
    kills: Annotated[int, typer.Option(min=1)] = 30,
    batches: Annotated[int, typer.Option(min=2)] = 24,
    nodes: Annotated[int, typer.Option(min=2)] = 3,
    seed: int = 0,
    longest: Annotated[float, typer.Option(help="Give up after so many seconds a run.")] = 3000.0,
) -> None:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        found, report = {}, {}
        for label in ("undisturbed", "killed"):
            out, config = Path(folder) / label, Path(folder) / f"{label}.yaml"
            sampling = {"sequence_length": 128, "batch_size": 8, "batches": batches}
            config.write_text(yaml.safe_dump(STUDY | {"output": str(out), "sampling": sampling}))
            start = time.perf_counter()
            report[label] = (
                *disturb(cluster, config, kills if label == "killed" else 0, seed, longest),
                time.perf_counter() - start,
            )
            found[label] = results(out)
        cluster.shutdown()
    a, b = found["undisturbed"], found["killed"]
    killed, runs, seconds = report["killed"]
    print(json.dumps(killed))
    print(
        "| kills | drivers started | batches | lost or doubled | embeddings differ by | alignment | weights | losses | "
        "s, undisturbed | s, killed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    same = len(a["embeddings"]) == len(b["embeddings"])
    apart = (
        float(np.max(np.abs(a["embeddings"] - b["embeddings"]) / (np.abs(a["embeddings"]) + 1e-12)))
        if same
        else float("inf")
    )
    print(
        f"| {killed.total()} | {runs} | {len(a['units'])} | {len(set(a['units']) ^ set(b['units']))} | {apart:.1e} "
        "(relative) | "
        f"{furthest(a['alignment'], b['alignment']):.1e} | {furthest(a['weights'], b['weights']):.1e} | "
        f"{furthest(a['losses'], b['losses']):.1e} | {report['undisturbed'][2]:.0f} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    typer.run(main)

"""Embed while actors are killed: is anything lost, doubled or different?

    python benchmarks/soak.py [--kills 30] [--batches 96] [--nodes 3]

A cluster of several nodes on this machine embeds text of the installation; at random moments the process of a random
embedding actor is killed, or a whole node, which another replaces. The stored units are compared with those of an
undisturbed run.
"""

import contextlib
import os
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

CONFIG = {
    "targets": [{"name": "target", "source": "installed:python-stdlib-heldout"}],
    "candidates": [{"name": n, "source": f"installed:{n}"} for n in ("python-stdlib", "licences")],
    "search": {"token_budget": 10_000},
    "finetune": {"tokens": 1024, "eval_tokens": 1024},
}


def study(folder: Path, batches: int, address: str):
    from align_ray.config import Config
    from align_ray.pipeline import open_study

    sampling = {"sequence_length": 128, "batch_size": 8, "batches": batches}
    cluster = {"address": address, "max_actors": 2}
    return open_study(
        Config.model_validate({**CONFIG, "output": str(folder), "sampling": sampling, "cluster": cluster})
    )


def actors() -> list[psutil.Process]:
    """Processes that embed at this moment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "ProbeActor" in " ".join(process.info["cmdline"] or []):
                found.append(process)
    return found


def disturb(cluster, ended, kills: int, node_share: float, seed: int) -> list[str]:
    """Kill until `kills` are done or the run has ended; returns what was killed."""
    rng, done = random.Random(seed), []
    nodes = [n for n in cluster.list_all_nodes() if n is not cluster.head_node]
    while not ended():
        time.sleep(rng.uniform(0.3, 2.5))
        if len(done) == kills or not (running := actors()):
            continue
        if rng.random() < node_share:
            cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=2))
            done.append("node")
        else:
            with contextlib.suppress(psutil.Error):
                os.kill(rng.choice(running).pid, signal.SIGKILL)
                done.append("actor")
    return done


def embed_until_done(opened) -> int:
    """The recovery procedure is to run it again: every run goes on with what is stored. Returns how many runs it
    took."""
    import ray

    from align_ray import pipeline

    runs = 1
    while True:
        try:
            pipeline.embed(opened)
            return runs
        except ray.exceptions.RayError as error:
            print(f"run {runs} ended with {type(error).__name__}; started again")
            runs += 1


def units(folder: Path) -> dict[str, np.ndarray]:
    from align_ray.embedding.units import read_unit
    from align_ray.store import Store

    store = Store(str(folder))
    (key,) = [p.name for p in (folder / "embeddings").iterdir()]
    names = [n.removesuffix(".parquet") for n in store.names(f"embeddings/{key}")]
    return {n: np.concatenate([b.ravel() for b in read_unit(store, key, n).blocks.values()]) for n in names}


def main(
    kills: Annotated[int, typer.Option(min=1)] = 30,
    batches: Annotated[int, typer.Option(min=2)] = 96,
    nodes: Annotated[int, typer.Option(min=2)] = 3,
    node_share: Annotated[float, typer.Option(min=0, max=1)] = 0.15,
    seed: int = 0,
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        report = {}
        for label in ("undisturbed", "killed"):
            opened = study(Path(folder) / label, batches, cluster.address)
            start = time.perf_counter()
            with ThreadPoolExecutor(1) as pool:  # nodes can be added in the main thread alone
                run = pool.submit(embed_until_done, opened)
                done = disturb(cluster, run.done, kills if label == "killed" else 0, node_share, seed)
                report[label] = {"seconds": round(time.perf_counter() - start), "kills": done, "runs": run.result()}
        a, b = units(Path(folder) / "undisturbed"), units(Path(folder) / "killed")
        same = all(np.array_equal(a[n], b[n]) for n in a if n in b)
        ray.shutdown()
        cluster.shutdown()
    made = report["killed"]
    print("| kills | of them nodes | batches | lost | too many | equal | runs | s, undisturbed | s, killed |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {len(made['kills'])} | {made['kills'].count('node')} | {len(a)} | {len(set(a) - set(b))} | "
        f"{len(set(b) - set(a))} | {same} | {made['runs']} | {report['undisturbed']['seconds']} | {made['seconds']} |"
    )


if __name__ == "__main__":
    typer.run(main)

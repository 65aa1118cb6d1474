"""Does the embedding stage's plan keep many GPUs busy? Many nodes on this machine, whose actors sleep instead of
computing.

    python benchmarks/scheduling.py [--actors 1 --actors 10 --actors 64] [--seconds 2] [--rounds 15]

Nodes have eight GPUs that do not exist; a batch takes `--seconds`. Busy: share of the actors' time, from the moment the
last of them is ready until the first has nothing left, in which they sleep, that is, would compute.
"""

import time
from typing import Annotated

import numpy as np
import typer


class Sleeper:
    """Takes a batch as ProbeActor does, and as long as a GPU would."""

    def __init__(self, seconds: float):
        self.seconds, self.ready = seconds, time.time()
        self.name = np.random.default_rng().integers(2**62)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        start = time.time()
        time.sleep(self.seconds)
        return {"actor": [self.name], "ready": [self.ready], "start": [start], "end": [time.time()]}


def measure(actors: int, seconds: float, rounds: int) -> dict[str, float]:
    import ray
    from ray.data import ActorPoolStrategy

    from align_ray.config import Cluster, Sampling
    from align_ray.runtime import connect

    connect(Cluster())
    sampling, batches = Sampling(), actors * rounds
    tokens = sampling.batch_size * sampling.sequence_length
    rows = [{"unit": f"{i:016x}", "ids": np.zeros(tokens, np.int32)} for i in range(batches)]
    begin = time.time()
    done = (
        ray.data.from_items(rows, override_num_blocks=batches)
        .map_batches(
            Sleeper, batch_size=1, fn_constructor_args=(seconds,), num_cpus=0.01, num_gpus=1,
            compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        )
        .take_all()
    )  # fmt: skip
    first_end = {a: max(r["end"] for r in done if r["actor"] == a) for a in {r["actor"] for r in done}}
    start, end = max(r["ready"] for r in done), min(first_end.values())
    busy = sum(max(0.0, min(r["end"], end) - max(r["start"], start)) for r in done)
    return {
        "actors": len(first_end),
        "batches": batches,
        "start": max(r["ready"] for r in done) - begin,
        "busy": busy / max(1e-9, len(first_end) * (end - start)),
        "rate": batches / (max(r["end"] for r in done) - min(r["start"] for r in done)),
        "window": end - start,
    }


def main(
    actors: Annotated[list[int], typer.Option()] = [1, 10, 64],  # noqa: B006
    seconds: float = 2.0,
    rounds: int = 15,
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for _ in range(-(-max(actors) // 8)):
        cluster.add_node(num_cpus=1, num_gpus=8, object_store_memory=100_000_000)
    ray.init(cluster.address, log_to_driver=False)
    print(
        "| GPUs | nodes | batches | s until all actors are ready | busy | batches/s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for count in actors:
        r = measure(count, seconds, rounds)
        nodes = len(cluster.list_all_nodes())
        print(
            f"| {r['actors']} | {nodes} | {r['batches']} | {r['start']:.0f} | {r['busy']:.1%} | {r['rate']:.1f} |",
            flush=True,
        )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    typer.run(main)

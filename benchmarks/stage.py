"""The embedding stage as a whole: two actors beside one, and what reading, tokenising and writing add to the Fisher
pass.

    python benchmarks/stage.py [--batches 24] [--rounds 2] [--dtype auto]

Each round runs the demo's embedding stage with one actor and with two, on a fresh store, on a Ray that is already up.
`speed-up`: seconds from the first to the last unit, one actor over two. `overhead`: the stage's wall time over the
actors' Fisher seconds shared among the actors, less one.
"""

import argparse
import datetime
import os
import statistics
import tempfile
import time

import align_ray
from align_ray.runtime import connect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    demo = align_ray.load_config()
    connect(demo.cluster)
    print(
        f"{datetime.date.today()}; {os.cpu_count()} cores; {options.batches} batches of each of {len(demo.corpora)} "
        "corpora, "
        f"{options.dtype}\n"
    )
    print(
        "| actors | stage, s | of it sampling, s | Fisher actor-seconds | tokens/s | overhead "
        "|\n|---|---|---|---|---|---|"
    )
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for actors in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                overrides = {
                    "output": folder,
                    "sampling.batches": options.batches,
                    "embedding.dtype": options.dtype,
                    "cluster.max_actors": actors,
                }
                lines: list[tuple[float, str]] = []

                def say(line: str, lines: list[tuple[float, str]] = lines) -> None:
                    lines.append((time.perf_counter(), line))

                study = align_ray.open_study(align_ray.load_config(overrides=overrides), say=say)
                start = time.perf_counter()
                work = align_ray.embed(study)["work"]
                wall = time.perf_counter() - start
                sampling = next(t for t, line in lines if line.startswith("embedding")) - start
                walls[actors].append(wall - sampling)
                overhead = wall * actors / work["actor_seconds"] - 1
                print(
                    f"| {actors} | {wall:.1f} | {sampling:.1f} | {work['actor_seconds']:.1f} | "
                    f"{work['tokens'] / (wall - sampling):.0f} | {overhead:.0%} |",
                    flush=True,
                )
    speedups = [one / two for one, two in zip(walls[1], walls[2], strict=True)]
    print(
        f"\ntwo actors over one, embedding alone: {statistics.median(speedups):.2f} (median of "
        f"{[round(s, 2) for s in speedups]})"
    )


if __name__ == "__main__":
    main()

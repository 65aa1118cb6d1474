"""Distances of all batch pairs of many corpora: the blocked form beside the loop over pairs.

    python benchmarks/distances.py [--corpora 20] [--batches 200] [--entries 134993]

Prints the seconds for all pairs (all cores), the loop's seconds per pair and what it would take, and the peak memory.
"""

import argparse
import datetime
import os
import resource
import time

import numba
import numpy as np

from align_ray.alignment.distance import distance_matrix, scaled_cosine_distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=20)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--entries", type=int, default=134_993)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.batches, options.entries)
    corpora = [rng.standard_exponential(shape, dtype=np.float32) for _ in range(options.corpora)]
    distance_matrix(corpora[0][:2], corpora[0][:2])  # compile
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    for i, a in enumerate(corpora):
        for b in corpora[i:]:
            last = distance_matrix(a, b)
    blocked = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    for j in range(20):
        one = scaled_cosine_distance(corpora[-1][0], corpora[-1][j])
    loop = (time.perf_counter() - start) / 20
    assert abs(one - last[0, 19]) < 1e-6
    total = options.corpora * options.batches
    pairs = options.corpora * (options.corpora + 1) // 2 * options.batches**2
    print(
        f"{options.corpora} corpora x {options.batches} batches x {options.entries} entries; "
        f"{datetime.date.today()}; {os.cpu_count()} cores, {numba.get_num_threads()} threads"
    )
    print(
        f"blocked: {blocked:.1f} s for {pairs / 1e6:.2f}M pairs, {pairs * options.entries / blocked / 1e9:.1f}e9 "
        "entries/s"
    )
    print(
        f"loop over pairs: {1e3 * loop:.2f} ms a pair, {loop * total * (total - 1) / 2 / 3600:.1f} h for every pair "
        "once; "
        f"blocked is {loop * pairs / blocked:.0f} times as fast"
    )
    print(f"memory: {held:.2f} GiB with the embeddings loaded, {peak:.2f} GiB at the peak")


if __name__ == "__main__":
    main()

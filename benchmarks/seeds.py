"""Are the demo's coefficients stable over seeds, within their intervals?

    python benchmarks/seeds.py [SEEDS]        # default 3; about a minute a seed on 2 cores

A seed draws other documents and other labels. Prints every candidate's alignment by seed with the half-width of its 95%
interval, and the z of the largest difference between two seeds. The target's documents change with the seed too.
"""

import sys
import tempfile
from itertools import combinations

import align_ray


def main(seeds: int) -> None:
    """Embed and align the embedded default once per seed."""
    rankings = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            config = align_ray.load_config(overrides={"seed": seed, "output": f"{folder}/{seed}"})
            study = align_ray.open_study(config)
            align_ray.embed(study)
            (rows,) = align_ray.align(study)["ranking"].values()
            rankings.append({row["candidate"]: row for row in rows})
    print(f"{'candidate':22s}" + "".join(f"{'seed ' + str(s):>18s}" for s in range(seeds)) + f"{'largest z':>11s}")
    for name in rankings[0]:
        cells = [r[name] for r in rankings]
        z = max(
            abs(a["value"] - b["value"]) / (a["error"] ** 2 + b["error"] ** 2) ** 0.5 for a, b in combinations(cells, 2)
        )
        print(
            f"{name:22s}" + "".join(f"{c['value']:10.4f} ±{c['high'] - c['value']:.4f}" for c in cells) + f"{z:11.1f}"
        )
    print("order by seed:", *(" > ".join(r) for r in rankings), sep="\n  ")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)

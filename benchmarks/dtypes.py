"""What bfloat16 changes: the demo's coefficients in float32 and in bfloat16, from the same batches and seed.

    python benchmarks/dtypes.py

Prints every candidate's alignment in both, their difference and the half-width of the 95% interval, and the Fisher
seconds. Labels are drawn from slightly other probabilities, so that part of the difference is label noise.
"""

import datetime
import tempfile

import align_ray


def main() -> None:
    rankings, seconds = {}, {}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            study = align_ray.open_study(align_ray.load_config(overrides={"output": folder, "embedding.dtype": dtype}))
            seconds[dtype] = align_ray.embed(study)["work"]["actor_seconds"]
            result = align_ray.align(study)
            (target,) = result["targets"]
            rankings[dtype] = {row["candidate"]: row for row in result["ranking"][target]}
            rankings[dtype + " head"] = result["others"]["head"]["matrix"][target]
    print(f"{datetime.date.today()}; Fisher seconds: " + ", ".join(f"{d} {s:.0f}" for d, s in seconds.items()) + "\n")
    print(
        "| candidate | float32 | bfloat16 | difference | ± of float32 | difference of head rows "
        "|\n|---|---|---|---|---|---|"
    )
    for name, row in rankings["float32"].items():
        other = rankings["bfloat16"][name]["value"]
        head = rankings["bfloat16 head"][name]["value"] - rankings["float32 head"][name]["value"]
        half = row["high"] - row["value"]
        print(f"| {name} | {row['value']:.4f} | {other:.4f} | {other - row['value']:+.4f} | {half:.4f} | {head:+.4f} |")


if __name__ == "__main__":
    main()

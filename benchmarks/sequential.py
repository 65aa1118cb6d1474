"""What sequential embedding saves, and whether its error rate holds, by simulation.

    python benchmarks/sequential.py [--studies 1000]

Alignments of batches are normal with effects of both sides; candidates differ by the gaps named. A study errs when it
settles any pair in the wrong order at any look. Beside it: testing every look at 95% without dividing the error.
"""

import numpy as np
import typer

from align_ray.alignment.comparison import contrasts, looks_of, p_above_adjusted, unsettled

CASES = {
    "wide gaps": [0.50, 0.56, 0.62, 0.68, 0.74, 0.80],
    "two close": [0.50, 0.502, 0.56, 0.60, 0.65, 0.72],
    "all equal": [0.60] * 6,
}
MOST, OWN, SHARED, PAIR = 64, 0.02, 0.02, 0.01


def study(means: np.ndarray, rng: np.random.Generator, looks: list[int], divided: bool) -> tuple[bool, float]:
    """Whether a wrong order was settled, and the share of the largest number of batches that was embedded."""
    target = rng.normal(0, SHARED, MOST)
    full = [m + rng.normal(0, OWN, (MOST, 1)) + target + rng.normal(0, PAIR, (MOST, MOST)) for m in means]
    counts, of_target, wrong = np.full(len(means), looks[0]), looks[0], False
    asked = len(looks) if divided else 1
    for following in [*looks[1:], None]:
        c = contrasts([a[:n, :of_target] for a, n in zip(full, counts, strict=True)])
        sure = p_above_adjusted(c) >= 1 - 0.05 / asked
        below = means[:, None] < means[None, :]
        equal = (means[:, None] == means[None, :]) & ~np.eye(len(means), dtype=bool)
        wrong |= bool((sure & (below | equal)).any())
        waiting = unsettled(c, asked)
        if not waiting or following is None:
            break
        counts[waiting], of_target = following, following
    return wrong, float((counts.sum() + of_target) / ((len(means) + 1) * MOST))


def main(studies: int = 1000) -> None:
    looks = looks_of(8, MOST)
    print(f"{studies} studies, looks at {looks} batches\n")
    print("| candidates | wrong decisions | batches embedded | wrong, error not divided |\n|---|---|---|---|")
    for name, means in CASES.items():
        ours = [study(np.array(means), np.random.default_rng(s), looks, True) for s in range(studies)]
        plain = [study(np.array(means), np.random.default_rng(s), looks, False)[0] for s in range(studies)]
        print(
            f"| {name} | {np.mean([w for w, _ in ours]):.1%} | {np.mean([n for _, n in ours]):.0%} | "
            f"{np.mean(plain):.1%} |"
        )


if __name__ == "__main__":
    typer.run(main)

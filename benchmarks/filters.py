"""What `embedding.filters` costs in accuracy: alignment from some filters of the probe beside alignment from all.

    align-ray embed STUDY.yaml                     # with all of them
    python benchmarks/filters.py STUDY.yaml [--set FIELD=VALUE ...] [--filters 1024 --filters 16384 ...]

Of the units that the study has stored: alignment (the main measure) of every candidate with every target, once from all
filters, and from so many, chosen at random `--choices` times. Printed: the error of a coefficient (root of the mean
square, and the largest of all choices), beside the median half width of its 95% interval from all filters; the lowest
rank correlation of the candidates of a target with theirs from all; bytes of a batch's unit.
"""

import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import spearmanr

from align_ray.alignment.coefficients import batch_matrix, main_blocks
from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.intervals import two_sample_mean
from align_ray.cli.common import study_of
from align_ray.pipeline import evidence_of


def alignments(rows: dict[str, np.ndarray], targets: list[str], candidates: list[str], epsilon: float | None):
    """Coefficients and half widths of their intervals, float64 [M, K] each."""
    found = [[two_sample_mean(distance_matrix(rows[c], rows[t], epsilon)) for c in candidates] for t in targets]
    return (
        np.array([[1 - one.value for one in line] for line in found]),
        np.array([[(one.high - one.low) / 2 for one in line] for line in found]),
    )


def main(
    study: Path,
    filters: Annotated[list[int] | None, typer.Option()] = None,
    choices: Annotated[int, typer.Option(min=2)] = 10,
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    opened = study_of(study, set_)
    config, units = opened.config, dict(evidence_of(opened).units)
    blocks, epsilon = main_blocks(next(iter(units.values()))), config.embedding.epsilon
    rows = {name: batch_matrix(of_corpus, blocks) for name, of_corpus in units.items()}
    targets, candidates = [t.name for t in config.targets], [c.name for c in config.candidates]
    whole, width = alignments(rows, targets, candidates, epsilon)
    total = next(iter(rows.values())).shape[1]
    draws = next(iter(units.values()))[0].blocks[blocks[0]].shape[0]
    print(
        f"probe {config.probe.model}, {total:,} filters ({', '.join(blocks)}), {len(targets)} targets, "
        f"{len(candidates)} candidates, {len(next(iter(rows.values())))} batches a corpus; {datetime.date.today()}\n"
    )
    print("| filters | error | largest | half width of the interval | lowest rank correlation | kB a batch |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for kept in filters or [1024, 4096, 16384, 65536]:
        if kept >= total:
            continue
        errors, lowest = [], 1.0
        for _ in range(choices):
            at = np.sort(rng.choice(total, kept, replace=False))
            some, _ = alignments({n: r[:, at] for n, r in rows.items()}, targets, candidates, epsilon)
            errors.append(some - whole)
            lowest = min(lowest, *(spearmanr(a, b).statistic for a, b in zip(some, whole, strict=True)))
        print(
            f"| {kept:,} | {np.sqrt(np.mean(np.square(errors))):.5f} | {np.abs(errors).max():.5f} | "
            f"{np.median(width):.5f} | {lowest:.3f} | {4 * kept * (draws + 1) / 1e3:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)

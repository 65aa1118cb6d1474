"""How often the extrapolation of short trainings holds: later rungs of recorded trainings, held out.

    align-ray study STUDY.yaml
    python benchmarks/extrapolation.py OUTPUT/losses.parquet

Of every target the trainings of all candidates and seeds are seen up to 16% or 40% of their steps, and the losses at
their end are predicted (`align_ray/training/extrapolation.py`), on the same held-out rows. Of the model's loss before
training only the other half's rows are recorded: their mean stands for it. `hold`: share of 90% intervals with the loss
that was measured, and with the difference of two candidates; `lowest target` where that is worst; `half`: half their
width; `error`: mean distance from the measured loss, and that of the last rung taken as it is; `rank`: Spearman with
the measured losses, mean over targets, and that of the last rung; `settled`: targets of which one candidate was said to
be the lowest with P >= 0.9, and of how many it was. Nats per token.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from align_ray.training.extrapolation import further_changes
from align_ray.training.loop import effective_steps
from align_ray.training.rungs import SETTLED

SEEN = (0.16, 0.40)
LEVEL = 0.90


def changes_of(table: pd.DataFrame, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses less those before training, float64 [candidates, seeds, rungs, rows], and the steps of the rungs."""
    own = table[table.target == target]
    before = np.mean(own[own.steps == 0].losses.iloc[0])
    rungs = own[own.half == "validation"].drop_duplicates(["candidate", "seed", "steps"])
    losses = rungs.set_index(["candidate", "seed", "steps"]).losses
    names, seeds, steps = (sorted(losses.index.unique(level)) for level in ("candidate", "seed", "steps"))
    stacked = np.array([[[losses[n, seed, s] for s in steps] for seed in seeds] for n in names])
    return stacked - before, np.array(steps)


def judged(changes: np.ndarray, steps: np.ndarray, seen: float) -> dict[str, float]:
    """What is said of the end from the rungs up to a share `seen` of the steps, against what it was."""
    kept = steps <= round(seen * steps[-1])
    at = np.array([effective_steps(int(s), int(steps[-1])) for s in steps])
    middle, further = further_changes(changes[:, :, kept], at[kept], at[-1:], np.random.default_rng(0))
    last, truth = changes[:, :, kept][:, :, -1].mean((1, 2)), changes[:, :, -1].mean((1, 2))
    drawn, expected = last + further[..., 0], last + middle[:, 0]
    i, j = np.triu_indices(len(truth), 1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low_apart, high_apart = np.quantile(drawn[:, i] - drawn[:, j], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    apart = truth[i] - truth[j]
    p_best = (drawn == drawn.min(1, keepdims=True)).mean(0)
    settled = bool(p_best.max() >= SETTLED)
    return {
        "hold": float(((low <= truth) & (truth <= high)).mean()),
        "hold_apart": float(((low_apart <= apart) & (apart <= high_apart)).mean()),
        "half": float((high - low).mean() / 2),
        "error": float(abs(expected - truth).mean()),
        "error_last": float(abs(last - truth).mean()),
        "settled": settled,
        "right": settled and bool(p_best.argmax() == truth.argmin()),
        "rank": float(spearmanr(expected, truth).statistic),
        "rank_last": float(spearmanr(last, truth).statistic),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", type=Path, nargs="+")
    print(
        "| trainings | seen | hold | lowest target | differences hold | half | error | of the last rung | rank | of it "
        "| settled |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for path in parser.parse_args().losses:
        table = pd.read_parquet(path)
        targets = {t: changes_of(table, t) for t in table.target.unique()}
        for seen in SEEN:
            rows = [judged(*recorded, seen) for recorded in targets.values()]
            mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
            settled = f"{sum(row['right'] for row in rows)} right of {sum(row['settled'] for row in rows)}"
            print(
                f"| {path.stem} | {seen:.0%} | {mean['hold']:.0%} | {min(row['hold'] for row in rows):.0%} | "
                f"{mean['hold_apart']:.0%} | {mean['half']:.3f} | {mean['error']:.3f} | {mean['error_last']:.3f} | "
                f"{mean['rank']:.2f} | {mean['rank_last']:.2f} | {settled} |"
            )


if __name__ == "__main__":
    main()

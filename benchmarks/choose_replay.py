"""What choosing candidates by short trainings would have cost and found: replay of a study's recorded trainings.

    align-ray study STUDY.yaml
    python benchmarks/choose_replay.py OUTPUT [--prior "unigram cross-entropy"] [--hopeless 0.05]

OUTPUT holds losses.parquet and prediction.json. Every seed's trainings are replayed rung by rung as `align-ray choose`
makes them, without the targets' own corpora: for all targets together, and for each target alone. The prior is any
measure of the study. The truth is the mean of all seeds' losses on the report halves; what decides is one seed's, on
the validation halves. Intervals are judged on the same seed's report halves, less the candidates' mean, with the noise
of these rows added. The gain over words is of rank correlations with the *other* seeds' losses, its interval over
candidates and targets.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import norm, spearmanr

from align_ray.checks.predict import helps_elsewhere
from align_ray.checks.prediction import difference, quality
from align_ray.training import rungs
from align_ray.training.loop import effective_steps

DELTA = 0.005
WORDS = "unigram cross-entropy"


class Recorded:
    """A study's trainings; K candidates, and of each target those that are not its own."""

    def __init__(self, folder: Path, prior: str = WORDS) -> None:
        table = pq.read_table(folder / "losses.parquet").to_pandas()
        judged = json.loads((folder / "prediction.json").read_text())
        self.candidates, self.targets = judged["candidates"], judged["targets"]
        self.seeds = sorted(table.seed.unique())
        self.steps = sorted(int(s) for s in table.steps.unique() if s)
        self.tokens = {int(r.steps): int(r.tokens) for r in table[table.steps > 0].itertuples()}
        rows = table.set_index(["half", "target", "candidate", "seed", "steps"]).losses.to_dict()
        self.of = lambda half, t, c, seed, steps: np.asarray(rows[half, t, c, seed, steps])
        end = self.steps[-1]
        self.final = {
            (t, s): np.array([self.of("report", t, c, s, end).mean() for c in self.candidates])
            for t in self.targets
            for s in self.seeds
        }
        self.truth = {t: np.mean([self.final[t, s] for s in self.seeds], axis=0) for t in self.targets}
        starts = table[table.steps == 0].groupby("target").losses.first()
        # of the validation half's start nothing is recorded: the report half's stands for it
        self.before = {t: float(np.mean(starts[t])) for t in self.targets}
        scores = np.array(judged["measures"][prior]["scores"])
        self.words = np.array(judged["measures"][WORDS]["scores"])
        foreign = {t: np.array([c not in judged["related"].get(t, []) for c in self.candidates]) for t in self.targets}
        self.foreign = np.stack(list(foreign.values()), axis=1)
        self.priors = {t: np.where(foreign[t], -scores[:, i], np.nan) for i, t in enumerate(self.targets)}

    def others(self, seed: int) -> np.ndarray:
        """[K, M]: the mean final losses of the other seeds, NaN for a target's own corpora."""
        found = [[self.final[t, s] for t in self.targets] for s in self.seeds if s != seed]
        return np.where(self.foreign, np.mean(found, axis=0).T, np.nan)

    def replay(self, seed: int, targets: list[str], which: np.ndarray) -> Iterator[rungs.Halving]:
        """Rung by rung, of the candidates `which`."""
        names = [self.candidates[k] for k in which]

        def train(who: list[int], rung: int) -> dict[str, np.ndarray]:
            at = self.steps[rung]
            return {t: np.stack([self.of("validation", t, names[k], seed, at) for k in who]) for t in targets}

        full = [effective_steps(s, self.steps[-1]) for s in self.steps]
        priors = {t: self.priors[t][which] for t in targets}
        return rungs.halve(train, full, len(which), priors, lambda: self.before, DELTA, 0)

    def judged(self, seed: int, target: str, which: np.ndarray, standing: rungs.Standing) -> dict[str, float]:
        known = np.isfinite(standing.middle)
        truth, mean = self.truth[target][which][known], standing.middle[known]
        end = np.stack([self.of("report", target, self.candidates[k], seed, self.steps[-1]) for k in which[known]])
        own = end - end.mean(0)
        off = own.mean(1) - (mean - mean.mean())
        reach = norm.ppf(0.95) * np.sqrt(standing.apart[known] ** 2 + own.var(1, ddof=1) / end.shape[1])
        return {
            "rank": spearmanr(mean, truth).statistic,
            "regret": truth[np.lexsort((mean, -standing.p_within[known]))[0]] - truth.min(),
            "inside": float((abs(off) <= reach).mean()),
        }


def _elsewhere(study: Recorded) -> str:
    """How a candidate's mean gain on the other targets ranks its losses on this one."""
    losses = np.stack([study.truth[t] for t in study.targets], axis=1)
    gain = np.array([study.before[t] for t in study.targets]) - losses
    found = quality(helps_elsewhere(gain, ~study.foreign), np.where(study.foreign, losses, np.nan)).spearman
    return f"a candidate's mean over other targets: rank {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _over_seeds(gains: list[dict[str, float]]) -> str:
    """Means over seeds of a difference and of its interval's ends (no less wide than the interval of the mean)."""
    value, low, high = (np.mean([g[k] for g in gains]) for k in ("value", "low", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prior", default=WORDS)
    parser.add_argument("--hopeless", type=float, default=rungs.HOPELESS)
    options = parser.parse_args()
    rungs.HOPELESS = options.hopeless
    study = Recorded(options.output, options.prior)
    everyone, end = np.arange(len(study.candidates)), study.steps[-1]
    foreign = {t: np.flatnonzero(np.isfinite(study.priors[t])) for t in study.targets}

    words, one_seed, ceiling, scatter = [], [], [], []
    for t in study.targets:
        truth = study.truth[t][foreign[t]]
        prior = study.priors[t][foreign[t]]
        words.append((spearmanr(prior, truth).statistic, truth[prior.argmin()] - truth.min()))
        finals = np.stack([study.final[t, s][foreign[t]] for s in study.seeds])
        scatter.append(finals.std(0, ddof=1).mean())
        for i, own in enumerate(finals):
            ceiling.append(spearmanr(own, np.delete(finals, i, 0).mean(0)).statistic)
            one_seed.append(truth[own.argmin()] - truth.min())
    rank, regret = np.mean(words, axis=0)
    print(
        f"{len(study.candidates)} candidates, {len(study.targets)} targets, {len(study.seeds)} seeds, own corpora left "
        f"out; prior ({options.prior}): rank {rank:.2f}, regret {regret:.3f}; a whole training on each, one seed: "
        f"regret {np.mean(one_seed):.3f}, rank with the other seeds {np.mean(ceiling):.2f}; a loss scatters over seeds "
        f"by {np.mean(scatter):.3f} nats; {_elsewhere(study)}\n"
    )
    print("all targets at once, after each rung:\n")
    print("| tokens a candidate | candidates | tokens, of all | rank | less words (other seeds) | regret | 90% hold |")
    print("|---|---|---|---|---|---|---|")
    passed = {s: list(study.replay(s, study.targets, everyone)) for s in study.seeds}
    for rung in range(max(map(len, passed.values()))):
        found, trained, spent, gains = [], [], [], []
        for s, halvings in passed.items():
            at = halvings[min(rung, len(halvings) - 1)]
            trained.append(sum(r > rung for r in at.reached))
            spent.append(sum(study.steps[min(r, rung + 1) - 1] for r in at.reached) / (len(everyone) * end))
            found += [study.judged(s, t, everyone, at.standings[t]) for t in study.targets]
            scores = -np.stack([at.standings[t].middle for t in study.targets], axis=1)
            losses = np.where(np.isfinite(scores), study.others(s), np.nan)
            gains.append(difference(np.nan_to_num(scores), study.words, losses))
        mean = {k: np.mean([f[k] for f in found]) for k in found[0]}
        print(
            f"| {study.tokens[study.steps[rung]]:,} | {np.mean(trained):.1f} | {np.mean(spent):.0%} | "
            f"{mean['rank']:.2f} | {_over_seeds(gains)} | {mean['regret']:.3f} | {mean['inside']:.0%} |"
        )
    found, spent, settled = [], [], []
    for s in study.seeds:
        for t in study.targets:
            *_, last = study.replay(s, [t], foreign[t])
            spent.append(sum(study.steps[r - 1] for r in last.reached) / (len(foreign[t]) * end))
            settled.append(last.standings[t].settled)
            found.append(study.judged(s, t, foreign[t], last.standings[t]))
    mean = {k: np.mean([f[k] for f in found]) for k in found[0]}
    print(
        f"\none target at a time, to where it ends: {np.mean(spent):.0%} of the tokens of whole trainings on all, rank "
        f"{mean['rank']:.2f}, regret {mean['regret']:.3f} (median {np.median([f['regret'] for f in found]):.3f}), "
        f"settled {np.mean(settled):.0%}, 90% intervals hold {mean['inside']:.0%}"
    )


if __name__ == "__main__":
    main()

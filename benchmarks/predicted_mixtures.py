"""How well is the loss of a mixture predicted without training on it? Against real trainings on held-out mixtures.

    align-ray study STUDY.yaml --set finetune.keep_weights=true       # the trainings on each candidate alone
    python benchmarks/predicted_mixtures.py STUDY.yaml [--mixtures 24] [--seeds 2] [--runs 8] [--set FIELD=VALUE]

Random mixtures, sparse and dense, are trained on for `predict.tokens`; ranks are those of the report halves' losses,
what predicts them is measured on the validation halves; errors and intervals are of those halves' losses. `--runs`
further mixtures correct the prediction, as in a search. Beside it, of the same trainings: word counts, Fisher
alignment, the linear average, RegMix's LightGBM and the log-linear law on the same number of runs, the candidates' own
among them. The ceiling is one seed's losses against the others'. Every loss is written as
mixtures.parquet to the study's output. Goes on where it was stopped.
"""

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from align_ray.cli.common import study_of
from align_ray.corpora.rows import report_half, validation_half
from align_ray.corpora.sample import token_counts
from align_ray.mixture.goals import cross_entropy_goal, fisher_goal
from align_ray.mixture.merged import merged_losses
from align_ray.mixture.predicted import (
    Features,
    ensemble_losses,
    first_runs,
    linear_losses,
    next_runs,
    predict,
    validation_rows,
)
from align_ray.mixture.surrogates import SURROGATES
from align_ray.pipeline import evidence_of
from align_ray.runtime import connect
from align_ray.training.jobs import heldout_probabilities, job_keys, train_jobs
from align_ray.training.rows import candidate_jobs, heldout_rows, mixture_jobs, with_rate

POOL = 40
"""Mixtures among which the runs that correct are chosen."""


def random_mixtures(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Float64 [n, K], of concentrations from sparse to dense."""
    return np.stack([rng.dirichlet(np.full(k, c)) for c in rng.choice([0.1, 0.3, 1.0], n)])


def judged(predicted: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """Of one target's n mixtures: rank correlation, whether the pick is in the best quarter, and its regret."""
    pick, best = int(np.argmin(predicted)), np.sort(loss)
    return {
        "spearman": float(spearmanr(predicted, loss).statistic),
        "top quarter": float(loss[pick] <= best[max(0, len(loss) // 4 - 1)]),
        "regret": float(loss[pick] - best[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--mixtures", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE")
    options = parser.parse_args()
    say = lambda line: print(line, flush=True)
    study = study_of(options.study, options.set, write=False)
    connect(study.config.cluster)
    study = with_rate(study, study.config.predict.tokens)
    config, heldout, tokens = study.config, heldout_rows(study), token_counts(study)
    names, size = [c.name for c in config.candidates], config.predict.tokens
    experts = candidate_jobs(study, size)
    keeping = study.changed(finetune={"keep_weights": True})
    alone = train_jobs(keeping, heldout, experts)
    keys = job_keys(study, heldout, experts)

    rng = np.random.default_rng(0)
    held = random_mixtures(rng, options.mixtures, len(names))
    mixtures = np.concatenate([held, random_mixtures(rng, POOL, len(names))])
    plain = study.changed(finetune={"keep_weights": False})

    def trained(weights: np.ndarray, seeds: int) -> list:
        named = [dict(zip(names, w.tolist(), strict=True)) for w in weights]
        return train_jobs(plain, heldout, mixture_jobs(plain, tokens, named, size, range(seeds)))

    say(f"training on {options.mixtures} held-out mixtures with {options.seeds} seeds")
    done = trained(held, options.seeds)
    of_half = lambda half, t: np.array([half(run.losses[t].after).mean() for run in done]).reshape(len(held), -1)
    losses, same = ({t: of_half(half, t) for t in heldout} for half in (report_half, validation_half))

    start = time.perf_counter()
    probabilities = {t: validation_rows(p) for t, p in heldout_probabilities(study, heldout, experts, True).items()}
    ensemble = ensemble_losses(probabilities, mixtures)
    many = random_mixtures(rng, 1000, len(names))
    ensemble_losses(probabilities, many)
    a_minute = 60 * (len(many) + len(mixtures)) / (time.perf_counter() - start)
    start = time.perf_counter()
    merged = merged_losses(study, heldout, keys, mixtures)
    merging = time.perf_counter() - start
    features = Features(ensemble, merged, linear_losses(probabilities, mixtures))

    guess = np.mean([features.of(t)[0] for t in heldout], axis=0)
    may = np.arange(len(mixtures)) >= len(held)
    runs = first_runs(mixtures, guess, may, (options.runs + 1) // 2)

    def measured() -> dict[str, np.ndarray]:
        found = trained(mixtures[runs], 1)
        return {t: np.array([validation_half(r.losses[t].after).mean() for r in found]) for t in heldout}

    say(f"training on {options.runs} mixtures that correct the prediction")
    corrected = predict(features, runs, known := measured())
    mean = np.mean(list(corrected.mean.values()), axis=0)
    error = np.sqrt(np.mean(np.square(list(corrected.error.values())), axis=0) / len(heldout))
    best = float(np.mean(list(known.values()), axis=0).min())
    runs += next_runs(mixtures, mean, error, best, may, runs, options.runs - len(runs))
    corrected = predict(features, runs, known := measured())

    rows = evidence_of(study).rows, evidence_of(study).batches
    words = cross_entropy_goal(config, rows[1], len(study.tokenizer))(None)
    fisher = fisher_goal(study.changed(search={"objective": "scaled-cosine"}).config, rows[0])(None)
    corners = np.concatenate([np.eye(len(names)), mixtures[runs]])
    own = {t: np.array([validation_half(run.losses[t].after).mean() for run in alone]) for t in heldout}
    first = slice(0, len(held))
    inside, table = [], {}
    for i, target in enumerate(heldout):
        loss, seen = losses[target].mean(1), np.concatenate([own[target], known[target]])
        of = {
            f"predicted ({len(names)} + {len(runs)} trainings)": corrected.mean[target][first],
            "merged and ensemble, mean": features.of(target)[0][first],
            "merged": merged[target][first],
            "ensemble": ensemble[target][first],
            "linear average": features.linear[target][first],
            "word counts": -words.objectives[i].values(held),
            "Fisher alignment": -fisher.objectives[i].values(held),
            f"log-linear law, {len(corners)} runs": SURROGATES["log-linear"](corners, seen)(held),
            f"LightGBM (RegMix), {len(corners)} runs": SURROGATES["lightgbm"](corners, seen)(held),
        }
        for name, values in of.items():
            wrong = float(np.abs(values - same[target].mean(1)).mean())
            table.setdefault(name, []).append(judged(values, loss) | {"error": wrong})
        low, high = corrected.interval(target)
        inside.append((low[first] <= same[target][:, 0]) & (same[target][:, 0] <= high[first]))
    ceiling = np.mean([spearmanr(losses[t][:, 0], losses[t][:, 1:].mean(1)).statistic for t in heldout])
    spread = np.mean([losses[t].mean(1).std() for t in heldout])
    of_seeds = np.mean([losses[t].std(1, ddof=1).mean() for t in heldout])
    say(
        f"\n{len(held)} mixtures of {len(names)} candidates, {len(heldout)} targets, {size:,} tokens, {options.seeds} "
        f"seeds; {datetime.date.today()}. Losses of mixtures spread by {spread:.3f} nats (standard deviation), of "
        f"seeds by {of_seeds:.3f}; one seed's rank with the others' at {ceiling:.3f}. 95% intervals hold "
        f"{np.mean(inside):.1%} of one seed's losses. The ensemble: {a_minute:,.0f} mixtures a minute, reading "
        f"included; a merged model: {merging / len(mixtures):.2f} s.\n"
    )
    say("| | Spearman | lowest target | pick in the best quarter | regret, nats | mean error, nats |")
    say("|---|---|---|---|---|---|")
    for name, found in table.items():
        means = {key: np.mean([row[key] for row in found]) for key in found[0]}
        lowest = min(row["spearman"] for row in found)
        error_text = f"{means['error']:.4f}" if name not in ("word counts", "Fisher alignment") else ""
        say(
            f"| {name} | {means['spearman']:.3f} | {lowest:.2f} | {means['top quarter']:.0%} | {means['regret']:.4f} | "
            f"{error_text} |"
        )
    written = [
        {"mixture": m, "weights": held[m].tolist(), "seed": s, "target": t, "loss": float(losses[t][m, s])}
        for m in range(len(held)) for s in range(options.seeds) for t in heldout
    ]  # fmt: skip
    study.store.write_table("mixtures.parquet", pa.Table.from_pylist(written))


if __name__ == "__main__":
    main()

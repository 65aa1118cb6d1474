"""Do 95% intervals cover? By simulation with a known truth, and by splitting real corpora.

    python benchmarks/interval_coverage.py [--probe embedded] [--repetitions 2000] [--pieces 2048]

Simulation: batch embeddings with random effects common to many rows and Gamma noise; the truth is that of 4,000
batches. Splitting: two corpora are embedded once in 2,048 small batches each, which then are the whole population;
samples of n batches are drawn from it. Beside ours: the published interval, which takes all pairs of batches as
independent.
"""

from collections import Counter
from itertools import islice
from typing import Annotated

import numpy as np
import torch
import typer

from align_ray.alignment.coefficients import pooled_alignment
from align_ray.alignment.distance import distance_matrix
from align_ray.alignment.intervals import one_sample_mean, two_sample_mean
from align_ray.config import Sampling
from align_ray.corpora.draw import document_key, make_batches, tokenised
from align_ray.corpora.installed import INSTALLED
from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.fisher.trunk import fisher_embeddings

SIZES = (8, 32, 128)
DIMENSION, FACTORS, POPULATION = 400, 5, 4000
SMALL = Sampling(sequence_length=32, batch_size=4)


def simulated(rng: np.random.Generator):
    """A function that draws n batch embeddings of corpus 0 or 1."""
    load = 0.15 * rng.normal(size=(2, FACTORS, DIMENSION))
    mean = np.exp(0.7 * rng.normal(size=(2, DIMENSION)))
    return lambda which, n: (
        mean[which] * np.exp(rng.normal(size=(n, FACTORS)) @ load[which]) * rng.gamma(4, 0.25, size=(n, DIMENSION))
    )


def embedded(name: str, located, pieces: int) -> np.ndarray:
    """Small batches of an installed corpus, trunk rows, float32 [pieces, D]."""
    model, tokenizer = load_model(located), load_tokenizer(located)
    texts = sorted((document_key(0, t), t) for t in islice(INSTALLED[name](), 3000))
    drawn = (tokenised(key, text, tokenizer) for key, text in texts)
    ids = make_batches(drawn, tokenizer, SMALL, pieces, Counter())
    rows = fisher_embeddings(model, ids.reshape(-1, ids.shape[-1]), 1, 0).trunk[0].numpy()
    return rows.reshape(len(ids), SMALL.batch_size, -1).mean(1)


def outside_mean(values: np.ndarray) -> float:
    n = len(values)
    return float((values.sum() - np.trace(values)) / (n * (n - 1)))


def covers(low: float, truth: float, high: float) -> bool:
    return low <= truth <= high


def count(draw, truth: dict[str, float], n: int, repetitions: int) -> dict[str, float]:
    """Share of intervals of n batches a side that cover the truth."""
    hits: dict[str, int] = dict.fromkeys(("pairwise", "pairs as independent", "diversity", "pooled"), 0)
    for _ in range(repetitions):
        a, b = draw(0, n), draw(1, n)
        pairs = 1 - distance_matrix(a, b)
        half = 1.96 * pairs.std(ddof=1) / np.sqrt(pairs.size)
        found = {
            "pairwise": two_sample_mean(pairs),
            "diversity": one_sample_mean(distance_matrix(a, a)),
            "pooled": pooled_alignment(a, b),
        }
        for name, e in found.items():
            hits[name] += covers(e.low, truth[name], e.high)
        hits["pairs as independent"] += covers(pairs.mean() - half, truth["pairwise"], pairs.mean() + half)
    return {name: hit / repetitions for name, hit in hits.items()}


def main(
    probe: str = "embedded",
    repetitions: int = 2000,
    pieces: int = 2048,
    corpora: Annotated[tuple[str, str], typer.Option()] = ("python-stdlib", "licences"),
) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    draw = simulated(rng)
    populations = {"simulation": [draw(0, POPULATION), draw(1, POPULATION)]}
    located = locate_probe(ProbeName(probe))
    populations[" and ".join(corpora)] = [embedded(name, located, pieces) for name in corpora]
    print(
        "| population | batches | "
        + " | ".join(("pairwise", "pairs as independent", "diversity", "pooled"))
        + " |\n|---|---|---|---|---|---|"
    )
    for name, (a, b) in populations.items():
        truth = {
            "pairwise": float(1 - distance_matrix(a, b).mean()),
            "diversity": outside_mean(distance_matrix(a, a)),
            "pooled": pooled_alignment(a, b).value,
        }
        sample = (
            draw
            if name == "simulation"
            else lambda which, n, parts=(a, b): parts[which][rng.choice(len(parts[which]), n, replace=False)]
        )
        for n in SIZES:
            shares = count(sample, truth, n, repetitions if n < 128 else repetitions // 4)
            print(f"| {name} | {n} | " + " | ".join(f"{shares[k]:.3f}" for k in shares) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)

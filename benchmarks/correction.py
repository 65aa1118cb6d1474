"""The bias of alignment as label draws and sequences shrink, before and after correction.

    python benchmarks/correction.py [--probe embedded] [--corpora python-stdlib licences]

Pairwise form: batches of 8 sequences of 64 tokens, R label draws; the truth is that of 32 draws, corrected. Pooled
form: B sequences a corpus in all, in batches of 2, one draw; the truth is that of all sequences. Means and standard
errors over disjoint samples.
"""

from collections import Counter
from itertools import islice
from typing import Annotated

import numpy as np
import torch
import typer

from align_ray.alignment.coefficients import pooled_alignment
from align_ray.alignment.distance import distance_matrix, scaled_cosine_distance
from align_ray.alignment.noise import corrected_distances
from align_ray.config import Sampling
from align_ray.corpora.draw import document_key, make_batches, tokenised
from align_ray.corpora.installed import INSTALLED
from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.fisher.trunk import fisher_embeddings

BATCH, LENGTH = 8, 64
PAIRED, POOLED = 16, 512


def sequences(name: str, located, count: int) -> np.ndarray:
    """Token ids of an installed corpus, int [count, LENGTH]."""
    tokenizer = load_tokenizer(located)
    texts = sorted((document_key(0, t), t) for t in islice(INSTALLED[name](), 3000))
    drawn = (tokenised(key, text, tokenizer) for key, text in texts)
    sampling = Sampling(sequence_length=LENGTH, batch_size=count)
    return make_batches(drawn, tokenizer, sampling, 1, Counter())[0]


def main(
    probe: str = "embedded",
    corpora: Annotated[tuple[str, str], typer.Option()] = ("python-stdlib", "licences"),
    draws_in_all: Annotated[int, typer.Option("--draws")] = 32,
) -> None:
    torch.set_num_threads(1)
    located = locate_probe(ProbeName(probe))
    model = load_model(located)
    ids = [sequences(name, located, POOLED) for name in corpora]
    draws = [fisher_embeddings(model, rows[: PAIRED * BATCH], draws_in_all, 0).trunk.numpy() for rows in ids]
    draws = [d.reshape(draws_in_all, PAIRED, BATCH, -1).mean(2) for d in draws]  # [R, batches, D]
    truth = pairwise(draws)[1]
    print(
        f"{' and '.join(corpora)}, probe {probe}; pairwise alignment of {draws_in_all} draws, corrected: {truth:.4f}\n"
    )
    print("| draws | bias | bias, corrected |\n|---|---|---|")
    for r in [r for r in (2, 4, 8) if 2 * r <= draws_in_all]:
        raw, free = [], []
        for start in range(0, draws_in_all - r + 1, r):
            plain, corrected = pairwise([d[start : start + r] for d in draws])
            raw.append(plain - truth)
            free.append(corrected - truth)
        print(f"| {r} | {spread(raw)} | {spread(free)} |")
    single = [fisher_embeddings(model, rows, 1, 1).trunk[0].numpy() for rows in ids]
    batches = [s.reshape(POOLED // 2, 2, -1).mean(1) for s in single]
    truth = pooled_alignment(*batches).value
    print(f"\npooled alignment of {POOLED} sequences each, corrected: {truth:.4f}\n")
    print("| sequences | bias | bias, corrected |\n|---|---|---|")
    for n in (8, 32, 128):
        raw, free = [], []
        for start in range(0, POOLED // 2, n // 2):
            parts = [b[start : start + n // 2] for b in batches]
            raw.append(1 - float(scaled_cosine_distance(parts[0].mean(0), parts[1].mean(0))) - truth)
            free.append(pooled_alignment(*parts).value - truth)
        print(f"| {n} | {spread(raw)} | {spread(free)} |")


def pairwise(draws: list[np.ndarray]) -> tuple[float, float]:
    """Pairwise alignment of draws [R, batches, D] of two corpora: plain, and freed of label noise."""
    distances = distance_matrix(*(d.mean(0) for d in draws))
    left_out = [distance_matrix(*(np.delete(d, k, axis=0).mean(0) for d in draws)) for k in range(len(draws[0]))]
    return float(1 - distances.mean()), float(1 - corrected_distances(distances, left_out).mean())


def spread(values: list[float]) -> str:
    """Mean and its standard error."""
    return f"{np.mean(values):+.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    typer.run(main)

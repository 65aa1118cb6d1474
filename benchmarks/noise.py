"""The noise floor of the exact estimator and of the published procedure, on the same rows, and what each costs.

    python benchmarks/noise.py [--rows 512] [--probe embedded] [--only exact|reference]

A batch of `--rows` sequences of 128 tokens of the demo's target is embedded twice under other labels (and, for the
published procedure, other dropout); the floor is the distance of the two. From it follows what an embedding of a floor
of 0.02 costs: d = v / (1 + v), and v falls with the number of replicates. One thread.
"""

import argparse
import datetime
import time
from collections import Counter

import numpy as np
import torch

from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.alignment.noise import corpus_noise, relative_variance
from align_ray.config import Sampling
from align_ray.config_corpora import Corpus
from align_ray.corpora.draw import document_key, make_batches, smallest, tokenised
from align_ray.corpora.installed import INSTALLED
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import Estimator, ProbeName

WANTED = 0.02


def rows_of(corpus: Corpus, tokenizer, rows: int) -> np.ndarray:
    """One batch, int32 [rows, 128]."""
    texts = list(INSTALLED[corpus.source.removeprefix("installed:")]())
    drawn = smallest(((document_key(0, t), t) for t in texts), 10**8)
    documents = (tokenised(key, text, tokenizer) for key, text in drawn)
    return make_batches(documents, tokenizer, Sampling(batch_size=rows), 1, Counter())[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--probe", default="embedded")
    parser.add_argument("--only", choices=["exact", "reference"])
    options = parser.parse_args()
    located = locate_probe(ProbeName(options.probe))
    tokenizer = load_tokenizer(located)
    ids = rows_of(Corpus(name="target", source="installed:python-stdlib-heldout"), tokenizer, options.rows)
    print(f"probe {options.probe}, B={len(ids)}, T={ids.shape[1]}; {datetime.date.today()}; one thread\n")
    print(
        f"| estimator | rows | floor of d | seconds an embedding | seconds to a floor of {WANTED} "
        "|\n|---|---|---|---|---|"
    )
    kinds = {
        "exact": {"estimator": "exact"},
        "exact, bfloat16": {"estimator": "exact", "dtype": "bfloat16"},
        "reference": {"estimator": "reference"},
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind, settings in kinds.items():
        if options.only and not kind.startswith(options.only):
            continue
        probe = load_model(located, dtype=settings.get("dtype", "float32"))
        times = []
        for draws in (2,) if kind == "reference" else (1, 2):
            torch.set_num_threads(1)  # again: numba, in `corpus_noise`, sets OpenMP to all cores
            start = time.perf_counter()
            estimator = Estimator(settings["estimator"], draws)
            unit, _ = embed_batch(probe, ids, estimator, 0, tokenizer.eos_token_id or 0)
            times.append(time.perf_counter() - start)
        found[kind] = unit.blocks
        if len(times) == 1:  # replicates of the published procedure share nothing
            times.insert(0, times[0] / 2)
        for blocks in (
            [("trunk", "vocabulary"), ("vocabulary",), ("trunk",)] if "vocabulary" in unit.blocks else [("trunk",)]
        ):
            noise = corpus_noise([unit] * 2, blocks, diversity=0.0, absolute=estimator.epsilon)
            v = noise["draw_variance"]
            replicates = max(1.0, v / relative_variance(WANTED))
            seconds = times[0] + (np.ceil(replicates) - 1) * (times[1] - times[0])
            for draws in (1, 2):
                floor = v / draws / (1 + v / draws)
                print(
                    f"| {kind}, R={draws} | {' + '.join(blocks)} | {floor:.5f} | {times[draws - 1]:.1f} | "
                    f"{seconds:.1f} |"
                )
    if {"exact", "exact, bfloat16"} <= found.keys():
        for block in ("trunk", "head"):
            d = scaled_cosine_distance(*(found[kind][block].mean(0) for kind in ("exact", "exact, bfloat16")))
            print(f"\nd of {block} rows, bfloat16 against float32, the same labels wanted: {d:.6f}")


if __name__ == "__main__":
    main()

"""Do the 95% intervals of the ranking's cross-entropy cover on real text, and is the larger of two parts preferred?

    python benchmarks/word_coverage.py [--repetitions 1000] [--pieces 768]

Two installed corpora are cut into batches of 512 tokens, which then are the whole population; samples of n batches a
side are drawn from it. A model is counted on 2 or on 8 batches. Last columns: two disjoint samples of one corpus, one
of n and one of 32 batches, are compared: how often the larger has the lower cross-entropy, and how often that is held
for surely so (P > 0.975, which a sound probability reaches in 2.5%).
"""

from collections import Counter
from itertools import islice
from typing import Annotated

import numpy as np
import typer

from align_ray.alignment.comparison import contrasts, p_above
from align_ray.alignment.intervals import two_sample_mean
from align_ray.alignment.words import Size, cross_entropy_values
from align_ray.config import Sampling
from align_ray.corpora.draw import document_key, make_batches, tokenised
from align_ray.corpora.installed import INSTALLED
from align_ray.fisher.probe import load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName

SIZES = (2, 4, 8, 16, 32)
SMALL = Sampling(sequence_length=64, batch_size=8)


def batches_of(name: str, tokenizer, pieces: int) -> np.ndarray:
    """Batches of an installed corpus, int32 [pieces, B, T]."""
    texts = sorted((document_key(0, t), t) for t in islice(INSTALLED[name](), 12_000))
    drawn = (tokenised(key, text, tokenizer) for key, text in texts)
    return make_batches(drawn, tokenizer, SMALL, pieces, Counter())


def main(
    repetitions: int = 1000,
    pieces: int = 768,
    corpora: Annotated[tuple[str, str], typer.Option()] = ("licences", "python-stdlib"),
) -> None:
    tokenizer, rng = load_tokenizer(locate_probe(ProbeName("embedded"))), np.random.default_rng(0)
    vocabulary = len(tokenizer)
    candidate, target = (batches_of(name, tokenizer, pieces) for name in corpora)
    print(f"candidate {corpora[0]}: {len(candidate)} batches, target {corpora[1]}: {len(target)} batches")
    print("| batches of a model | batches | coverage | larger part first | surely |\n|---|---|---|---|---|")
    for k in (2, 8):
        size = Size(k * SMALL.batch_size * SMALL.sequence_length)
        truth = cross_entropy_values(candidate, target, vocabulary, size).mean()
        for n in (n for n in SIZES if n >= k):
            hits, larger = [], []
            for _ in range(repetitions):
                drawn, other = rng.permutation(len(candidate))[: n + 32], rng.permutation(len(target))[:n]
                goal = target[other]
                values = cross_entropy_values(candidate[drawn[:n]], goal, vocabulary, size)
                found = two_sample_mean(values)
                hits.append(found.low <= truth <= found.high)
                large = cross_entropy_values(candidate[drawn[n:]], goal, vocabulary, size)
                larger.append(p_above(contrasts([-large, -values]))[0, 1])
            first, surely = np.mean(np.array(larger) > 0.5), np.mean(np.array(larger) > 0.975)
            print(f"| {k} | {n} | {np.mean(hits):.3f} | {first:.3f} | {surely:.3f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)

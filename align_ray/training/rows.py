"""Training sequences of a mixture, at the repetition rate of the real run, and of a candidate alone, all different.

A proxy sees fewer tokens than the run it stands for, so it would hardly ever repeat a small corpus that the real run
repeats many times. For a mixture each corpus is therefore first cut down to its unique tokens times proxy tokens /
token budget. A candidate alone stands for no such run: it is trained on as many different sequences as there are.
"""

import zlib

import numpy as np

from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.store import Store
from align_ray.training.jobs import Job


def mixture_rows(
    training: dict[str, np.ndarray], unique: dict[str, int], weights: dict[str, float], rows: int, seed: int
) -> np.ndarray:
    """`rows` sequences in the proportions of the weights, int32 [rows, T].

    `training`: int32 [n, T] by corpus; `unique`: sequences of each that a proxy may see; the seed chooses which, and
    where more are wanted they are repeated. A corpus whose sample is smaller than what may be seen is repeated earlier.
    """
    parts = []
    for (name, _), count in zip(weights.items(), split_tokens(np.array(list(weights.values())), rows), strict=True):
        order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(training[name]))
        pool = order[: max(1, unique[name])]
        parts.append(training[name][np.resize(pool, count)])
    return np.concatenate(parts)


def unique_sequences(config: Config, tokens: dict[str, int], proxy_tokens: int) -> dict[str, int]:
    """Unique sequences of every corpus for a proxy of so many tokens, from the corpus' own tokens and the token
    budget."""
    share = proxy_tokens / config.search.token_budget / config.sampling.sequence_length
    return {name: max(1, round(count * share)) for name, count in tokens.items()}


def mixture_jobs(
    study: Study, tokens: dict[str, int], mixtures: list[dict[str, float]], proxy_tokens: int, seeds: range
) -> list[Job]:
    """A job for every mixture and seed, mixture by mixture. `tokens`: available tokens by candidate."""
    training = training_sequences(study.config, study.store)
    unique = unique_sequences(study.config, tokens, proxy_tokens)
    return [mixture_job(study.config, training, unique, w, proxy_tokens, seed) for w in mixtures for seed in seeds]


def candidate_jobs(study: Study, tokens: int) -> list[Job]:
    """A job for every candidate alone, of `tokens` tokens: different sequences, repeated only where its sample holds
    too few."""
    training = training_sequences(study.config, study.store)
    everything = {name: len(rows) for name, rows in training.items()}
    return [mixture_job(study.config, training, everything, {name: 1.0}, tokens, 0) for name in training]


def seen(job: Job, epochs: int) -> dict[str, float]:
    """What a job is trained on: its `distinct_tokens`, and how often each is seen on average, `epochs`; `epochs` given
    are those over the job's rows."""
    distinct = len(np.unique(job.rows, axis=0))
    return {"distinct_tokens": distinct * job.rows.shape[1], "epochs": epochs * len(job.rows) / distinct}


def mixture_job(
    config: Config,
    training: dict[str, np.ndarray],
    unique: dict[str, int],
    weights: dict[str, float],
    proxy_tokens: int,
    seed: int,
) -> Job:
    """The training on a mixture (see `mixture_rows`)."""
    rows = -(-proxy_tokens // config.sampling.sequence_length)
    drawn = mixture_rows(training, unique, weights, rows, config.seed + seed)
    return Job(drawn, config.finetune.learning_rate, seed)


def training_sequences(config: Config, store: Store) -> dict[str, np.ndarray]:
    """The candidates' sequences for training, int32 [n, T]."""
    return {c.name: read_sample(store, c.name).training for c in config.candidates}


def heldout_sequences(study: Study) -> dict[str, np.ndarray]:
    """The targets' held-out sequences, int32 [m, T]."""
    return {t.name: read_sample(study.store, t.name).heldout for t in study.config.targets}


def validation_half(values: np.ndarray) -> np.ndarray:
    """The first half of held-out sequences (axis 0), or of anything that goes with them: for whatever chooses by its
    loss."""
    return values[: max(1, len(values) // 2)]


def report_half(values: np.ndarray) -> np.ndarray:
    """The second half, for what is reported; all of a single sequence."""
    return values[len(values) // 2 :]


def split_tokens(weights: np.ndarray, rows: int) -> np.ndarray:
    """Whole sequences per corpus that sum to `rows`, by the largest remainder."""
    exact = weights * rows
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[i] += 1
    return counts

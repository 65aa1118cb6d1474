"""Training sequences of a mixture, at the repetition rate of the real run, and of a candidate alone, all different.

A proxy sees fewer tokens than the run it stands for, so it would hardly ever repeat a small corpus that the real run
repeats many times. For a mixture each corpus is therefore first cut down to its unique tokens times proxy tokens /
token budget. A candidate alone stands for no such run: it is trained on as many different sequences as there are.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.rows import FILLED, Rows, validation_half
from align_ray.corpora.sample import read_sample
from align_ray.store import Store
from align_ray.training.jobs import Job, train_jobs


def mixture_rows(
    training: dict[str, Rows], unique: dict[str, int], weights: dict[str, float], rows: int, seed: int
) -> Rows:
    """`rows` rows in the proportions of the weights.

    `training`: by corpus; `unique`: rows of each that a proxy may see; the seed chooses which, and
    where more are wanted they are repeated. A corpus whose sample is smaller than what may be seen is repeated earlier.
    """
    parts = []
    for (name, _), count in zip(weights.items(), split_tokens(np.array(list(weights.values())), rows), strict=True):
        order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(training[name]))
        pool = order[: max(1, unique[name])]
        parts.append(training[name][np.resize(pool, count)])
    return Rows.joined(parts)


def unique_sequences(config: Config, tokens: dict[str, int], proxy_tokens: int) -> dict[str, int]:
    """Unique sequences of every corpus for a proxy of so many tokens, from the corpus' own tokens and the token
    budget."""
    share = proxy_tokens / config.search.token_budget / config.sampling.sequence_length
    return {name: max(1, round(count * share)) for name, count in tokens.items()}


def mixture_jobs(
    study: Study, tokens: dict[str, int], mixtures: list[dict[str, float]], proxy_tokens: int, seeds: range
) -> list[Job]:
    """A job for every mixture and seed, mixture by mixture. `tokens`: available tokens by candidate."""
    training, replay = training_rows(study.config, study.store), replay_text(study)
    unique = unique_sequences(study.config, tokens, proxy_tokens)
    return [
        mixture_job(study.config, training, unique, w, proxy_tokens, seed, replay) for w in mixtures for seed in seeds
    ]


def candidate_jobs(study: Study, tokens: int, seeds: range = range(1), names: Sequence[str] | None = None) -> list[Job]:
    """A job of `tokens` tokens for every candidate (or those of `names`) alone and seed, candidate by candidate:
    different rows, repeated only where its sample holds too few."""
    training, replay = training_rows(study.config, study.store), replay_text(study)
    everything = {name: len(rows) for name, rows in training.items()}
    return [
        mixture_job(study.config, training, everything, {name: 1.0}, tokens, seed, replay)
        for name in (training if names is None else names)
        for seed in seeds
    ]


def scored_alone(config: Config) -> bool:
    """Whether trainings on each candidate alone are scored on the targets' tasks wherever they are wanted first: where
    `finetune`, which reports the scores, takes every one of them as its first seed's."""
    return config.choose.by != "training"


def seen(job: Job, epochs: int) -> dict[str, float]:
    """What a job is trained on: its `distinct_tokens`, and how often each is seen on average, `epochs`; `epochs` given
    are those over the job's rows. Rows of replay and what
    fills rows up are not counted."""
    _, first = np.unique(job.rows.ids, axis=0, return_index=True)
    tokens = int((job.rows.documents[first] != FILLED).sum())
    return {"distinct_tokens": tokens, "epochs": epochs * len(job.rows) / len(first)}


def mixture_job(
    config: Config,
    training: dict[str, Rows],
    unique: dict[str, int],
    weights: dict[str, float],
    proxy_tokens: int,
    seed: int,
    replay: Rows | None,
) -> Job:
    """The training on a mixture (see `mixture_rows`)."""
    rows = -(-proxy_tokens // config.sampling.sequence_length)
    drawn = mixture_rows(training, unique, weights, rows, config.seed + seed)
    return Job(drawn, learning_rate(config), seed, replay)


def learning_rate(config: Config) -> float:
    """The one that trainings take; where there are several, the choice comes first (`with_rate`)."""
    (rate,) = config.finetune.learning_rate
    return rate


def with_rate(study: Study, tokens: int | None = None) -> Study:
    """The study with one learning rate: of several that with the lowest loss on the targets' validation halves, mean
    over targets, after a training of `tokens` (default: `finetune.tokens`) on the uniform mixture of the candidates,
    all rows different."""
    rates = study.config.finetune.learning_rate
    if len(rates) == 1:
        return study
    training = training_rows(study.config, study.store)
    uniform = dict.fromkeys(training, 1 / len(training))
    everything = {name: len(rows) for name, rows in training.items()}
    alone = study.changed(finetune={"learning_rate": rates[:1]})
    tokens = tokens or study.config.finetune.tokens
    job = mixture_job(alone.config, training, everything, uniform, tokens, 0, replay_text(study))
    tried = [dataclasses.replace(job, learning_rate=rate) for rate in rates]
    done = train_jobs(study, heldout_rows(study), tried, scored=False)
    losses = [float(np.mean([validation_half(x.after).mean() for x in trained.losses.values()])) for trained in done]
    best = int(np.argmin(losses))
    study.say(
        f"learning rate {rates[best]:g}: the uniform mixture's validation loss is "
        + ", ".join(f"{loss:.4f} at {rate:g}" for rate, loss in zip(rates, losses, strict=True))
    )
    before = float(np.mean([validation_half(x.before).mean() for x in done[0].losses.values()]))
    if losses[best] > before:
        study.say(
            f"WARNING: every learning rate raises that loss, {before:.4f} before: the base knows such text already, or "
            "the rates are too high, and what is trained so tells of forgetting"
        )
    if rates[best] in (min(rates), max(rates)):
        study.say("note: that is the end of the list 'finetune.learning_rate'; a rate beyond it may be better")
    return study.changed(finetune={"learning_rate": [rates[best]]})


def training_rows(config: Config, store: Store) -> dict[str, Rows]:
    """The candidates' rows for training."""
    return {c.name: read_sample(store, c.name).training for c in config.candidates}


def replay_text(study: Study) -> Rows | None:
    """Rows of general text, where the study has some."""
    replay = study.config.replay
    return read_sample(study.store, replay.name).training if replay else None


def heldout_rows(study: Study) -> dict[str, Rows]:
    """The targets' held-out rows."""
    return {t.name: read_sample(study.store, t.name).heldout for t in study.config.targets}


def split_tokens(weights: np.ndarray, rows: int) -> np.ndarray:
    """Whole sequences per corpus that sum to `rows`, by the largest remainder."""
    exact = weights * rows
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[i] += 1
    return counts

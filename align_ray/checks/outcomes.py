"""What a predictive study predicts: every target's loss after training on every candidate alone.

All trainings of one size see the same number of tokens. A target's held-out sequences are split: the learning rate is
chosen on the first quarter, losses are reported on the rest.
"""

import dataclasses
import zlib

import numpy as np

from align_ray.context import Study
from align_ray.training.jobs import Job, Trained, train_jobs
from align_ray.training.rows import heldout_sequences, training_sequences

PILOT_STEP = 3
"""Every third candidate takes part in the choice of the learning rate."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Losses of one size of training, nats per token on the targets' test parts. K candidates, M targets, S seeds."""

    tokens: int
    learning_rate: float
    validation: dict[float, float]
    """By learning rate tried: the mean loss over the pilot's candidates and all targets on the validation parts."""
    after: np.ndarray
    """float64 [K, M, S]."""
    before: np.ndarray
    """float64 [M]: of the model as it is (for random weights: the mean over seeds)."""
    seconds: float
    """Median seconds of one training, without measuring the losses."""


def measure_outcomes(study: Study) -> list[Outcome]:
    """Train on every candidate, for every number of tokens and seed, what is not in the store (Ray Train)."""
    config = study.config
    heldout, training, settings = heldout_sequences(study), training_sequences(config, study.store), config.predict

    def run(plan: list[tuple[int, float, int]], names: list[str]) -> dict[tuple[int, float, int], list[Trained]]:
        jobs = []
        for tokens, rate, seed in plan:
            for name in names:
                rows = _draw(
                    training[name],
                    tokens // config.sampling.sequence_length,
                    [config.seed, seed, zlib.crc32(name.encode())],
                )
                jobs.append(Job(rows, rate, seed))
        done = train_jobs(study, heldout, jobs)
        return {key: done[i * len(names) : (i + 1) * len(names)] for i, key in enumerate(plan)}

    pilot = [(tokens, rate, 0) for tokens in settings.tokens for rate in settings.learning_rates]
    some = list(training)[::PILOT_STEP]
    study.say(f"choosing learning rates: {len(pilot) * len(some)} trainings")
    validation = {key: float(np.mean([_after(t, 0) for t in trained])) for key, trained in run(pilot, some).items()}
    chosen = {n: min(settings.learning_rates, key=lambda rate: validation[n, rate, 0]) for n in settings.tokens}
    whole = [(n, chosen[n], seed) for n in settings.tokens for seed in range(settings.seeds)]
    study.say(f"training on every candidate: {len(whole) * len(training)} trainings, without those done")
    runs = run(whole, list(training))
    outcomes = []
    for n in settings.tokens:
        seeds = [runs[n, chosen[n], seed] for seed in range(settings.seeds)]
        after = np.stack([np.stack([_after(t, 1) for t in trained]) for trained in seeds], axis=-1)
        starts = [[_parts(losses.before)[1] for losses in trained[0].losses.values()] for trained in seeds]
        seconds = float(np.median([t.seconds for trained in seeds for t in trained]))
        tried = {rate: validation[n, rate, 0] for rate in settings.learning_rates}
        outcomes.append(Outcome(n, chosen[n], tried, after, np.mean(starts, axis=0), seconds))
    return outcomes


def _draw(rows: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
    """`count` of the rows in random order; where there are fewer, all of them again and again."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[np.resize(order, max(1, count))]


def _after(trained: Trained, part: int) -> np.ndarray:
    """Mean loss of every target after training on its validation part (0) or its test part (1), [M]."""
    return np.array([_parts(losses.after)[part] for losses in trained.losses.values()])


def _parts(losses: np.ndarray) -> tuple[float, float]:
    """Mean over the first quarter of the sequences, and over the rest."""
    cut = max(1, len(losses) // 4)
    return float(losses[:cut].mean()), float(losses[cut:].mean())

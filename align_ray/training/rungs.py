"""Which candidates go on to the next rung: successive halving by what is believed of the end, not by places.

After every rung the posterior of all candidates' final losses (`posterior.py`) says of each target which candidates can
still be its best, within `delta`. A target is settled where one is so with probability SETTLED; a candidate stops where
it is hopeless for every target that is not. So nothing depends on which worker was first. The first rung is the end of
the warm-up: one rung does not say how late candidates come apart (`posterior.py`), so that nobody stops at it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from align_ray.errors import ConfigError
from align_ray.training.posterior import Curves, final_losses, row_noise

SETTLED = 0.9
"""Probability that a candidate is within delta of the best, from which on a target needs no more training."""
HOPELESS = 0.05
"""Probability of being within delta of the best, below which a candidate is given up for a target."""
FEWEST = 2
"""Candidates that go on for a target that is not settled, even where each of many is unlikely to be its best."""
DIVERGED = 2.0
"""Times the loss before training, above which a training has diverged."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What is believed of a target's candidates at the end of their trainings; float64 [K] each, NaN and no probability
    for what is no candidate of the target."""

    middle: np.ndarray
    """Final loss, nats per token: the median."""
    error: np.ndarray
    """Its standard deviation."""
    low: np.ndarray
    high: np.ndarray
    """Ends of its 95% interval."""
    apart: np.ndarray
    """Standard deviation of the final loss less the candidates' mean: what all have in common left out."""
    p_best: np.ndarray
    p_within: np.ndarray
    """Probability of being within delta of the best one."""
    regret: np.ndarray
    """Expected loss above the best candidate's."""

    @property
    def settled(self) -> bool:
        return bool(self.p_within.max() >= SETTLED)


@dataclasses.dataclass(frozen=True)
class Halving:
    """What was trained, and what is believed after a rung."""

    reached: list[int]
    """By candidate: the number of rungs it was trained to."""
    standings: dict[str, Standing]
    diverged: list[int]
    """Candidates whose loss is no number or exploded: they take no further part."""


def halve(
    train: Callable[[list[int], int], Mapping[str, np.ndarray]],
    steps: Sequence[float],
    candidates: int,
    priors: Mapping[str, np.ndarray],
    before: Callable[[], Mapping[str, float]],
    delta: float,
    seed: int,
) -> Iterator[Halving]:
    """Train all `candidates` to the first two rungs, the ones with hope to the next, and so on; gives what is believed
    after every rung.

    `train(who, rung)`: losses by target of these candidates after that rung, [len(who), rows]; it is called for one
    rung after the other. `steps`: of the rungs, increasing; the last is the end. `priors`: by target float64 [K], lower
    is better, NaN where a candidate is none of that target. `before`: by target the loss before training, known after
    the first rung. `delta`: a difference of losses that makes none, nats per token.
    """
    alive, reached, diverged = list(range(candidates)), [0] * candidates, set[int]()
    rows: dict[str, np.ndarray] = {}
    for rung in range(len(steps)):
        for target, losses in train(alive, rung).items():
            kept = rows.setdefault(target, np.full((candidates, len(steps), losses.shape[1]), np.nan))
            kept[alive, rung] = losses
        for k in alive:
            reached[k] = rung + 1
            means = {t: losses[k, rung].mean() for t, losses in rows.items()}
            if not all(mean <= DIVERGED * before()[t] for t, mean in means.items()):  # true of what is no number too
                diverged.add(k)
        left = {t: np.where(np.isin(range(candidates), list(diverged)), np.nan, p) for t, p in priors.items()}
        if any(np.isfinite(prior).sum() < 2 for prior in left.values()):
            raise ConfigError("of a target's candidates all trainings but one diverged; lower finetune.learning_rate.")
        standings = standings_of(rows, np.array(steps), left, before(), delta, seed)
        yield Halving(list(reached), standings, sorted(diverged))
        if rung == 0:
            alive = [k for k in alive if k not in diverged]
            continue
        hopeful: set[int] = set()
        for standing in standings.values():
            if not standing.settled:
                best = [k for k in np.argsort(-standing.p_within, kind="stable") if k in alive][:FEWEST]
                hopeful |= {int(k) for k in best} | {k for k in alive if standing.p_within[k] >= HOPELESS}
        alive = [k for k in alive if k in hopeful - diverged]
        if not alive:
            return


def standings_of(
    rows: Mapping[str, np.ndarray],
    steps: np.ndarray,
    priors: Mapping[str, np.ndarray],
    before: Mapping[str, float],
    delta: float,
    seed: int,
) -> dict[str, Standing]:
    """By target, from losses by row [K, R, m], NaN where a candidate was not trained so far (see `halve`)."""
    of = {t: np.flatnonzero(np.isfinite(prior)) for t, prior in priors.items()}
    curves = [
        Curves(rows[t][of[t]].mean(-1), row_noise(rows[t][of[t]]), steps, priors[t][of[t]], before[t]) for t in priors
    ]
    found = {}
    for (target, which), losses in zip(of.items(), final_losses(curves, np.random.default_rng(seed)), strict=True):
        best, common = losses.min(1, keepdims=True), losses.mean(1, keepdims=True)
        low, high = np.maximum(np.quantile(losses, [0.025, 0.975], axis=0), 0.0)  # no loss is below
        whole = lambda values, empty=np.nan, which=which, k=len(priors[target]): _whole(values, which, k, empty)
        found[target] = Standing(
            middle=whole(np.median(losses, axis=0)),
            error=whole(losses.std(0)),
            low=whole(low),
            high=whole(high),
            apart=whole((losses - common).std(0)),
            p_best=whole((losses == best).mean(0), 0.0),
            p_within=whole((losses - best < delta).mean(0), 0.0),
            regret=whole((losses - best).mean(0)),
        )
    return found


def _whole(values: np.ndarray, which: np.ndarray, candidates: int, empty: float) -> np.ndarray:
    filled = np.full(candidates, empty)
    filled[which] = values
    return filled

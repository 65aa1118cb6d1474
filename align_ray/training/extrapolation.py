"""How the losses of short trainings would go on beyond the tokens trained on: an extrapolation, not a measurement.

The model of one target, for run k at x = log(1 + steps):

    loss_k(x) = before + m(x) + f_k(x) + noise

m, the course of all runs together, and the f_k, what is each run's own, are Gaussian processes of one kind and one
amplitude a: a straight line through 0 and, as large at the last rung, an integrated Brownian motion, that is a slope
that wanders (the cubic smoothing spline: Wahba, J. R. Stat. Soc. B 40, 1978; the local linear trend of structural time
series). So a course goes on in log tokens as it last went, and its error grows with the distance in log tokens to the
power 1.5. The noise is that of seeds and held-out rows, the same rows at all rungs; a is averaged over a grid by its
marginal likelihood. Closed form; how often its intervals hold: docs/coverage.md.

Steps beyond the last are taken to be of the same batch, rate and text: that text is seen again and again where the
budget is more than a corpus holds, or that another schedule ends lower, is not in it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from align_ray.alignment.intervals import two_sample_mean
from align_ray.config import Config
from align_ray.corpora.rows import report_half, validation_half
from align_ray.training.jobs import Trained
from align_ray.training.loop import effective_steps, own_rows
from align_ray.training.posterior import row_noise
from align_ray.training.rungs import SETTLED

AMPLITUDES = tuple(2.0 ** np.arange(-3, 3.5, 0.5))
"""Grid of a, in units of what the runs changed by the last rung (root mean square)."""
DRAWS = 4000
AHEAD = 8
"""Points at which a course beyond the tokens trained is given, the last at the budget."""


def further_changes(
    changes: np.ndarray, steps: np.ndarray, ahead: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the loss from the last rung on: expected, float64 [K, P], and joint draws, [DRAWS, K, P].

    `changes`: losses less those before training of K runs, float64 [K, seeds, R, rows], nats per token, two at least of
    each; `steps`: of the rungs, increasing, [R] (`loop.effective_steps`); `ahead`: steps beyond them, [P].
    """
    k, x, z = len(changes), np.log1p(steps), np.log1p(ahead)
    y, noise = changes.mean((1, 3)), _noise(changes)
    common = y.mean(0)
    unit = max(float(np.sqrt((y[:, -1] ** 2).mean())), float(np.sqrt(noise[-1, -1])), 1e-9)
    logs, middles, spreads = [], [], []
    for a in unit * np.array(AMPLITUDES):
        kernel = a**2 * _kernel(x, x, x[-1])
        towards = a**2 * (_kernel(x, z, x[-1]) - _kernel(x, x[-1:], x[-1]))
        left = a**2 * _kernel(z, z, x[-1]) - a**2 * _kernel(z, x[-1:], x[-1]) - a**2 * _kernel(x[-1:], z, x[-1]) + a**2
        # the mean of the runs is m and the mean of their own parts; K - 1 of the deviations from it are free
        log_all, all_alike, error_all = _conditioned(
            common[None], (1 + 1 / k) * kernel + noise / k, (1 + 1 / k) * towards, (1 + 1 / k) * left, 1
        )
        log_own, own, error_own = _conditioned(y - common, kernel + noise, towards, left, k - 1)
        logs.append(log_all + log_own)
        middles.append(all_alike + own)
        spreads.append((error_all, error_own))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    drawn = []
    for middle, (of_all, of_own), n in zip(middles, spreads, rng.multinomial(DRAWS, weights), strict=True):
        own = rng.standard_normal((n, k, len(z))) @ of_own.T
        shared = rng.standard_normal((n, 1, len(z))) @ of_all.T
        drawn.append(middle + shared + own - own.mean(1, keepdims=True))
    return np.tensordot(weights, np.array(middles), axes=1), np.concatenate(drawn)


def _kernel(u: np.ndarray, v: np.ndarray, end: float) -> np.ndarray:
    """Covariance of a course of amplitude 1: half of its variance at `end` is the line's, half the wandering slope's.

    That of an integrated Brownian motion is min^2 (3 max - min) / 6.
    """
    low, high = np.minimum.outer(u, v), np.maximum.outer(u, v)
    return 0.5 * np.outer(u, v) / end**2 + 0.5 * low**2 * (3 * high - low) / (2 * end**3)


def _noise(changes: np.ndarray) -> np.ndarray:
    """Covariance of the error of a run's mean losses at the rungs [R, R], mean over runs: of held-out rows (what all
    runs have in common there is no error: they are compared on the same) and of seeds."""
    k, seeds = changes.shape[:2]
    noise = row_noise(changes.mean(1)).mean(0)
    by_seed = changes.mean(3)
    apart = by_seed - by_seed.mean(1, keepdims=True)
    return noise + np.einsum("ksr,ksq->rq", apart, apart) / (k * (seeds - 1)) / seeds


def _conditioned(
    y: np.ndarray, covariance: np.ndarray, towards: np.ndarray, left: np.ndarray, free: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Of curves y [n, R]: their log-likelihood (`free` of them are independent), and what is expected ahead [n, P],
    with a root of its covariance [P, P]."""
    p = covariance.shape[0]
    factor = cho_factor(covariance + 1e-9 * np.trace(covariance) / p * np.eye(p), lower=True)
    by_y = cho_solve(factor, y.T)
    log = -0.5 * float((y.T * by_y).sum()) - free * float(np.log(np.diag(factor[0])).sum())
    values, vectors = np.linalg.eigh(left - towards.T @ cho_solve(factor, towards))
    return log, by_y.T @ towards, vectors * np.sqrt(np.maximum(values, 0.0))


def extrapolations(config: Config, sequences: int, trained: Mapping[str, Sequence[Trained]]) -> dict[str, Any]:
    """By target, how the losses of runs on so many `sequences` would go on to the token budget (see `extrapolate`);
    `trained`: by run, one training a seed, of runs of one length. A run whose loss is no number is left out. Nothing
    where the budget is no more than was trained on, or a target has fewer than two rungs, runs or rows of each half."""
    first = next(iter(trained.values()))[0]
    steps, which = np.unique([rung.steps for rung in first.rungs], return_index=True)
    per_step = own_rows(config) * config.sampling.sequence_length
    seen = sequences * config.sampling.sequence_length * config.finetune.epochs
    budget, total = config.search.token_budget, int(steps[-1])
    if budget <= seen or len(steps) < 2:
        return {}
    full = np.array([effective_steps(int(s), total) for s in steps])
    tokens = np.geomspace(seen, budget, AHEAD + 1)[1:].round()
    at = {"steps": full, "tokens": np.minimum(steps * per_step, seen)}
    ahead = {"steps": full[-1] + (tokens - seen) / per_step, "tokens": tokens}
    found = {}
    for target in first.losses:
        parts = {name: [_of_target(x, target, which) for x in seeds] for name, seeds in trained.items()}
        finite = {n: seeds for n, seeds in parts.items() if all(np.isfinite(part).all() for x in seeds for part in x)}
        if len(finite) < 2 or min(part.shape[-1] for part in next(iter(finite.values()))[0]) < 2:
            continue
        changes, before, after = (np.array([[x[i] for x in seeds] for seeds in finite.values()]) for i in range(3))
        found[target] = extrapolate(list(finite), changes, before, after, at, ahead, np.random.default_rng(config.seed))
    return found


def _of_target(trained: Trained, target: str, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes at the rungs [R, rows] on the first half of the held-out rows, losses before and after on the second."""
    losses = trained.losses[target]
    rungs = np.stack([trained.rungs[i].losses[target] for i in which])
    return rungs - validation_half(losses.before), report_half(losses.before), report_half(losses.after)


def extrapolate(
    names: Sequence[str],
    changes: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    at: Mapping[str, np.ndarray],
    ahead: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """A target's losses at rungs and beyond, as a JSON value (see `values.Extrapolation`).

    `changes`: see `further_changes`, on the first half of the held-out rows; `before`, `after`: losses of these runs on
    its second half, float64 [K, seeds, rows]; `at`, `ahead`: `steps` (as `further_changes` takes them) and `tokens` of
    the rungs, the last the end, and of the points beyond, the last the budget. Rungs are shown by what they are above
    the end, added to the loss that is reported of the end, so that one loss has one value.
    """
    ends, measured = after.mean((1, 2)), after - before
    middle, further = further_changes(changes, at["steps"], ahead["steps"], rng)
    now = ends + _errors(measured, len(further), rng)
    p_best = np.column_stack([_best(now), _best(now[:, :, None] + further)])  # [K, 1 + P]
    off = np.quantile(further, [0.025, 0.975], axis=0) - middle  # [2, K, P]
    first, last = int(ends.argmin()), int((ends + middle[:, -1]).argmin())
    held = np.logical_and.accumulate(p_best[first] >= SETTLED)
    runs = {}
    for i, name in enumerate(names):
        above = [two_sample_mean(changes[i, :, r] - changes[i, :, -1]) for r in range(len(at["tokens"]) - 1)]
        end, start = two_sample_mean(measured[i]), before[i].mean()
        shown = [(ends[i] + rung.value, ends[i] + rung.low, ends[i] + rung.high) for rung in above]
        value = ends[i] + middle[i]  # its interval begins with that of the end
        low, high = value - np.hypot(off[0, i], end.value - end.low), value + np.hypot(off[1, i], end.high - end.value)
        expected = zip(value, low, high, strict=True)
        runs[name] = {
            "measured": _points(at["tokens"], [*shown, (ends[i], start + end.low, start + end.high)]),
            "expected": _points(ahead["tokens"], expected),
            "p_best": float(p_best[i, 0]),
            "p_best_at_budget": float(p_best[i, -1]),
        }
    points = [at["tokens"][-1], *ahead["tokens"]]
    return {
        "token_budget": int(points[-1]),
        "best": names[first],
        "best_at_budget": names[last],
        "settled_at_budget": bool(p_best[last, -1] >= SETTLED),
        "holds_to": int(points[int(held.sum()) - 1]) if held[0] else None,
        "runs": runs,
    }


def _best(losses: np.ndarray) -> np.ndarray:
    """How often each run is the lowest, of draws [n, K, ...]."""
    return (losses == losses.min(1, keepdims=True)).mean(0)


def _errors(changes: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the error of K runs' mean change, over rows (which all runs share) and seeds, float64 [draws, K];
    `changes`: [K, seeds, rows]."""
    k, seeds, rows = changes.shape
    covariance = np.cov(changes.mean(1)) / rows + np.eye(k) * changes.mean(2).var(1, ddof=1).mean() / seeds
    return rng.multivariate_normal(np.zeros(k), covariance, draws, method="eigh")


def _points(tokens: Iterable[float], losses: Iterable[tuple[float, float, float]]) -> list[dict[str, float]]:
    """A loss is not below 0, whatever a line says."""
    return [
        {"tokens": int(at), **{k: max(0.0, float(v)) for k, v in zip(("value", "low", "high"), loss, strict=True)}}
        for at, loss in zip(tokens, losses, strict=True)
    ]

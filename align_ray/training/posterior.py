"""What a candidate's loss will be at the end of its training, from losses at rungs and a prior measure.

The model of one target, for candidate k at x = log(1 + steps) / log(1 + all steps):

    loss_k(x) = m(x) + beta z_k x^c + f_k(x^c) + noise

m(x), the course of all candidates together, starts at the loss before training and is a straight line of any slope and
a Brownian motion, as large as it has moved or as candidates are apart. z_k is the prior measure (lower is better),
standardised; what it is worth, beta, is learned. f_k is a Gaussian process of variance a^2 at the end: a share 1 - b of
it a straight line, as of a candidate that goes on as it began, and a share b a Brownian motion, which forgets that. The
larger c, the later candidates come apart; one rung says nothing of it, and has c = 1. The noise is that of the held-out
rows, as they show it, the same rows at all rungs. The amplitude a (by target), b and c (of all targets together) are
averaged over a grid by their marginal likelihood, so that nothing is assumed of how much an early loss says: the first
rungs say it. All targets are measured on the same trainings, so that of b and c their evidence is the mean of the
targets', not the sum. All in closed form: candidates are independent, given m and beta.
"""

import dataclasses

import numpy as np

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Grid of b."""
POWERS = (1.0, 2.0, 3.0)
"""Grid of c."""
AMPLITUDES = tuple(2.0 ** np.arange(-3, 3.5, 0.5))
"""Grid of a, in units of what the last rung that all candidates have suggests."""
SLOPE_SPREAD = 30.0
"""Prior standard deviation of the slope of m, in units of its amplitude: it says nothing."""
PRIOR_SPREAD = 0.7
"""Prior standard deviation of beta, in units of a: a measure explains up to about half of the variance."""
MISSING = 1e6
"""Noise variance that stands for a rung that was not reached, in units of a^2."""
DRAWS = 2000
FREEDOM = 4
"""Degrees of freedom at least: with fewer than five a t-distribution has no mean or no variance worth the name."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """A target's losses, of K candidates at R rungs; the last rung is the end of the training.

    `losses` float64 [K, R], nats per token, NaN where a candidate was not trained so far; `noise` [K, R, R], the
    covariance of their errors; `steps` [R]; `prior` [K], lower is better; `before`: the loss before training.
    """

    losses: np.ndarray
    noise: np.ndarray
    steps: np.ndarray
    prior: np.ndarray
    before: float


def row_noise(rows: np.ndarray) -> np.ndarray:
    """Covariance of the errors of K candidates' mean losses at R rungs, float64 [K, R, R], from losses by row
    [K, R, m], NaN where a rung was not reached: of what is a candidate's own, the mean over candidates taken away,
    since all are measured on the same rows."""
    with np.errstate(invalid="ignore"):
        own = rows - np.nansum(rows, axis=0) / np.maximum(1, np.isfinite(rows).sum(0))
    centred = np.nan_to_num(own - own.mean(-1, keepdims=True))
    k, _, m = rows.shape
    own_share = k / max(1, k - 1)  # of the mean that is taken away a part was the candidate's own
    return own_share * np.einsum("krm,ksm->krs", centred, centred) / (m * max(1, m - 1))


def final_losses(curves: list[Curves], rng: np.random.Generator) -> list[np.ndarray]:
    """Draws from the joint posterior of the candidates' losses at the end, by target float64 [DRAWS, K]; without the
    noise of the held-out rows. All targets have the same rungs."""
    powers = POWERS if np.isfinite(curves[0].losses).any(0).sum() > 1 else POWERS[:1]
    grids = [_grid(c, powers) for c in curves]
    logs = np.array([[p.log_likelihood for p in grid] for grid in grids])
    logs = logs.reshape(len(curves), len(powers) * len(SHARES), len(AMPLITUDES))
    of_course = _normalised(np.logaddexp.reduce(logs, axis=2).mean(0))
    drawn = []
    for grid, of_target in zip(grids, logs, strict=True):
        weights = (of_course[:, None] * _normalised(of_target)).ravel()
        counts = rng.multinomial(DRAWS, weights / weights.sum())
        parts = [p.draw(rng, int(n)) for p, n in zip(grid, counts, strict=True) if n]
        drawn.append(np.concatenate(parts))
    return drawn


@dataclasses.dataclass(frozen=True)
class _Point:
    """The posterior at one point of the grid: losses at the end are slope gamma + offset + error, gamma of a normal
    distribution, errors independent."""

    log_likelihood: float
    mean: np.ndarray
    root: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    error: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        freedom = max(FREEDOM, len(self.offset) - 2)
        wider = np.sqrt(freedom / rng.chisquare(freedom, (n, 1)))  # Student's t: few candidates show little of a and b
        gamma = self.mean + wider * (rng.standard_normal((n, len(self.mean))) @ self.root.T)
        return gamma @ self.slope.T + self.offset + wider * self.error * rng.standard_normal((n, len(self.offset)))


def _grid(curves: Curves, powers: tuple[float, ...]) -> list[_Point]:
    """By power, share and amplitude."""
    x = np.log1p(curves.steps) / np.log1p(curves.steps[-1])
    seen = np.isfinite(curves.losses)
    common = int(np.flatnonzero(seen.all(0))[-1])
    apart = float(np.std(curves.losses[:, common]))
    least = max(float(np.sqrt(np.median(curves.noise[:, common, common]))), 1e-9)
    z = curves.prior - curves.prior.mean()
    z = z / (z.std() or 1.0)
    y = np.where(seen, curves.losses - curves.before, 0.0)
    together = max(max(apart, abs(float(y[:, common].mean()))) / x[common], least)
    found = []
    for c in powers:
        unit = max(apart / x[common] ** c, least)
        found += [
            _point(y, seen, curves.noise, x, x**c, z, curves.before, b, a * unit, together)
            for b in SHARES
            for a in AMPLITUDES
        ]
    return found


def _point(
    y: np.ndarray,
    seen: np.ndarray,
    noise: np.ndarray,
    x: np.ndarray,
    own: np.ndarray,
    z: np.ndarray,
    before: float,
    b: float,
    a: float,
    together: float,
) -> _Point:
    """`own` [R]: x^c; `together`: the amplitude of m."""
    k, r = y.shape
    process = a**2 * ((1 - b) * np.outer(own, own) + b * np.minimum.outer(own, own))
    both = seen[:, :, None] & seen[:, None, :]
    covariance = np.where(both, process + noise, 0.0)
    covariance[:, np.arange(r), np.arange(r)] += np.where(seen, 1e-9 * a**2, MISSING * a**2)
    fixed = np.concatenate([np.broadcast_to(np.eye(r), (k, r, r)), (z[:, None] * own)[:, :, None]], axis=2)
    fixed = np.where(seen[:, :, None], fixed, 0.0)  # [K, R, R + 1]
    prior = np.zeros((r + 1, r + 1))
    prior[:r, :r] = together**2 * (SLOPE_SPREAD**2 * np.outer(x, x) + np.minimum.outer(x, x))
    prior[r, r] = a**2 * PRIOR_SPREAD**2
    to_end = np.where(seen, process[:, -1], 0.0)  # [K, R]
    solved = np.linalg.solve(covariance, np.concatenate([fixed, y[:, :, None], to_end[:, :, None]], axis=2))
    by_fixed, by_y, by_end = solved[..., :-2], solved[..., -2], solved[..., -1]
    precision = np.einsum("krp,krq->pq", fixed, by_fixed) + np.linalg.inv(prior)
    towards = np.einsum("krp,kr->p", fixed, by_y)
    mean = np.linalg.solve(precision, towards)
    _, log_det = np.linalg.slogdet(covariance)
    log_likelihood = -0.5 * (
        log_det.sum()
        - (~seen).sum() * np.log(MISSING * a**2)
        + np.linalg.slogdet(precision)[1]
        + np.linalg.slogdet(prior)[1]
        + (y * by_y).sum()
        - mean @ towards
    )
    root = np.linalg.inv(np.linalg.cholesky(precision)).T  # root root' = precision^-1
    end = np.concatenate([np.zeros((k, r - 1)), np.ones((k, 1)), z[:, None]], axis=1)
    slope = end - np.einsum("kr,krp->kp", by_end, fixed)
    error = np.sqrt(np.maximum(a**2 - (to_end * by_end).sum(1), 0.0))
    return _Point(float(log_likelihood), mean, root, slope, before + (to_end * by_y).sum(1), error)


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Shares by the last axis."""
    shares = np.exp(logs - logs.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)

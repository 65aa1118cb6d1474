"""What a mixture must keep to: the simplex with a lower and an upper bound for every corpus, a prior, a number of
corpora.

Weights are shares of tokens. A corpus may be repeated `max_epochs` times within the token budget, so that
w_k <= max_epochs * tokens_k / token_budget (method A.5).
"""

import dataclasses

import numpy as np
from scipy.optimize import brentq

from align_ray.config import Search
from align_ray.errors import ConfigError

TINY = 1e-9


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Bounds and prior of K corpora, float64 [K] each."""

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    caps: np.ndarray
    """The part of `upper` that repetition asks for: max_epochs * tokens / token_budget."""
    prior: np.ndarray
    """The mixture to stay near, sums to 1; how strongly is the goal's (`solver.with_prior`)."""
    most: int | None
    """Largest number of corpora with a weight."""
    per_token: float
    """What one more unique token adds to a corpus' cap: max_epochs / token_budget."""


def constraints_of(search: Search, tokens: dict[str, int]) -> Constraints:
    """From the configuration and the tokens available by corpus. Raises ConfigError where nothing satisfies them."""
    names, available = tuple(tokens), np.array(list(tokens.values()), dtype=np.float64)
    per_token = search.max_epochs / search.token_budget
    caps = per_token * available
    if caps.sum() < 1 - TINY:
        raise ConfigError(
            f"field 'search.token_budget' is {search.token_budget}, but the candidates hold {int(available.sum())} "
            "tokens, "
            f"{int(search.max_epochs * available.sum())} at max_epochs={search.max_epochs:g}; lower the budget, raise "
            "'search.max_epochs' or add corpora."
        )
    lower = np.array([search.weights[n].min if n in search.weights else 0.0 for n in names])
    wanted = np.array([search.weights[n].max if n in search.weights else 1.0 for n in names])
    for name, low, cap in zip(names, lower, caps, strict=True):
        if low > cap + TINY:
            raise ConfigError(
                f"field 'search.weights.{name}' asks for at least {low:g}, but at max_epochs={search.max_epochs:g} "
                "the corpus "
                f"fills {cap:.4g} of the token budget; lower the weight or raise 'search.max_epochs'."
            )
    upper = np.minimum(np.minimum(wanted, caps), 1.0)
    if upper.sum() < 1 - TINY or lower.sum() > 1 + TINY:
        low, high = lower.sum(), upper.sum()
        raise ConfigError(
            f"field 'search.weights': the smallest weights sum to {low:.4g} and the largest, repetition considered, to "
            f"{high:.4g}; 1 must lie between."
        )
    # what rounding leaves of the checks above: bounds that cross, or sums beside 1, have no solution for a solver
    lower = np.minimum(lower, upper)
    lower, upper = lower / max(1.0, lower.sum()), upper / min(1.0, upper.sum())
    most = search.max_corpora
    forced = lower > 0
    if most is not None and (
        forced.sum() > most
        or upper[forced].sum() + np.sort(upper[~forced])[::-1][: most - forced.sum()].sum() < 1 - TINY
    ):
        raise ConfigError(
            f"field 'search.max_corpora' is {most}, but so few corpora cannot fill the budget within the other "
            "constraints; "
            "raise it."
        )
    return Constraints(names, lower, upper, caps, _prior(search, names, available), most, per_token)


def round_tokens(count: float) -> int:
    """A number of tokens to one significant digit: 1,234,567 gives 1,000,000."""
    return max(1, int(float(f"{count:.0e}")))


FREE = 0.05
"""Share of the token budget that may go to one corpus or another, below which the constraints leave no choice."""


def no_choice(search: Search, constraints: Constraints) -> str:
    """A sentence where bounds and repetition limits leave the weights next to no choice; "" where there is one."""
    most = float(constraints.upper.sum())
    free = max(0.0, min(most - 1, 1 - float(constraints.lower.sum())))
    if free >= FREE:
        return ""
    if most - 1 > free:
        return f"The smallest weights leave {free:.1%} of the token budget to choose; lower search.weights."
    smaller = round_tokens(search.token_budget * most / 2)
    return (
        f"The token budget leaves no choice: at search.max_epochs {search.max_epochs:g} the candidates come to "
        f"{most:.2f} times {search.token_budget:,} tokens, so that {free:.1%} of it can go one way or another. With "
        f"search.token_budget {smaller:,} about half could."
    )


def _prior(search: Search, names: tuple[str, ...], available: np.ndarray) -> np.ndarray:
    if search.prior == "uniform":
        return np.full(len(names), 1 / len(names))
    if search.prior == "proportional":
        return available / available.sum()
    given = np.array([search.prior.get(n, 0.0) for n in names])
    return given / given.sum()


def unconstrained(constraints: Constraints) -> Constraints:
    """The simplex alone."""
    k = len(constraints.names)
    return dataclasses.replace(constraints, lower=np.zeros(k), upper=np.ones(k), most=None)


def divergence(constraints: Constraints, w: np.ndarray) -> np.ndarray:
    """KL(w, prior) of many mixtures, [n, K] to [n]."""
    return (w * log_ratio(constraints, w)).sum(1)


def log_ratio(constraints: Constraints, w: np.ndarray) -> np.ndarray:
    """log w / prior, finite for zeros of both."""
    return np.log(np.maximum(w, 1e-9) / np.maximum(constraints.prior, 1e-9))


def support(w: np.ndarray, constraints: Constraints) -> np.ndarray:
    """The corpora to keep, bool [K], at most `constraints.most`: those with a lower bound, then those with most
    weight, as long as the caps of what is kept can fill the budget."""
    kept = constraints.lower > 0
    while (slots := (constraints.most or len(w)) - int(kept.sum())) > 0 and not kept.all():
        for i in (i for i in np.argsort(-w, kind="stable") if not kept[i] and constraints.upper[i] > 0):
            others = np.sort(constraints.upper[~kept & (np.arange(len(w)) != i)])[::-1][: slots - 1]
            if constraints.upper[kept].sum() + constraints.upper[i] + others.sum() >= 1 - TINY:
                kept[i] = True
                break
        else:
            break
    return kept


def restricted(constraints: Constraints, kept: np.ndarray) -> Constraints:
    """The corpora that are not kept, bool [K], get no weight."""
    return dataclasses.replace(
        constraints, upper=np.where(kept, constraints.upper, 0.0), lower=np.where(kept, constraints.lower, 0.0)
    )


def only_mixture(constraints: Constraints) -> np.ndarray | None:
    """The mixture [K] where the bounds, `most` aside, leave one alone; else None. Neither a descent nor a linear
    programme is sure of a solution there: by the rounding of a sum it may seem to have none."""
    free = constraints.upper > constraints.lower
    if constraints.lower.sum() >= 1 - TINY:
        return filled(constraints.lower, constraints)
    if constraints.upper.sum() <= 1 + TINY:
        return filled(constraints.upper, constraints)
    return nearest(constraints.upper, dataclasses.replace(constraints, most=None)) if free.sum() <= 1 else None


def nearest(w: np.ndarray, constraints: Constraints) -> np.ndarray:
    """The feasible weights clip(s * w, lower, upper), s such that they sum to 1: closest to w >= 0 in KL, [K] ->
    [K]; of the corpora of `support` where their number is limited."""
    w = np.maximum(np.asarray(w, np.float64), 1e-12)
    if constraints.most is not None and (constraints.upper > 0).sum() > constraints.most:
        constraints = restricted(constraints, support(w, constraints))

    def excess(log_scale: float) -> float:
        return np.clip(np.exp(log_scale) * w, constraints.lower, constraints.upper).sum() - 1

    if excess(60.0) <= 0:  # the upper bounds sum to 1
        return filled(constraints.upper, constraints)
    if excess(-60.0) >= 0:
        return filled(constraints.lower, constraints)
    found = np.clip(np.exp(brentq(excess, -60.0, 60.0, xtol=1e-14)) * w, constraints.lower, constraints.upper)
    return np.clip(found / found.sum(), constraints.lower, constraints.upper)


def satisfied(constraints: Constraints, w: np.ndarray) -> bool:
    """Whether weights [K] keep to the bounds and to the number of corpora, a millionth aside."""
    few = constraints.most is None or (w > 1e-6).sum() <= constraints.most
    return bool(few and (w >= constraints.lower - 1e-6).all() and (w <= constraints.upper + 1e-6).all())


def filled(w: np.ndarray, constraints: Constraints) -> np.ndarray:
    """Weights [K] within the bounds that sum to 1 but for rounding, with what is missing shared out among those
    above their lower bounds: a quotient by the sum would leave the bounds in the last digit."""
    missing = 1 - w.sum()
    room = np.where(w > constraints.lower, constraints.upper - w if missing > 0 else w - constraints.lower, 0.0)
    if room.sum() > 0:
        w = np.clip(w + np.clip(missing / room.sum(), -1, 1) * room, constraints.lower, constraints.upper)
    return w / w.sum() if abs(w.sum() - 1) > 1e-12 else w


def from_unit_cube(u: np.ndarray, constraints: Constraints) -> np.ndarray:
    """Weights from a point u of the open unit cube, [K] -> [K]: every point gives a feasible mixture.

    -log u, normalised, of a uniform u is uniform on the simplex (gamma parametrisation of Dirichlet(1)); `nearest`
    makes it feasible.
    """
    raw = -np.log(np.clip(u, 1e-9, 1 - 1e-9))
    return nearest(raw / raw.sum(), constraints)


def to_unit_cube(w: np.ndarray) -> np.ndarray:
    """A point u with from_unit_cube(u) = w (feasible w)."""
    return np.exp(-np.clip(w, 1e-6, None))

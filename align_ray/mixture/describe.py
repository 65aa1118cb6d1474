"""What is said of a mixture: its objective, its pooled alignment with an interval, and the epochs it takes."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_ray.alignment.distance import exact_distance_matrix
from align_ray.alignment.intervals import interval
from align_ray.alignment.margins import chunks, let_go
from align_ray.alignment.noise import relative_variance
from align_ray.config import Config
from align_ray.context import reported_weights
from align_ray.corpora.overlap import SHARED
from align_ray.errors import ConfigError
from align_ray.mixture.constraints import (
    Constraints,
    constraints_of,
    nearest,
    no_choice,
    only_mixture,
    restricted,
    satisfied,
    support,
    unconstrained,
)
from align_ray.mixture.solver import Goal, Optimum, pareto_front, solve


def comparison_mixtures(goal: Goal, constraints: Constraints, tokens: dict[str, int]) -> dict[str, np.ndarray]:
    """What a mixture is compared with. `uniform`, `proportional` and `best_single` ignore the constraints (a corpus
    may then be repeated more often); `unimax` and `bad`, around the worst corpus, keep to the caps and to the number
    of corpora."""
    k = len(constraints.names)
    available = np.array(list(tokens.values()), dtype=np.float64)
    single = goal.singles(k)
    capped = dataclasses.replace(
        unconstrained(constraints), upper=np.minimum(constraints.caps, 1.0), most=constraints.most
    )
    largest, worst = (restricted(capped, support(by, capped)) for by in (capped.upper, -single))
    return {
        "uniform": np.full(k, 1 / k),
        "proportional": available / available.sum(),
        "unimax": nearest(np.ones(k), largest),
        "best_single": np.eye(k)[int(np.argmax(single))],
        "bad": nearest(np.eye(k)[int(np.argmin(single))] + 0.01, worst),
    }


def describe(
    config: Config,
    goal: Goal,
    constraints: Constraints,
    tokens: dict[str, int],
    rows: Mapping[str, np.ndarray],
    mixtures: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Weights, value, pooled alignment and repetition of every mixture, and whether it keeps to the constraints."""
    available = np.array(list(tokens.values()), dtype=np.float64)
    share = reported_weights(config)
    return {
        name: {
            "weights": dict(zip(constraints.names, w.tolist(), strict=True)),
            "value": float(goal.values(w[None])[0]),
            "feasible": satisfied(constraints, w),
            "alignment": mixture_alignment(
                w,
                [rows[n] for n in constraints.names],
                [rows[t.name] for t in config.targets],
                share,
                config.embedding.epsilon,
            ),
            "epochs": dict(zip(constraints.names, (w * config.search.token_budget / available).tolist(), strict=True)),
        }
        for name, w in mixtures.items()
    }


def mixture_alignment(
    w: np.ndarray,
    batches: list[np.ndarray],
    targets: list[np.ndarray],
    share: np.ndarray,
    absolute: float | None = None,
) -> dict[str, float]:
    """The mixture's pooled alignment 1 - d(f(w), f_T), mean over targets by `share`, w held fixed. `absolute`: epsilon
    of the distance, default relative.

    Noise of the pooled means makes d too large; the jackknife over the batches of every corpus and target, on the scale
    v = d / (1 - d), removes that and gives the interval (see
    `alignment.coefficients.pooled_alignment`).
    """
    present = [k for k in range(len(w)) if w[k] > 1e-6]
    goals = np.stack([t.mean(0, dtype=np.float64) for t in targets])
    means = []
    for k in present:
        means.append(batches[k].mean(0, dtype=np.float64))
        let_go(batches[k])
    pooled = w[present] @ np.stack(means)

    def v(h: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return relative_variance(exact_distance_matrix(h, ends, absolute))

    whole = v(pooled[None], goals)[0]
    free, variance, smallest = whole.copy(), 0.0, 10**9
    for chunk in chunks([batches[k][None] for k in present], draws=False):
        n, mine = np.repeat(chunk.counts, chunk.counts)[:, None], range(len(present))[chunk.of]
        off = np.repeat(np.stack([means[i] for i in mine]), chunk.counts, axis=0) - chunk.rows[0]
        share_of = np.repeat(w[[present[i] for i in mine]], chunk.counts)[:, None]
        without = v(pooled + share_of * off / np.maximum(n - 1, 1), goals)
        for start, n_k in zip(chunk.starts, chunk.counts, strict=True):
            if n_k > 1:
                own = without[start : start + n_k]
                free -= (n_k - 1) * (own.mean(0) - whole)
                variance, smallest = variance + _jackknife((1 / (1 + own)) @ share), min(smallest, int(n_k))
    for m, target in enumerate(targets):
        n_m = len(target)
        own = v(goals[m] + (goals[m] - target) / (n_m - 1), pooled[None])[:, 0]
        free[m] -= (n_m - 1) * (own.mean() - whole[m])
        variance, smallest = variance + _jackknife(share[m] / (1 + own)), min(smallest, n_m)
    return vars(interval(float((1 / (1 + free)) @ share), variance, smallest - 1))


def _jackknife(without: np.ndarray) -> float:
    """Variance of a statistic from its values [n] with one unit left out."""
    n = len(without)
    return float((n - 1) / n * ((without - without.mean()) ** 2).sum())


def weight_table(
    constraints: Constraints, tokens: dict[str, int], optimum: Optimum, noise: dict[str, Any]
) -> dict[str, Any]:
    """By corpus: the optimum's weight with its interval, what bounds it, and, where that is repetition, what a tenth
    more of its text would add to the objective: a shadow price holds near the optimum alone."""
    result = {}
    for k, name in enumerate(constraints.names):
        w = optimum.weights[k]
        repetition = constraints.caps[k] <= constraints.upper[k] + 1e-12
        binds = "lower" if w < constraints.lower[k] + 1e-6 and constraints.lower[k] > 0 else None
        if w > constraints.upper[k] - 1e-6 and constraints.upper[k] < 1:
            binds = "repetition" if repetition else "upper"
        more = tokens[name] // 10 + 1 if binds == "repetition" else 0
        result[name] = {
            "weight": float(w),
            "low": float(noise["low"][k]),
            "high": float(noise["high"][k]),
            "binds": binds,
            "more_tokens": more,
            "gain_of_more": float(optimum.shadow[k] * constraints.per_token * more),
            "price_of_bound": float(
                optimum.shadow[k] if binds == "upper" else optimum.price[k] if binds == "lower" else 0.0
            ),
        }
    return result


STEPS = 4
"""Doublings of the budget, and halvings, at which it is asked what the optimum would be."""


def what_if(config: Config, goal: Goal, tokens: dict[str, int], start: np.ndarray) -> list[dict[str, Any]]:
    """The optimum at other token budgets, smallest first: its weights, its objective (`value`), that less UniMax's
    under the same constraints (`gain`: what it is worth to choose), the corpora that repetition limits, and whether the
    constraints leave that mixture `only`. `start` [K]: the optimum at the study's budget. Budgets that no mixture can
    fill are left out."""
    budget = config.search.token_budget
    most = int(config.search.max_epochs * sum(tokens.values()))
    points = []
    for at in sorted({most, *(int(budget * 2.0**i) for i in range(-STEPS, STEPS + 1))}):
        if at < 1 or at > most:
            continue
        try:
            constraints = constraints_of(config.search.model_copy(update={"token_budget": at}), tokens)
        except ConfigError:  # a smallest weight that the corpus cannot fill at this budget
            continue
        found = solve(goal, constraints, start)
        even = float(goal.values(nearest(np.ones(len(tokens)), constraints)[None])[0])
        capped = (found.weights > constraints.caps - 1e-6) & (constraints.caps < 1)
        points.append(
            {
                "token_budget": at,
                "weights": dict(zip(constraints.names, found.weights.tolist(), strict=True)),
                "value": found.value,
                "gain": found.value - even,
                "capped": [n for n, c in zip(constraints.names, capped, strict=True) if c],
                "only": only_mixture(constraints) is not None,
            }
        )
    return points


def pareto(config: Config, goal: Goal, constraints: Constraints) -> list[dict[str, Any]]:
    """The front of each pair of targets: target weights, mixture, and every target's value."""
    if len(goal.objectives) < 2:
        return []
    targets = [t.name for t in config.targets]
    points = []
    for share, w in pareto_front(goal.objectives, constraints, 11 if len(targets) < 5 else 3):
        values = goal.by_target(w[None])[:, 0].tolist()
        points.append(
            {
                "target_weights": dict(zip(targets, share.tolist(), strict=True)),
                "weights": dict(zip(constraints.names, w.tolist(), strict=True)),
                "values": dict(zip(targets, values, strict=True)),
            }
        )
    return points


def repeated_together(
    config: Config, tokens: dict[str, int], shared: dict[str, dict[str, float]], weights: dict[str, float]
) -> list[str]:
    """A sentence for every two corpora of a mixture that share text, which is repeated by both. `shared`: by corpus and
    other corpus, the share of the first that the other has too."""
    lines, search = [], config.search
    for one, other in itertools.combinations([n for n, w in weights.items() if w > 0.005], 2):
        common = min(shared.get(a, {}).get(b, 0.0) * tokens[a] for a, b in ((one, other), (other, one)))
        if common < SHARED * (tokens[one] + tokens[other]):
            continue
        epochs = [weights[name] * search.token_budget / tokens[name] for name in (one, other)]
        often = (
            f", more often than search.max_epochs ({search.max_epochs:g})" if sum(epochs) > search.max_epochs else ""
        )
        lines.append(
            f"{one} and {other} share about {common:,.0f} tokens, which the mixture repeats with both: "
            f"{epochs[0]:.2g} + {epochs[1]:.2g} = {sum(epochs):.2g} times{often}."
        )
    return lines


LITTLE = 1.25
"""Times the budget that all text comes to, repetition included, below which little is left to choose."""


def mixture_warnings(
    config: Config, constraints: Constraints, tokens: dict[str, int], noise: dict[str, Any]
) -> list[str]:
    """What a user must know before using the mixture, one sentence each. What limits each corpus is in `weights`."""
    lines = [line] if (line := no_choice(config.search, constraints)) else []
    room = config.search.max_epochs * sum(tokens.values()) / config.search.token_budget
    if not lines and room < LITTLE:
        lines.append(
            f"The budget leaves little choice: it takes {1 / room:.0%} of all the text there is at search.max_epochs "
            f"({config.search.max_epochs:g}), so most weights follow from how much each corpus holds."
        )
    if config.search.max_epochs > 4:
        lines.append(
            f"search.max_epochs is {config.search.max_epochs:g}: beyond about 4 epochs repeated text is worth less "
            "and less."
        )
    if noise["lead"] and noise["lead"]["low"] <= 0:
        lines.append(
            f"The best single corpus, {noise['lead']['corpus']}, is within noise of the mixture: the difference is "
            f"{noise['lead']['value']:+.4f} [{noise['lead']['low']:+.4f}, {noise['lead']['high']:+.4f}]."
        )
    return lines

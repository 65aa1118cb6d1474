"""Which corpora, where a mixture may have only so many (`search.max_corpora`): every choice while there are few, else
exchanges.

A choice of corpora is a face of the set of mixtures, and within a face the problem is an ordinary one. Which face is
best is combinatorial: no condition at one mixture tells. So each is solved, or, where they are too many, the best of
what single exchanges lead to is taken.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from math import comb

import numpy as np

from align_ray.mixture.constraints import TINY, Constraints

MANY = 100
"""Choices up to which each is solved."""

Solved = tuple[float, np.ndarray]
"""F and weights [K]."""
Face = Callable[[np.ndarray, np.ndarray | None], Solved]
"""Solves for the corpora that are kept, bool [K], from a mixture [K] or, for None, from several starts."""


def count(constraints: Constraints) -> int:
    """The choices of as many corpora as may have a weight; fewer are in the bounds of these."""
    forced, others = constraints.lower > 0, (constraints.lower == 0) & (constraints.upper > 0)
    return comb(int(others.sum()), _open_places(forced, others, constraints))


def every_choice(face: Face, constraints: Constraints) -> Solved:
    """The best over all choices whose caps can fill the budget."""
    forced, others = constraints.lower > 0, (constraints.lower == 0) & (constraints.upper > 0)
    choices = (
        forced | np.isin(np.arange(len(forced)), more)
        for more in combinations(np.flatnonzero(others), _open_places(forced, others, constraints))
    )
    return max((face(kept, None) for kept in choices if _fills(kept, constraints)), key=lambda found: found[0])


def exchanged(
    face: Face, constraints: Constraints, found: Solved, guess: Callable[[np.ndarray], np.ndarray], tries: int | None
) -> Solved:
    """From a mixture of a choice: the first exchange of one corpus for another (or addition, where there is room)
    that is better is made, until none is. `guess` [n, K] to [n] is F, by which exchanges are ordered; at most
    `tries` a round are solved."""
    value, w = found
    while True:
        moves = list(_moves(w, constraints))
        if not moves:
            return value, w
        order = np.argsort(-guess(np.stack([start for _, start in moves])), kind="stable")
        for kept, start in (moves[i] for i in order[:tries]):
            better, at = face(kept, start)
            if better > value + 1e-12 * max(1.0, abs(value)):
                value, w = better, at
                break
        else:
            return value, w


def _moves(w: np.ndarray, constraints: Constraints) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is kept after each exchange, bool [K], and a mixture to start from, [K], perhaps beyond the bounds."""
    kept = (w > 0) | (constraints.lower > 0)
    room = constraints.most is None or int(kept.sum()) < constraints.most
    for new in np.flatnonzero(~kept & (constraints.upper > 0)):
        if room:
            added = kept.copy()
            added[new] = True
            start = w.copy()
            start[new] = w.max() / 2
            yield added, start / start.sum()
            continue
        for old in np.flatnonzero(kept & (constraints.lower == 0)):
            swapped = kept.copy()
            swapped[[old, new]] = False, True
            if _fills(swapped, constraints):
                start = w.copy()
                start[[old, new]] = 0.0, w[old]
                yield swapped, start


def _fills(kept: np.ndarray, constraints: Constraints) -> bool:
    return bool(constraints.upper[kept].sum() >= 1 - TINY)


def _open_places(forced: np.ndarray, others: np.ndarray, constraints: Constraints) -> int:
    most = len(forced) if constraints.most is None else constraints.most
    return min(most - int(forced.sum()), int(others.sum()))

"""What the closed-form mixture of very many corpora takes: seconds of CPU of one thread, and the certificate's gap.

    OMP_NUM_THREADS=1 python benchmarks/optimum.py [--corpora 100 --corpora 1000] [--entries 2048]

Synthetic corpora are blends of K / 5 topics with noise of their own; a target is one of about twenty of them. The gap
is by how much any other feasible mixture could be better, to first order, in units of the spread over single corpora.
"""

import resource
import time
from typing import Annotated

import numpy as np
import typer

from align_ray.config import Search
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.objectives import Objective, log_mixture_objectives, scaled_cosine_objectives
from align_ray.mixture.solver import Goal, solve, with_prior

CASES = [  # objective, targets, worst of them, strength of the prior
    ("cross-entropy", 1, False, 0.0),
    ("cross-entropy", 10, False, 0.0),
    ("cross-entropy", 100, False, 0.0),
    ("cross-entropy", 10, True, 0.0),
    ("cross-entropy", 1, False, 0.1),
    ("cross-entropy", 10, True, 0.1),
    ("scaled cosine", 1, False, 0.0),
    ("scaled cosine", 10, False, 0.0),
    ("scaled cosine", 10, True, 0.1),
]


def objectives(kind: str, corpora: int, entries: int, targets: int) -> list[Objective]:
    rng = np.random.default_rng(0)
    topics = np.exp(rng.normal(size=entries)) * np.exp(rng.normal(size=(max(3, corpora // 5), entries)))
    shares = rng.dirichlet(np.full(len(topics), 0.1), corpora)
    pooled = shares @ topics * np.exp(0.2 * rng.normal(size=(corpora, entries)))
    blends = rng.dirichlet(np.full(corpora, 20 / corpora), targets)
    wanted = blends @ pooled * rng.gamma(8, 1 / 8, (targets, entries))
    if kind == "scaled cosine":
        return scaled_cosine_objectives(pooled, wanted)
    counts = np.array([rng.multinomial(100_000, t / t.sum()) for t in wanted])
    return log_mixture_objectives(pooled / pooled.sum(1, keepdims=True), counts)


def main(corpora: Annotated[list[int] | None, typer.Option(min=4)] = None, entries: int = 2048) -> None:
    print("| optimum of | corpora | s of CPU | gap |\n|---|---|---|---|")
    for kind, targets, worst, strength in CASES:
        for k in corpora or [100, 1000]:
            limits = constraints_of(Search(token_budget=2000, max_epochs=1), {f"c{i}": 10**6 for i in range(k)})
            weights = None if worst else np.full(targets, 1 / targets)
            goal = with_prior(Goal(objectives(kind, k, entries, targets), weights), limits, strength)
            start = time.process_time()
            found = solve(goal, limits)
            seconds, spread = time.process_time() - start, float(np.ptp(goal.singles(k)))
            said = f"{kind}, {'worst' if worst else 'mean'} of {targets}{', with a prior' if strength else ''}"
            print(f"| {said} | {k:,} | {seconds:.2f} | {found.gap / spread:.0e} |", flush=True)
    print(f"\nmost memory held: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    typer.run(main)

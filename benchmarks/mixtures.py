"""How fast mixtures are evaluated and the closed form is found, at GPT-2's embedding size.

python benchmarks/mixtures.py [--rows 133201] [--corpora 20 --corpora 64]
"""

import time
from statistics import median
from typing import Annotated

import numpy as np
import typer

from align_ray.config import Search
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.objectives import scaled_cosine_objective
from align_ray.mixture.solver import Goal, solve

GPT2_ROWS = 12 * (2304 + 768 + 3072 + 768) + 50257
"""Rows of the trunk's linear modules and of the head."""


def problem(corpora: int, rows: int) -> Goal:
    """Embeddings with rows of very different size, and a noisy target inside the simplex."""
    rng = np.random.default_rng(0)
    pooled = np.exp(rng.normal(size=rows)) * np.exp(0.7 * rng.normal(size=(corpora, rows)))
    target = rng.dirichlet(np.full(corpora, 0.3)) @ pooled * rng.gamma(8, 1 / 8, size=rows)
    return Goal([scaled_cosine_objective(pooled, target)], np.ones(1))


def main(
    rows: Annotated[int, typer.Option(min=10)] = GPT2_ROWS,
    corpora: Annotated[list[int] | None, typer.Option(min=2)] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    print(
        "| corpora | rows | A(w) per second | closed form, s | KKT residual | with caps that bind, s "
        "|\n|---|---|---|---|---|---|"
    )
    for k in corpora or [20, 64]:
        goal, names = problem(k, rows), [f"c{i}" for i in range(k)]
        tried = np.random.default_rng(1).dirichlet(np.ones(k), 1024)
        goal.values(tried[:16])  # compiles
        rates, plain, capped, gaps = [], [], [], []
        for _ in range(repetitions):
            start = time.perf_counter()
            goal.values(tried)
            rates.append(len(tried) / (time.perf_counter() - start))
            for tokens, seconds in ((10**6, plain), (400 // k, capped)):
                constraints = constraints_of(Search(token_budget=800), dict.fromkeys(names, tokens))
                start = time.perf_counter()
                found = solve(goal, constraints)
                seconds.append(time.perf_counter() - start)
                gaps.append(found.gap)
        print(f"| {k} | {rows} | {median(rates):,.0f} | {median(plain):.2f} | {max(gaps):.1g} | {median(capped):.2f} |")


if __name__ == "__main__":
    typer.run(main)

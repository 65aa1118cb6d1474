"""Random small mixture problems, and their optimum by trying every choice of corpora: what the search is held
against."""

import dataclasses
from itertools import combinations

import numpy as np
from scipy.optimize import minimize

from align_ray.config import Search
from align_ray.errors import ConfigError
from align_ray.mixture.constraints import Constraints, constraints_of
from align_ray.mixture.objectives import Objective, linear_objective, log_mixture_objective, scaled_cosine_objective

BUDGET = 1000


@dataclasses.dataclass(frozen=True)
class Instance:
    """A problem: maximise the targets' mean (or the `worst` one) less strength * KL(w, prior)."""

    search: Search
    tokens: dict[str, int]
    objectives: list[Objective]
    worst: bool
    constraints: Constraints

    @property
    def share(self) -> np.ndarray | None:
        return None if self.worst else np.full(len(self.objectives), 1 / len(self.objectives))

    @property
    def spread(self) -> float:
        """Of the objective over single corpora: the unit of the prior's strength and of every tolerance."""
        return float(np.ptp([self.value(w, penalised=False) for w in np.eye(len(self.tokens))]))

    def value(self, w: np.ndarray, penalised: bool = True) -> float:
        by_target = [o.gradient(w)[0] for o in self.objectives]
        value = min(by_target) if self.worst else float(np.mean(by_target))
        if not penalised or not self.search.prior_strength:
            return value
        present = w > 0
        ratio = np.log(w[present] / np.maximum(self.constraints.prior, 1e-9)[present])
        return value - self.search.prior_strength * self.spread * float(w[present] @ ratio)


def instance(seed: int, limited: bool | None = None) -> Instance:
    """A feasible problem of 3 to 8 corpora with random caps, minima, maxima, pins and prior; `limited`: with
    `max_corpora` (None: by chance). Often the caps are round, so that those of a few corpora sum to exactly 1."""
    rng = np.random.default_rng([seed, 20260101])
    while True:
        k = int(rng.integers(3, 9))
        names = [f"c{i}" for i in range(k)]
        kind = rng.choice(["plenty", "round", "any"])
        if kind == "plenty":
            counts = np.full(k, 10 * BUDGET)
        elif kind == "round":
            counts = rng.choice([100, 200, 250, 300, 400, 500, 600, 700], k)
        else:
            counts = np.maximum(1, (BUDGET * rng.random(k) ** 2).astype(int))
        weights: dict[str, object] = {}
        for name in names:
            chance = rng.random()
            if chance < 0.08:
                weights[name] = float(rng.choice([0.0, 0.05, 0.1, 0.2]))
            elif chance < 0.2:
                weights[name] = {"min": float(rng.choice([0.01, 0.05, 0.1, 0.3]))}
            elif chance < 0.35:
                weights[name] = {"max": float(rng.choice([0.1, 0.3, 0.5, rng.random()]))}
            elif chance < 0.4:
                weights[name] = {"min": 0.02, "max": 0.4}
        prior = rng.choice(["uniform", "proportional", "given"])
        given = dict(
            zip(
                names,
                (rng.dirichlet(np.ones(k)) * (rng.random(k) < 0.7) + 1e-3 * (np.arange(k) == 0)).tolist(),
                strict=True,
            )
        )
        strength = float(rng.choice([0.0, 0.0, 0.01, 0.1, 1.0]))
        most = int(rng.integers(1, k + 1)) if (rng.random() < 0.7 if limited is None else limited) else None
        tokens = dict(zip(names, counts.tolist(), strict=True))
        search = Search.model_validate(
            {
                "token_budget": BUDGET,
                "max_epochs": 1,
                "weights": weights,
                "prior": given if prior == "given" else str(prior),
                "prior_strength": strength,
                "max_corpora": most,
            }
        )
        targets = int(rng.choice([1, 1, 2, 3]))
        objectives = [_objective(rng, k) for _ in range(targets)]
        try:
            return Instance(
                search, tokens, objectives, targets > 1 and rng.random() < 0.5, constraints_of(search, tokens)
            )
        except ConfigError:
            continue


def _objective(rng: np.random.Generator, k: int) -> Objective:
    rows = int(rng.integers(30, 120))
    pooled = np.exp(rng.normal(size=rows)) * np.exp(0.8 * rng.normal(size=(k, rows)))
    target = rng.dirichlet(np.full(k, 0.5)) @ pooled * rng.gamma(10, 0.1, rows)
    match rng.choice(["scaled-cosine", "log-mixture", "linear"], p=[0.4, 0.4, 0.2]):
        case "scaled-cosine":
            return scaled_cosine_objective(pooled, target)
        case "log-mixture":
            return log_mixture_objective(pooled / pooled.sum(1, keepdims=True), target)
    return linear_objective(rng.random(k))


def exhaustive(problem: Instance, starts: int = 3) -> tuple[float, np.ndarray]:
    """The best value and mixture [K] over all choices of corpora, every one solved from several starts."""
    constraints, k = problem.constraints, len(problem.tokens)
    most = min(constraints.most or k, k)
    forced = np.flatnonzero(constraints.lower > 0)
    others = np.flatnonzero((constraints.lower == 0) & (constraints.upper > 0))
    size = min(most - len(forced), len(others))
    best = (-np.inf, np.zeros(k))
    for more in combinations(others, size):
        part = np.sort(np.r_[forced, more]).astype(int)
        if constraints.upper[part].sum() >= 1 - 1e-9:
            best = max(best, _best_of(problem, part, starts), key=lambda found: found[0])
    return best


def _best_of(problem: Instance, part: np.ndarray, starts: int) -> tuple[float, np.ndarray]:
    """Of the corpora `part` alone: in their coordinates, with the objective in units of its spread."""
    constraints, spread = problem.constraints, problem.spread
    lower, upper, k = constraints.lower[part], constraints.upper[part], len(problem.tokens)
    prior, strength = np.log(np.maximum(constraints.prior[part], 1e-9)), problem.search.prior_strength
    rng = np.random.default_rng(0)

    def whole(x: np.ndarray) -> np.ndarray:
        w = np.zeros(k)
        w[part] = x
        return w

    def within(x: np.ndarray) -> np.ndarray:
        """Clipped to the bounds, what is missing spread over the room that is left."""
        x = np.clip(x, lower, upper)
        missing = 1 - x.sum()
        room = upper - x if missing > 0 else x - lower
        return np.clip(x + missing * room / max(room.sum(), 1e-300), lower, upper)

    def targets(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [o.gradient(whole(x)) for o in problem.objectives]
        return np.array([v for v, _ in found]) / spread, np.stack([g[part] for _, g in found]) / spread

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        safe = np.maximum(x, 1e-12)
        return strength * float(x @ (np.log(safe) - prior)), strength * (np.log(safe) - prior + 1)

    n = len(part)
    found = []
    for i in range(starts):
        x = within(np.full(n, 1 / n) if i == 0 else rng.dirichlet(np.full(n, 0.7)))
        for _ in range(3):  # anew from where it stopped: with a fresh Hessian
            t = targets(x)[0].min() if problem.worst else 0.0

            def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
                pull, by_pull = cost(z[:n])
                if problem.worst:
                    return pull - z[n], np.r_[by_pull, -1.0]
                values, slopes = targets(z[:n])
                return pull - values.mean(), np.r_[by_pull - slopes.mean(0), 0.0]

            kept = [{"type": "eq", "fun": lambda z: z[:n].sum() - 1, "jac": lambda z: np.r_[np.ones(n), 0.0]}]
            if problem.worst:
                jac = lambda z: np.c_[targets(z[:n])[1], -np.ones(len(problem.objectives))]  # noqa: E731
                kept.append({"type": "ineq", "fun": lambda z: targets(z[:n])[0] - z[n], "jac": jac})
            done = minimize(
                loss,
                np.r_[x, t],
                jac=True,
                method="SLSQP",
                bounds=[*zip(lower, upper, strict=True), (None, None) if problem.worst else (0, 0)],
                constraints=kept,
                options={"maxiter": 300, "ftol": 1e-15},
            )
            if not np.isfinite(done.x).all():
                break
            x = within(done.x[:n])
        found.append((problem.value(whole(x)), whole(x)))
    return max(found, key=lambda pair: pair[0])

"""The choice of candidates by short trainings: each is trained once, to as many rungs as it has hope (`rungs.py`).

All targets' losses are measured at every rung by the same training; the prior is the ranking by words. What is trained
here to its end is the first seed's training of `finetune` and MixMin's expert, and is not trained again.
"""

from typing import Any

import numpy as np

from align_ray.context import Study
from align_ray.corpora.items import read_items
from align_ray.corpora.rows import validation_half
from align_ray.errors import CapReached, ConfigError
from align_ray.reporting.values import Ranked
from align_ray.training.jobs import Rung, job_keys, train_jobs, train_to_rung
from align_ray.training.loop import RUNGS, effective_steps, own_rows, rung_steps
from align_ray.training.memory import check_training_fits
from align_ray.training.rows import candidate_jobs, heldout_rows, learning_rate, with_rate
from align_ray.training.rungs import SETTLED, Halving, Standing, halve
from align_ray.training.state import state_file
from align_ray.training.tasks import HasTasks, task_scores

FEWEST_ROWS = 4
"""Held-out rows of a target on which rungs are measured."""


def check_choosable(study: Study) -> None:
    """Raises ConfigError where candidates are not to be trained, or a training has too few steps for rungs, and
    CapacityError where it cannot fit."""
    config = study.config
    if config.choose.by != "training":
        raise ConfigError("field 'choose.by' is words: nothing is trained to choose; set it to training.")
    rows = -(-config.finetune.tokens // config.sampling.sequence_length)
    steps = -(-rows // own_rows(config)) * config.finetune.epochs
    if len({*rung_steps(RUNGS, steps), steps}) < 2:
        raise ConfigError(
            f"field 'finetune.tokens' gives {steps} steps, too few for rungs at 2, 6, 16 and 40% of them; raise it or "
            "lower finetune.batch_size."
        )
    check_training_fits(study)


def choose_candidates(study: Study, ranking: dict[str, list[Ranked]]) -> dict[str, Any]:
    """Train candidates by rungs; returns a JSON value (see `reporting.choices.Choice`).

    `ranking`: by target, of lower is better; a candidate without a rank there has the mean of the others. Where
    `cost.max_cost` is reached after the first rung, what is believed then is the result, and `stopped` says so.
    """
    study = with_rate(study)
    config, heldout = study.config, heldout_rows(study)
    names = [c.name for c in config.candidates]
    for target, rows in heldout.items():
        if len(validation_half(rows)) < FEWEST_ROWS:
            raise ConfigError(
                f"target '{target}' has {len(rows)} held-out sequences, and a choice by training needs "
                f"{2 * FEWEST_ROWS}: their scatter is its noise. Raise finetune.eval_tokens, give more text, or set "
                "choose.by to words."
            )
    jobs = candidate_jobs(study, config.finetune.tokens)
    total = -(-len(jobs[0].rows) // own_rows(config)) * config.finetune.epochs
    at = [*rung_steps(RUNGS, total), total]
    last = {steps: index for index, steps in enumerate(at)}  # of rungs at one step the last
    steps, stopped = list(last), ""
    before: dict[str, np.ndarray] = {}
    scored: dict[int, HasTasks] = {}

    def measured(who: list[int], rung: int) -> dict[str, np.ndarray]:
        some = [jobs[k] for k in who]
        study.say(f"training {len(who)} candidates to {steps[rung]} of {total} steps")
        if steps[rung] == total:
            done = train_jobs(study, heldout, some)
            rungs: list[Rung] = [trained.rungs[-1] for trained in done]
            before.update({t: losses.before for t, losses in done[0].losses.items()})
            scored.update(zip(who, done, strict=True))
        else:
            found = train_to_rung(study, heldout, some, last[steps[rung]])
            rungs = [so_far.rungs[-1] for so_far in found]
            before.update(found[0].before)
            scored.update(zip(who, found, strict=True))
        return {t: np.stack([r.losses[t] for r in rungs]) for t in heldout}

    def base() -> dict[str, float]:
        return {t: float(validation_half(losses).mean()) for t, losses in before.items()}

    priors = {t: _prior(ranking[t], names) for t in heldout}
    passed: list[Halving] = []
    try:
        full = [effective_steps(s, total) for s in steps]
        passed.extend(halve(measured, full, len(names), priors, base, config.finetune.delta, config.seed))
    except CapReached as error:
        if not passed:
            raise
        stopped = str(error)
        study.say(f"note: {stopped}")
    halving = passed[-1]
    if not stopped:  # weights and moments of what was given up; the losses stay
        for key in job_keys(study, heldout, jobs):
            study.store.remove(state_file(key))
    tokens = jobs[0].rows.tokens * config.finetune.epochs
    seen = [round(tokens * steps[rung - 1] / total) for rung in halving.reached]
    items = read_items(study)
    tasks = {
        names[k]: task_scores([one], {t: items[t] for t in (*one.tasks, *one.wholes)}) for k, one in scored.items()
    }
    return {
        "targets": {
            t: _described(names, standing, seen, base()[t], config.finetune.delta, tasks, t)
            for t, standing in halving.standings.items()
        },
        "diverged": [names[k] for k in halving.diverged],
        "tokens": tokens,
        "spent": sum(seen),
        "exhaustive": tokens * len(names),
        "learning_rate": learning_rate(config),
        "delta": config.finetune.delta,
        "stopped": stopped or None,
    }


def _prior(ranking: list[Ranked], names: list[str]) -> np.ndarray:
    known = {row.candidate: row.value for row in ranking}
    middle = float(np.mean(list(known.values()))) if known else 0.0
    return np.array([known.get(name, middle) for name in names])


def _described(
    names: list[str],
    standing: Standing,
    seen: list[int],
    before: float,
    delta: float,
    tasks: dict[str, dict[str, Any]],
    target: str,
) -> dict[str, Any]:
    known = np.flatnonzero(np.isfinite(standing.middle))
    order = known[np.lexsort((standing.middle[known], -standing.p_within[known].round(2)))]
    best = names[order[0]]
    if standing.p_within[known].min() >= SETTLED:
        state, why = "no difference", f"every candidate is within {delta:g} nats of the best with P >= {SETTLED:g}"
    else:
        state = "settled" if standing.settled else "open"
        why = (
            f"P('{best}' is within {delta:g} nats of the best) = {standing.p_within[order[0]]:.3f}, expected regret "
            f"{standing.regret[order[0]]:.4f} nats"
        )
    return {
        "state": state,
        "why": why,
        "before": before,
        "candidates": {
            names[k]: {
                "value": float(standing.middle[k]),
                "error": float(standing.error[k]),
                "low": float(standing.low[k]),
                "high": float(standing.high[k]),
                "tokens": seen[k],
                "p_best": float(standing.p_best[k]),
                "p_within": float(standing.p_within[k]),
                "regret": float(standing.regret[k]),
                "task": tasks.get(names[k], {}).get(target),
            }
            for k in order
        },
    }

"""Results of every stage of a study with two targets, made by the real functions on synthetic text, without Ray or a
model."""

import json
from types import SimpleNamespace

import numpy as np

from align_ray.alignment.coefficients import align_corpora, batch_matrix, main_blocks
from align_ray.alignment.intervals import combined_mean, p_mean_negative, two_sample_mean
from align_ray.alignment.words import rank_by_cross_entropy
from align_ray.config import Config
from align_ray.fisher.unit import Unit
from align_ray.mixture.goals import cross_entropy_goal
from align_ray.mixture.search import search_mixture
from align_ray.reporting.results import Alignment, Contamination, Corpora, Mixture, Samples
from align_ray.reporting.trained import Finetuned, Validation
from align_ray.training.extrapolation import extrapolate
from align_ray.training.finetune import change
from align_ray.training.jobs import Answers
from align_ray.training.tasks import task_scores

TARGETS, CANDIDATES = ("proofs", "code"), ("textbook", "exercises", "library", "news", "licences.v2")
KINDS = {"proofs": (0.8, 0.1), "code": (0.1, 0.8), "textbook": (0.7, 0.0), "exercises": (0.45, 0.35), "library": (0.0, 0.75),
         "news": (0.1, 0.1), "licences.v2": (0.0, 0.05)}  # fmt: skip
"""How much of the text is like the first target and like the second."""
TOKENS = {"textbook": 400, "exercises": 3000, "library": 9000, "news": 50_000, "licences.v2": 8000}
HOSTILE = "</script><script>document.title = 'taken'</script><!-- <img src=x onerror=\"document.title='taken'\"> & {{ 7 * 7 }}"
VOCABULARY = 60


def study():
    """A configuration with two targets and the results of all its stages, by the real functions on synthetic text."""
    rng = np.random.default_rng(0)
    unigrams, profiles = rng.dirichlet(np.full(VOCABULARY, 0.3), 3), np.exp(rng.normal(0, 1.5, (3, 400)))
    batches, units = {}, {}
    for name, (a, b) in KINDS.items():
        share = np.array([a, b, 1 - a - b])
        batches[name] = rng.choice(VOCABULARY, (8, 4, 32), p=share @ unigrams)
        trunk = share @ profiles * rng.gamma(8, 1 / 8, (8, 2, 400))
        units[name] = [
            Unit({"trunk": t.astype(np.float32), "head": np.ones((1, 5), np.float32)}, {}, 3.0, 4, (), 128, 0.1)
            for t in trunk
        ]
    config = Config(
        name="two-targets",
        output="out",
        targets=[{"name": n, "source": f"{n}.jsonl"} for n in TARGETS],
        candidates=[
            {"name": n, "source": f"{n}.jsonl", "template": HOSTILE if n == "news" else None} for n in CANDIDATES
        ],
        search={"method": "closed_form", "token_budget": 10_000, "resamples": 20, "weights": {"news": {"min": 0.1}}},
    )
    alignment = align_corpora(units, list(TARGETS))
    alignment["predicted"] = rank_by_cross_entropy(batches, list(TARGETS), VOCABULARY, 512)
    rows = {name: batch_matrix(of_corpus, main_blocks(of_corpus)) for name, of_corpus in units.items()}
    search = search_mixture(config, rows, TOKENS, cross_entropy_goal(config, batches, VOCABULARY), "", {})
    search["check"] = {
        "recommended": {
            t: {"predicted": m, "measured": m} for t in TARGETS for m in [alignment["matrix"]["library"][t]]
        }
    }
    sequences = {
        n: {"of": 32, "quantiles": sorted(rng.random(5)), "most": excerpts(rng), "least": excerpts(rng)} for n in KINDS
    }
    results = {
        "corpora": {
            n: {"role": "target" if n in TARGETS else "candidate", "documents": 1234, "estimated_tokens": TOKENS.get(n, 2000),
                "batches": 8, **({"empty": 3} if n == "news" else {})}
            for n in KINDS
        },
        "alignment": alignment,
        "contamination": shared_text(rng),
        "search": search,
        "finetune": trainings(rng, search),
        "validation": seeds(rng, search),
        "samples": {
            n: {"role": "target" if n in TARGETS else "candidate", "targets": dict.fromkeys(TARGETS, sequences[n])} for n in KINDS
        },
        "estimate": {
            "currency": "USD", "price_per_worker_hour": 1.25, "rate": {"tokens_per_second": 3200.5, "source": "measured in this study"},
            "stages": {s: {"tokens": 7168 * k, "worker_seconds": 12.5 * k, "cost": 0.0043 * k} for k, s in enumerate(("embed", "search"), 1)},
        },
        "cost": {
            "embed": {"seconds": 21.25, "planned": 56, "computed": 56, "tokens": 7168, "actor_seconds": 30.0, "worker_seconds": 31.0, "cost": 0.01,
                      "ended": "2026-01-02 03:04 UTC", "machine": "1 node, 2 CPUs", "version": "9.9.9"},
            "align": {"seconds": 1.5},
        },
    }  # fmt: skip
    return config, json.loads(json.dumps(results))


def excerpts(rng):
    return [
        {"text": f"{HOSTILE} excerpt {i}", "alignment": float(rng.random()), "loss": float(rng.gamma(3))}
        for i in range(2)
    ]


def shared_text(rng):
    def clean(i):
        estimate = vars(two_sample_mean(rng.random((8, 8))))
        return {"alignment": estimate, "alignment_clean": estimate if i else None, "cross_entropy": 3.5 + i,
                "cross_entropy_clean": 3.6 + i if i else None, "rank": i + 1, "rank_clean": i + 1 if i else None}  # fmt: skip

    return {
        "words": 13,
        "overlap": {
            n: {t: {"documents": 5 * i, "of": 1234, "covered": 0.0123 * i} for t in TARGETS}
            for i, n in enumerate(CANDIDATES)
        },
        "clean": {n: {t: clean(i) for t in TARGETS} for i, n in enumerate(CANDIDATES)},
        "warnings": [f"Shared text explains the rank of {HOSTILE}"],
    }


TASKED = "code"
"""The target that has a task."""


def task(before, after):
    """A task's scores by the real function, from items' margins float64 [seeds, items]."""
    trained = [SimpleNamespace(tasks={TASKED: Answers(before, of_seed, before > 0, of_seed > 0)}) for of_seed in after]
    return task_scores(
        trained, {TASKED: SimpleNamespace(chance=1 / 3, measure="margin", unit="nats per byte", metric="accuracy")}
    )[TASKED]


def trainings(rng, search):
    runs = {n: {n: 1.0} for n in CANDIDATES} | {
        "uniform": search["mixtures"]["uniform"]["weights"],
        "mixture": search["mixtures"]["recommended"]["weights"],
    }
    before = rng.gamma(40, 0.1, (len(TARGETS), 64))
    items = rng.normal(-0.3, 0.5, 40)
    report, ends = {}, {t: [] for t in TARGETS}
    for i, (name, weights) in enumerate(runs.items()):  # the worst by the loss is best by the task
        losses = [(np.stack([b, b]), b + rng.normal(0.05 * (3 - i), 0.1, (2, 64))) for b in before]
        for t, pair in zip(TARGETS, losses, strict=True):
            ends[t].append(pair)
        targets = {t: {**change(*x), "overlap": 0.013 * i} for t, x in zip(TARGETS, losses, strict=True)}
        epochs = [0.5, 1.0, 1.0, 1.5, 5.5][i % 5] if i > len(CANDIDATES) - 1 else 1.0
        seen = {"distinct_tokens": round(512 / epochs), "epochs": epochs}
        targets[TASKED]["task"] = task(items, items + rng.normal(0.1 * (7 - i), 0.1, (2, 40)))
        at_budget = max(w * 10_000 / TOKENS[n] for n, w in weights.items())
        report[name] = {"weights": weights, "epochs_at_budget": at_budget, "sequences": 16, **seen, "targets": targets}
    extrapolation = {t: beyond(list(runs), np.array(pairs)) for t, pairs in ends.items()}
    paired = {t: {"value": 0.0, "error": 0.01, "low": 0.021 * k, "high": 0.043 * k} for k, t in enumerate(TARGETS, 1)}
    against = {"uniform": {"value": 0.0271, "low": -0.0123, "high": 0.0665, "p_lower": 0.07}}
    return {
        "verdict": {"state": "undecided", "why": "it may be so", "against": against, "seeds_needed": 9},
        "tokens": 512,
        "seeds": 2,
        "learning_rate": 1e-4,
        "bytes_per_token": dict.fromkeys(TARGETS, 3.5),
        "runs": report,
        "extrapolation": extrapolation,
        "uniform_less_mixture": paired,
    }


def beyond(names, ends):
    """Losses of 4, 8 and 16 steps of 32 tokens, and beyond them to 10,000; `ends`: [K, 2 (before, after), seeds, rows]."""
    rng, steps, tokens = np.random.default_rng(0), np.array([4.0, 8.0, 16.0]), np.geomspace(512, 10_000, 9)[1:].round()
    change = (ends[:, 1] - ends[:, 0]).mean((1, 2))
    at_rungs = change[:, None, None, None] * np.log1p(steps)[:, None] / np.log1p(16)
    changes = at_rungs + rng.normal(0, 0.02, (len(names), 2, 3, 8))
    at, ahead = {"steps": steps, "tokens": 32 * steps}, {"steps": tokens / 32, "tokens": tokens}
    return extrapolate(names, changes, ends[:, 0], ends[:, 1], at, ahead, rng)


def seeds(rng, search):
    names, share = ("recommended", "uniform", "bad"), np.full(len(TARGETS), 0.5)
    after = {n: [rng.normal(4 + 0.1 * i, 0.05, (3, 20)) for _ in TARGETS] for i, n in enumerate(names)}

    def estimates(values, p):
        rows = {
            t: {**vars(two_sample_mean(v)), **({"p_lower": p_mean_negative(v)} if p else {})}
            for t, v in zip(TARGETS, values, strict=True)
        }
        mean, below = combined_mean(values, share)
        return {**rows, "all": {**vars(mean), **({"p_lower": below} if p else {})}}

    mixtures = {
        n: {"weights": search["mixtures"][n]["weights"], "same_as": None, "loss": estimates(after[n], False)}
        for n in names
    }
    items = rng.normal(-0.3, 0.5, 40)
    for i, name in enumerate(names):
        mixtures[name]["task"] = {TASKED: task(items, items + rng.normal(-0.1 * i, 0.1, (3, 40)))}
    mixtures["unimax"] = {**mixtures["uniform"], "same_as": "uniform"}
    versus = {
        a: {b: estimates([x - y for x, y in zip(after[a], after[b], strict=True)], True) for b in names if a != b}
        for a in names
    }
    against = {"uniform": {"value": 0.0311, "low": 0.0123, "high": 0.0499, "p_lower": 0.002}}
    return {
        "verdict": {"state": "confirmed", "why": "it is so", "against": against},
        "tokens": 512,
        "seeds": 3,
        "before": {"proofs": 4.5, "code": 4.25, "all": 4.375},
        "mixtures": mixtures,
        "versus": versus,
    }


KIND = {
    "corpora": Corpora,
    "alignment": Alignment,
    "contamination": Contamination,
    "samples": Samples,
    "search": Mixture,
    "finetune": Finetuned,
    "validation": Validation,
}


def typed(config, results):
    """The arguments of `render_report` from a configuration and stored JSON values."""
    work = {"key": "k", "dtype": "float32", "planned": 1, "computed": 1, "tokens": 1, "actor_seconds": 1.0}
    values = {**results, "corpora": {"corpora": results["corpora"], "work": work}}
    stages = {name: KIND[name].parse(values[name]) for name in KIND if name in values}
    return config, stages, {name: results[name] for name in ("estimate", "cost") if name in results}

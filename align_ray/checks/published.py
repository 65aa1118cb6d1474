"""The published figures behind "alignment predicts loss", analysed again (arXiv 2501.08496; method 2.1, 2.2).

The 24 pre-training points are three training sets times eight evaluation sets. Pooled, they give the paper's r^2; the
other statistics here ask how much of it is the difference between evaluation sets.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

FIXTURE = Path(__file__).with_name("published.json")


def published_points() -> dict[str, Any]:
    """The figures as published; see `published.json` for where each comes from."""
    return json.loads(FIXTURE.read_text())


def reanalyse() -> dict[str, Any]:
    """Statistics of the published points, as a JSON value.

    `pretraining`: `pooled` (the paper's), `without_in_domain` (the evaluation sets that are a training set's own domain
    left out), `within` (deviations from the mean of each evaluation set), `by_evaluation` r of three points each, and
    `picks`: whether the highest alignment has the lowest loss. `gzip`: r^2 with and without the target's own set.
    """
    points = published_points()
    table = points["pretraining"]
    alignment, loss = np.array(table["alignment"]), np.array(table["loss"])
    outside = [e not in table["in_domain"] for e in table["evaluation"]]
    within = [x - x.mean(0) for x in (alignment, loss)]
    fit = stats.linregress(alignment.ravel(), loss.ravel())
    gzip = points["gzip"]
    others = [name not in gzip["own"] for name in gzip["data"]]
    score = np.array(gzip["alignment"])
    return {
        "pretraining": {
            "pooled": {
                **_pearson(alignment, loss),
                "spearman": float(stats.spearmanr(alignment.ravel(), loss.ravel()).statistic),
            },
            "fit": {"intercept": float(fit.intercept), "slope": float(fit.slope)},
            "without_in_domain": _pearson(alignment[:, outside], loss[:, outside]),
            "within": _pearson(*within),
            "by_evaluation": {e: _pearson(alignment[:, i], loss[:, i])["r"] for i, e in enumerate(table["evaluation"])},
            "picks": {
                e: bool(alignment[:, i].argmax() == loss[:, i].argmin()) for i, e in enumerate(table["evaluation"])
            },
        },
        "gzip": {
            run: {
                "all": _pearson(score, np.array(losses)),
                "without_own": _pearson(score[others], np.array(losses)[others]),
            }
            for run, losses in gzip["losses"].items()
        },
    }


def _pearson(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    r, p = stats.pearsonr(x.ravel(), y.ravel())
    return {"r": float(r), "r2": float(r**2), "p": float(p), "points": x.size}

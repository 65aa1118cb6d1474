"""Losses of mixtures predicted from trainings on each candidate: merged models, ensembles, and a few real runs."""

import numpy as np
import pytest
import torch

from align_ray import pipeline
from align_ray.config import Config
from align_ray.corpora.rows import validation_half
from align_ray.fisher.probe import load_model
from align_ray.mixture import predicted as module
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.merged import ROWS, changes, merged_losses
from align_ray.mixture.predicted import Features, ensemble_losses, first_runs, next_runs, predict, validation_rows
from align_ray.pipeline import open_study
from align_ray.training.jobs import heldout_probabilities, job_keys, train_jobs
from align_ray.training.rows import candidate_jobs, heldout_rows
from align_ray.training.step import heldout_losses, learned, sequence_losses, trainable_model
from tests.conftest import actors_here, trainings_here

CANDIDATES = ("python-stdlib", "licences", "cpp-headers")


@pytest.fixture(scope="module")
def study(small_config, local_ray, tmp_path_factory):
    """A study whose corpora are embedded and whose mixture is to be predicted."""
    tune = {"tokens": 2048, "eval_tokens": 1024, "batch_size": 4, "learning_rate": 1e-3, "seeds": 2}
    mapping = small_config(tmp_path_factory.mktemp("predicted"), candidates=CANDIDATES, finetune=tune)
    mapping["search"] = {"token_budget": 10_000, "objective": "predicted", "trials": 5, "resamples": 20}
    made = open_study(Config.model_validate(mapping))
    with actors_here():
        pipeline.embed(made)
    return made


@pytest.fixture
def here():
    with actors_here(), trainings_here():
        yield


@pytest.mark.parametrize("rank", [None, pytest.param(4, marks=pytest.mark.full)])
def test_merged_models_are_the_base_with_the_weighted_changes(study, here, rank):
    """A corner is the candidate's own model, also where it was trained by adapters; a mixture by hand."""
    kept = study.changed(finetune={"keep_weights": True, "lora_rank": rank})
    heldout, jobs = heldout_rows(kept), candidate_jobs(kept, 2048)
    done, keys = train_jobs(kept, heldout, jobs), job_keys(kept, heldout, jobs)
    mixtures = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    merged = merged_losses(kept, heldout, keys, mixtures)["target"]
    for i in (0, 1):
        own = validation_half(done[i].losses["target"].after)[:ROWS].mean()
        assert merged[i] == pytest.approx(own, abs=2e-3), "but for bfloat16"
    model = load_model(kept.model).eval()
    stored = [changes(kept.store, key, model, rank) for key in keys]
    assert set(stored[0]) <= set(learned(load_model(kept.model)))
    for name, parameter in model.named_parameters():
        for share, change in zip(mixtures[2], stored, strict=True):
            if name in change:
                parameter.data += share * change[name].float()
    rows = validation_half(heldout["target"])[:ROWS]
    by_hand = sequence_losses(heldout_losses(model, rows, torch.device("cpu"))).mean()
    assert merged[2] == pytest.approx(by_hand, abs=1e-5)
    if rank:
        located = {"located": kept.model, **kept.config.finetune.model_dump()}
        adapted = {n for n in learned(trainable_model(located, torch.device("cpu"))) if ".lora_A." in n}
        assert len(stored[0]) == len(adapted), "every adapted layer"


def test_the_ensemble_is_the_mean_of_the_models_probabilities(study, here):
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 2048)
    done = train_jobs(study, heldout, jobs)
    p = validation_rows(heldout_probabilities(study, heldout, jobs, scored=True)["target"])
    w = np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    found = ensemble_losses({"target": p}, w)["target"]
    assert found[0] == pytest.approx(-np.log(w[0] @ p).mean(), rel=1e-6)
    own = validation_half(done[1].losses["target"].after)
    counts = validation_half(heldout["target"]).scored[:, 1:].sum(1)
    assert found[1] == pytest.approx((own * counts).sum() / counts.sum(), rel=1e-5)


def simulated(rng, n=60, k=6, noise=0.003):
    """Features of mixtures, and losses that go with them as in the project's study: near the mean of merged and
    ensemble, with a bend towards the linear average and an offset."""
    w = rng.dirichlet(np.ones(k), n)
    level = w @ rng.normal(0, 0.3, k)
    gap = (w * (1 - w)).sum(1)
    ensemble, linear = 3 + level - 0.1 * gap, 3 + level
    merged = ensemble + 0.05 * rng.standard_normal(n) * gap
    loss = 0.4 * ensemble + 0.6 * merged + 0.1 * (linear - ensemble) + 0.01 + noise * rng.standard_normal(n)
    of = lambda values: {"target": values}
    return w, Features(of(ensemble), of(merged), of(linear)), loss


def test_a_few_runs_correct_the_guess_and_intervals_cover():
    rng, better, inside = np.random.default_rng(0), [], []
    for _ in range(60):
        w, features, loss = simulated(rng)
        runs = list(range(8))
        found = predict(features, runs, {"target": loss[runs]})
        rest = slice(8, None)
        guess = features.of("target")[0]
        better.append(np.abs(found.mean["target"] - loss)[rest].mean() < np.abs(guess - loss)[rest].mean())
        low, high = found.interval("target")
        inside += list((low <= loss)[rest] & (loss <= high)[rest])
    assert np.mean(better) > 0.9
    print(f"coverage {np.mean(inside):.3f}")
    assert 0.92 <= np.mean(inside) <= 0.99


def test_runs_are_the_likely_best_then_what_may_be_better_and_never_twins():
    rng = np.random.default_rng(1)
    w, features, loss = simulated(rng)
    guess, may = features.of("target")[0], np.ones(len(w), bool)
    may[np.argmin(guess)] = False  # the best one cannot be recommended
    first = first_runs(w, guess, may, 4)
    assert first[0] == np.argmin(np.where(may, guess, np.inf)) and len(set(first)) == 4 and may[first].all()
    found = predict(features, first, {"target": loss[first]})
    more = next_runs(w, found.mean["target"], found.error["target"], loss[first].min(), may, first, 4)
    assert len(more) == 4 and not set(more) & set(first) and may[more].all()
    chosen = [*first, *more]
    apart = [np.abs(w[a] - w[b]).sum() / 2 for a in chosen for b in chosen if a < b]
    assert min(apart) > module.EQUAL
    assert loss[chosen].min() <= np.sort(loss[may])[2], "near the best of sixty"


def test_the_search_recommends_the_least_predicted_loss_and_says_what_it_rests_on(study, here):
    found = pipeline.search(study)
    assert found.objective == "predicted" and found.prediction.experts == 3 and found.prediction.runs == 5
    assert len(found.trials) == 5 and found.trials[0].loss == min(t.loss for t in found.trials)
    constraints = constraints_of(study.config.search, {n: 10**6 for n in CANDIDATES})
    weights = found.mixtures["recommended"].weights
    assert module.within(np.array(list(weights.values())), constraints)
    predicted = found.prediction.mixtures
    for name, row in predicted.items():
        w = np.array(list(found.mixtures[name].weights.values())) if name in found.mixtures else None
        if w is not None and module.within(w, constraints):
            assert predicted["recommended"]["target"].value <= row["target"].value + 1e-9
        assert row["target"].low <= row["target"].value <= row["target"].high
    assert any(line.startswith("predicted loss, target:") for line in found.notes())
    assert weights["python-stdlib"] > 0.4, "the target's own kind"
    files = {f: f.stat().st_mtime_ns for f in study.store.local_path("finetune").rglob("*.json")}
    assert pipeline.search(study).dump() == found.dump()
    assert {f: f.stat().st_mtime_ns for f in files} == files, "nothing is trained or merged again"
    tuned = pipeline.finetune(study)
    assert set(tuned.runs) == {*CANDIDATES, "uniform", "mixture"}
    pipeline.align(study)
    assert "Predicted loss on target" in open(pipeline.report(study)).read()

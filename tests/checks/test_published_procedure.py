"""A study by the published procedure: one epsilon for all its distances, a seed a batch on request, and what does
nothing is said."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align_ray.alignment.distance import distance_matrix
from align_ray.checks.robustness import robustness
from align_ray.config import Config
from align_ray.embedding.pool import say_if_inert
from align_ray.fisher.probe import Located, has_dropout, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.mixture.goals import fisher_goal, linear_goal
from align_ray.pipeline import align, contamination, embed, evidence_of, open_study, search
from tests.tiny import MODELS

NAMES = ("python-stdlib", "licences", "cpp-headers")


@pytest.fixture(scope="module")
def small_reference(small_config):
    """A function that gives the mapping of a small study by the published procedure."""

    def make(output, **quirks):
        embedding = {"estimator": "reference", "quirks": {"head_epochs": 1, **quirks}}
        settings = {"method": "closed_form", "objective": "scaled-cosine", "token_budget": 10_000, "resamples": 20}
        return small_config(output, NAMES, embedding=embedding, search=settings)

    return make


def pairwise(rows, name, epsilon):
    return float(1 - distance_matrix(rows[name], rows["target"], epsilon).mean())


@pytest.mark.slow
def test_one_study_prints_one_alignment(no_pools, small_reference, tmp_path):
    study = open_study(Config.model_validate(small_reference(tmp_path)))
    embed(study)
    rows = evidence_of(study).rows
    aligned = {row["candidate"]: row for row in align(study)["ranking"]["target"]}
    leaked = contamination(study)["clean"]
    found = search(study)
    kept = robustness(study, [], False)["axes"]
    for name in NAMES:
        value = aligned[name]["value"]
        assert value == pytest.approx(pairwise(rows, name, 1e-8), abs=1e-6)
        assert abs(value - pairwise(rows, name, None)) > 1e-3, "the epsilon makes a difference here"
        assert leaked[name]["target"]["alignment"]["value"] == pytest.approx(value, abs=1e-6)
        for axis in ("seed", "estimator"):
            assert kept[axis]["alignment"]["as configured"]["target"][name] == pytest.approx(value, abs=1e-6)
    (single,) = (name for name, w in found["mixtures"]["best_single"]["weights"].items() if w == 1)
    assert found["mixtures"]["best_single"]["alignment"]["value"] == pytest.approx(
        aligned[single]["pooled"]["value"], abs=1e-6
    )


def test_every_objective_of_the_scaled_cosine_takes_the_epsilon_of_the_study():
    corpora = {
        "output": "o",
        "targets": [{"name": "t", "source": "t"}],
        "candidates": [{"name": n, "source": n} for n in "ab"],
    }
    rng = np.random.default_rng(0)
    rows = {name: 1e-9 * rng.gamma(0.2, 1, (4, 50)).astype(np.float32) for name in "abt"}
    values = {}
    for quirk in (True, False):
        for objective, goal in (("scaled-cosine", fisher_goal), ("linear", linear_goal)):
            embedding = {"estimator": "reference", "quirks": {"absolute_epsilon": quirk}}
            config = Config.model_validate(corpora | {"embedding": embedding, "search": {"objective": objective}})
            (one,) = goal(config, rows)(None).objectives
            epsilon = 1e-8 if quirk else None
            alone = [r if objective == "linear" else r.mean(0, keepdims=True) for r in rows.values()]
            wanted = [float(1 - distance_matrix(r, alone[2], epsilon).mean()) for r in alone[:2]]
            values[quirk, objective] = wanted
            assert one.values(np.eye(2)) == pytest.approx(wanted, abs=1e-5)
            assert [one.gradient(w)[0] for w in np.eye(2)] == pytest.approx(wanted, abs=1e-5)
    assert all(abs(values[True, o][0] - values[False, o][0]) > 0.01 for o in ("scaled-cosine", "linear"))


@pytest.mark.slow
def test_the_first_batch_keeps_the_seed_of_the_study_and_the_others_have_their_own(no_pools, small_reference, tmp_path):
    seen = {}
    for by_batch in (False, True):
        study = open_study(Config.model_validate(small_reference(tmp_path / f"{by_batch}", seed_by_batch=by_batch)))
        embed(study)
        seen[by_batch] = evidence_of(study).rows["target"]
    same, other = seen.values()
    assert np.array_equal(same[0], other[0]) and not any(
        np.array_equal(a, b) for a, b in zip(same[1:], other[1:], strict=True)
    )


def test_dropout_that_does_nothing_is_said(tiny_probe, small_reference, tmp_path):
    assert has_dropout(locate_probe(ProbeName(tiny_probe))) and not has_dropout(locate_probe(ProbeName()))
    config = Config.model_validate(small_reference(tmp_path))
    told: list[str] = []
    for probe, quirks, estimator in (
        (ProbeName(), {}, "reference"),
        (ProbeName(), {"dropout": False}, "reference"),
        (ProbeName(), {}, "exact"),
        (ProbeName(tiny_probe), {}, "reference"),
    ):
        embedding = config.embedding.model_copy(
            update={"estimator": estimator, "quirks": config.embedding.quirks.model_copy(update=quirks)}
        )
        say_if_inert(SimpleNamespace(
            config=config.model_copy(update={"embedding": embedding}), probe=locate_probe(probe), say=told.append
        ))  # fmt: skip
    assert told == ["note: the probe has no dropout, so that embedding.quirks.dropout changes nothing"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "neox"])
def test_whether_a_probe_has_dropout_is_read_from_its_configuration(family, tmp_path):
    model = MODELS[family](29, True)
    for rate in (0.0, 0.1):
        for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout"):
            if hasattr(model.config, name):
                setattr(model.config, name, rate)
        model.config.save_pretrained(tmp_path)
        located = Located(str(tmp_path), {"trust_remote_code": False}, f"d{rate}", 64)
        made = MODELS[family](29, True).__class__(model.config).train()
        ids = torch.arange(8)[None]
        with torch.no_grad():
            differs = not torch.equal(made(ids).logits, made(ids).logits)
        assert has_dropout(located) == differs == (rate > 0)

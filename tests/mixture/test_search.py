"""Every objective and method of the search on a real Ray, and what a kill in the middle leaves."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from align_ray import pipeline
from align_ray.cli.main import app
from align_ray.cli.show import show_result
from align_ray.config import Config, Cost
from align_ray.config_file import load_config
from align_ray.errors import CapReached, ConfigError
from align_ray.mixture.score import read_mixtures
from align_ray.pipeline import open_study
from align_ray.spending import costs
from align_ray.stages import answer_key, stored
from tests.conftest import actors_here

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from soak_run import TRIAL, workers  # noqa: E402

CANDIDATES = ("python-stdlib", "licences", "cpp-headers")


def searchable(folder, data):
    """A function that gives the study with other settings of its search, on one store."""

    def make(**search):
        data["search"] = {"token_budget": 10_000, "trials": 3, "resamples": 20, "proxy_tokens": 512, **search}
        file = folder / "study.yaml"
        file.write_text(yaml.safe_dump(data))
        study = open_study(load_config(file))
        if stored(study, pipeline.embed) is None:
            pipeline.embed(study)
        return study

    return make


@pytest.fixture(scope="module")
def embedded(small_config, tmp_path_factory, local_ray):
    """`searchable`, with the tiny probe."""
    folder = tmp_path_factory.mktemp("methods")
    with actors_here():
        yield searchable(folder, small_config(folder / "out", CANDIDATES))


@pytest.fixture(scope="module")
def embedded_well(small_config, tmp_path_factory, local_ray):
    """The same, with the embedded probe, which tells code of one language from that of another."""
    folder = tmp_path_factory.mktemp("well")
    with actors_here():
        yield searchable(folder, small_config(folder / "out", CANDIDATES, probe={}))


def weights_of(result, name="recommended"):
    return np.array(list(result["mixtures"][name]["weights"].values()))


@pytest.mark.parametrize(
    ("objective", "method", "depends"), [("loss", "tune", True), ("mixmin", "tune", True), ("kl", "tune", False)]
)
def test_a_search_that_trains_depends_on_how(small_config, tmp_path, objective, method, depends):
    def key(rate):
        search = {"token_budget": 10_000, "objective": objective, "method": method, "proxy_tokens": 512}
        mapping = small_config(
            tmp_path / "out", search=search, finetune={"tokens": 1024, "eval_tokens": 512, "learning_rate": rate}
        )
        return answer_key(open_study(Config.model_validate(mapping)), pipeline.search)

    assert (key(1e-3) != key(1e-4)) == depends


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["scaled-cosine", "hellinger", "kl", "linear", "mixmin"])
def test_every_objective_finds_the_targets_own_domain(embedded_well, no_trainings, objective):
    result = pipeline.search(
        embedded_well(objective=objective, method="closed_form", prior_strength=0.01, max_epochs=16)
    )
    w = weights_of(result)
    assert w.sum() == pytest.approx(1) and np.argmax(w) == 0, result["mixtures"]["recommended"]
    assert result["objective"] == objective and result["trials"] == [] and result["gap_of_search"] is None


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, pytest.param(3, marks=pytest.mark.full)])
def test_tune_trains_proxies_on_mixtures_and_keeps_their_losses(embedded, trials):
    study = embedded(objective="loss", method="tune", max_epochs=16, trials=trials)
    result = pipeline.search(study)
    assert result["objective"] == "loss" and 1 <= len(result["trials"]) <= trials
    losses = [t["loss"] for t in result["trials"]]
    assert losses == sorted(losses) and all(np.isfinite(losses))
    for trial in result["trials"]:
        assert sum(trial["weights"].values()) == pytest.approx(1) and trial["losses"]["target"] == pytest.approx(
            trial["loss"]
        )
    np.testing.assert_allclose(weights_of(result), list(result["trials"][0]["weights"].values()))
    assert pipeline.search(study)["trials"] == result["trials"], "a finished search is not trained again"
    tune, kept = study.store.local_path("tune"), study.store.names("proxies")
    shutil.rmtree(tune)  # as if Ray's state had been torn
    study.store.local_path("search.json").unlink()
    anew = pipeline.search(study)
    assert len(kept) >= len(result["trials"]) and len(list(tune.glob("trial-*"))) == trials - len(kept), (
        "a finished proxy is trained again"
    )
    # those that were stopped early may now be finished
    assert all(trial in anew["trials"] for trial in result["trials"])


@pytest.mark.full
@pytest.mark.slow
def test_a_search_that_trains_stops_at_the_cap_and_goes_on_with_a_higher_one(embedded):
    study = embedded(objective="loss", method="tune", max_epochs=16, proxy_tokens=640, trials=1)

    def capped(more):
        spent = sum(row.get("spent", 0.0) for row in costs(study.store).values())
        cost = Cost(price_per_hour=3600.0, max_cost=spent + more)
        return dataclasses.replace(study, config=study.config.model_copy(update={"cost": cost}))

    with pytest.raises(CapReached):
        pipeline.search(capped(2.0))
    assert stored(study, pipeline.search) is None
    assert pipeline.search(capped(10_000.0))["trials"]


@pytest.mark.slow
def test_the_swarm_is_fitted_and_its_tables_are_what_fit_reads(embedded, no_trainings, tmp_path):
    study = embedded(objective="loss", method="swarm", trials=10, max_epochs=16)
    result = pipeline.search(study)
    assert len(result["trials"]) == 10 and result["surrogate"]["surrogate"] == "log-linear"
    assert weights_of(result).sum() == pytest.approx(1)
    from align_ray.handover.runs import run_files
    from align_ray.mixture.runs import read_runs

    for name, content in run_files({"search": result}, study.config).items():
        (tmp_path / name).write_bytes(content)
    runs = read_runs(tmp_path / "ratios-search.csv", tmp_path / "metrics-search.csv")
    np.testing.assert_allclose(runs.metrics["loss/target"], [t["loss"] for t in result["trials"]])


@pytest.mark.full
@pytest.mark.slow
def test_a_search_of_a_number_of_corpora_keeps_to_it_and_gives_no_certificate(embedded, capsys):
    study = embedded(
        objective="scaled-cosine", max_corpora=2, max_epochs=16, prior_strength=1.0
    )  # a prior would have all
    result = pipeline.search(study)
    for name in result["mixtures"].keys() - {"uniform", "proportional", "dsir", "unconstrained"}:
        assert (weights_of(result, name) != 0).sum() <= 2, name
    assert all(sum(w != 0 for w in t["weights"].values()) <= 2 for t in result["trials"])
    assert result["kkt_residual"] is None and result["choice"] == "exhaustive" and result["kkt_residual_within"] < 1e-6
    show_result(result)
    assert "corpora limited, so no KKT certificate: every choice was tried" in capsys.readouterr().out


@pytest.mark.slow
def test_a_shortlist_is_ranked_by_every_objective_with_intervals(embedded_well, tmp_path, monkeypatch):
    study = embedded_well(method="closed_form", max_epochs=16)
    table = tmp_path / "shortlist.csv"
    table.write_text("name,python-stdlib,licences\nours,3,1\ntheirs,0.1,0.9\nown, 1,\n")
    config = tmp_path / "study.yaml"
    config.write_text(study.config.to_yaml())
    done = CliRunner().invoke(app, ["score", str(config), "--mixtures", str(table), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = found["mixtures"]
    assert found["objective"] == "cross-entropy" and set(rows) == {"ours", "theirs", "own", "uniform", "proportional"}
    assert rows["ours"]["weights"] == pytest.approx({"python-stdlib": 0.75, "licences": 0.25, "cpp-headers": 0.0})
    values = [row["objectives"]["cross-entropy"]["value"] for row in rows.values()]
    assert values == sorted(values, reverse=True) and list(rows).index("ours") < list(rows).index("theirs")
    for row in rows.values():
        assert set(row["objectives"]) == {"cross-entropy", "scaled-cosine", "hellinger", "kl", "linear"}
        for by in row["objectives"].values():
            assert (
                by["low"] <= by["value"] <= by["high"]
                and by["lead"]["low"] <= by["lead"]["value"] <= by["lead"]["high"]
            )
    assert rows["uniform"]["objectives"]["kl"]["lead"]["value"] == pytest.approx(0, abs=1e-12)
    searched = pipeline.search(study)["mixtures"]["uniform"]
    assert rows["uniform"]["objectives"]["cross-entropy"]["value"] == pytest.approx(searched["value"])
    shown = CliRunner().invoke(app, ["score", str(config), "--mixtures", str(table)])
    assert "mixtures by cross-entropy, best first" in shown.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,licence\na,1\n", "column 'licence' is no candidate of the study: python-stdlib, licences"),
        ("name,licences\na,-1\n", "the weights of 'a' must be numbers, none below 0"),
        ("name,licences\na,x\n", "the weights of 'a' must be numbers"),
        ("name,licences\na,1\na,1\n", "a name of its own"),
        ("name,licences\n", "there is no mixture in it"),
    ],
)
def test_a_bad_shortlist_is_one_sentence(tmp_path, text, words):
    (tmp_path / "shortlist.csv").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_mixtures(tmp_path / "shortlist.csv", list(CANDIDATES))


def test_what_cannot_be_asked_for_is_refused_before_any_work(embedded, small_config, tmp_path):
    for search, words in (
        ({"objective": "loss", "method": "closed_form"}, "needs trainings"),
        ({"weights": {"licence": 0.5}}, "search.weights names 'licence'"),
        ({"weights": {"licences": {"min": 0.5, "max": 0.1}}}, "min 0.5 is above max 0.1"),
        ({"prior": {"licences": 0.0}}, "search.prior has no positive weight"),
        ({"max_epochs": 17}, "search.max_epochs"),
    ):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(small_config(tmp_path / "out", CANDIDATES, search=search)))
        with pytest.raises(ConfigError, match=words):
            load_config(file)


@pytest.mark.full
@pytest.mark.slow
def test_a_search_killed_in_the_middle_ends_as_an_undisturbed_one(small_config, no_pools, tmp_path, monkeypatch):
    """One of the workers is killed, then the whole session, also in the middle of what Ray writes. Both searches are
    processes of their own: the suggestions depend on the last bit, and that on the number of threads."""
    data = small_config("out", CANDIDATES)
    data["search"] = {"token_budget": 10_000, "trials": 9, "resamples": 20}
    command = [str(Path(sys.executable).with_name("align-ray")), "search", "study.yaml"]
    on_tests_ray = os.environ | {"RAY_ADDRESS": no_pools.get_runtime_context().gcs_address}

    def start(folder, environment):
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(folder):
        process = start(folder, on_tests_ray)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out

    def begun():
        return {f.name for f in (killed / "out" / "tune").glob("search-*/MixtureTrial_*")}

    def wait_for(reached):
        end = time.time() + 200
        while time.time() < end and not (found := reached()):
            time.sleep(0.01)
        return found

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    (killed / "study.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(killed)
    pipeline.embed(open_study(load_config("study.yaml")))
    shutil.copytree(killed, whole)
    process = start(killed, os.environ)  # with a Ray of its own
    (victim, *_) = wait_for(lambda: workers([process.pid], TRIAL))
    victim.kill()
    wait_for(lambda: len(begun()) >= 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    had = begun()
    assert 3 <= len(had) < 9 and not (killed / "out" / "search.json").exists()
    finish(killed)
    finish(whole)
    after, undisturbed = (json.loads((f / "out" / "search.json").read_text()) for f in (killed, whole))
    assert len(after["trials"]) == len(undisturbed["trials"])
    assert after["mixtures"] == undisturbed["mixtures"]


@pytest.mark.full
@pytest.mark.slow
def test_lora_trains_adapters_alone_and_learns(embedded):
    import torch
    from safetensors.torch import load_file

    from align_ray.corpora.sample import read_sample
    from align_ray.training.jobs import Job, train_jobs, train_to_rung
    from align_ray.training.step import trainable_model

    study = embedded(method="closed_form")
    changed = study.changed(finetune={"lora_rank": 4, "epochs": 2, "learning_rate": [3e-3]})
    model = trainable_model({"located": changed.model, **changed.config.finetune.model_dump()}, torch.device("cpu"))
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in n for n in learned)
    rows = read_sample(study.store, "python-stdlib").training
    heldout = {"target": read_sample(study.store, "target").heldout}
    jobs = [Job(rows, 3e-3, 0)]
    train_to_rung(changed, heldout, jobs, 2)
    (state,) = (load_file(f) for f in (Path(study.store.uri) / "finetune" / "state").glob("*.safetensors"))
    assert {n.removeprefix("model/") for n in state if n.startswith("model/")} == learned, "adapters alone are kept"
    (done,) = train_jobs(changed, heldout, jobs)
    losses = done.losses["target"]
    assert losses.after.mean() != losses.before.mean() and abs(losses.after.mean() - losses.before.mean()) < 1
    keeping = changed.changed(finetune={"keep_weights": True})
    assert train_jobs(keeping, heldout, jobs)[0].losses["target"].after.mean() == pytest.approx(losses.after.mean())
    (kept,) = (Path(study.store.uri) / "finetune" / "weights").glob("*.safetensors")
    assert set(load_file(kept)) == learned, "weights that are asked for after the training are made"

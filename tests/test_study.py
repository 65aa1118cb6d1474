"""The whole study through the command line, on a small configuration."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from align_ray.alignment.noise import needed
from align_ray.cli.main import app
from align_ray.config_file import load_config
from align_ray.reporting.page import render_report
from tests.stored_study import typed


@pytest.fixture(scope="module")
def finished(whole_study, local_ray):
    """The finished study, in the current folder: its output, what the run printed, its configuration. Commands that
    follow are given in this process."""
    folder, printed, config = whole_study
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder / "out", printed, config


def align_ray(*arguments):
    """A command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def stored(out: Path, name: str):
    return json.loads((out / f"{name}.json").read_text())


def test_the_targets_own_domain_ranks_first_and_the_output_says_where_things_are(finished):
    out, printed, _ = finished
    ranking = stored(out, "alignment")["ranking"]["target"]
    assert ranking[0]["candidate"] == "python-stdlib"
    assert all(row["low"] < row["value"] < row["high"] for row in ranking)
    assert "s3://bucket/study/report.html" in printed and "mlflow.db" in printed


def test_the_search_comes_close_to_the_closed_form_which_is_an_optimum(finished):
    search = stored(finished[0], "search")
    assert 3 <= len(search["trials"]) <= 6
    assert -1e-9 <= search["gap_of_search"] < 0.05
    assert search["kkt_residual"] < 1e-4
    for name in ("recommended", "closed_form", "search"):
        weights = np.array(list(search["mixtures"][name]["weights"].values()))
        assert abs(weights.sum() - 1) < 1e-9 and (weights <= np.array(list(search["caps"].values())) + 1e-9).all()
    values = {name: m["value"] for name, m in search["mixtures"].items()}
    assert max(values, key=values.get) == "unconstrained" and min(values, key=values.get) == "bad"
    assert values["recommended"] >= values["closed_form"] - 2 * search["slack"] - 0.05


def test_every_weight_has_an_interval_and_names_what_limits_it(finished):
    search = stored(finished[0], "search")
    assert all(0 <= w["low"] <= w["high"] <= 1 for w in search["weights"].values())
    for name, w in search["weights"].items():
        assert (w["binds"] == "repetition") == (w["weight"] >= search["caps"][name] - 1e-6 and search["caps"][name] < 1)


def test_the_prediction_of_a_mixtures_alignment_is_checked_by_embedding_it(finished):
    check = stored(finished[0], "search")["check"]
    assert set(check) == {"recommended", "uniform", "bad"}
    for row in (rows["target"] for rows in check.values()):
        assert row["measured"]["low"] <= row["predicted"]["high"] and row["predicted"]["low"] <= row["measured"]["high"]
    assert check["bad"]["target"]["measured"]["value"] < check["recommended"]["target"]["measured"]["value"]


def test_the_recipe_says_what_a_trainer_must_know_and_is_exported(finished):
    out, _, config = finished
    recipe = stored(out, "recipe")
    assert recipe["weights"] == stored(out, "search")["mixtures"]["recommended"]["weights"]
    assert (
        recipe["unit"] == "share of tokens" and recipe["tokenizer"]["model"] == "embedded" and recipe["probe"]["digest"]
    )
    done = align_ray("export", out / "recipe.json", "--format", "megatron")
    assert done.exit_code == 0 and "megatron_blend.txt" in done.stdout


@pytest.mark.slow
def test_validation_trains_every_mixture_once_and_compares_them_pairwise(finished, no_trainings):
    out, _, config = finished
    done = align_ray("validate", config, "--mixture", "by kl")
    assert done.exit_code == 0, done.output
    result = stored(out, "validation")
    assert {"recommended", "uniform", "proportional", "unimax", "best_single", "dsir", "mixmin", "bad", "by kl"} <= set(
        result["mixtures"]
    )
    losses = {name: m["loss"]["target"]["value"] for name, m in result["mixtures"].items()}
    assert losses["bad"] == max(losses.values()) and losses["recommended"] < losses["bad"]
    for a, rows in result["versus"].items():
        for b, row in rows.items():
            assert row["target"]["value"] == pytest.approx(losses[a] - losses[b])
            assert row["target"]["p_lower"] == pytest.approx(1 - result["versus"][b][a]["target"]["p_lower"])
    assert "P(lower)" in done.stdout
    against = result["verdict"]["against"]
    assert "uniform" in against and "recommended" not in against
    for name, row in against.items():
        assert row["value"] == pytest.approx(losses[name] - losses["recommended"])
        assert row["p_lower"] == pytest.approx(result["versus"][name]["recommended"]["all"]["p_lower"])
    before = {f.name: f.stat().st_mtime_ns for f in (out / "finetune").iterdir()}
    assert align_ray("validate", config, "--mixture", "by kl").exit_code == 0
    assert {f.name: f.stat().st_mtime_ns for f in (out / "finetune").iterdir()} == before, "nothing is trained twice"


def test_fine_tuning_on_the_own_domain_beats_the_other_domains(finished):
    runs = stored(finished[0], "finetune")["runs"]
    after = {name: run["targets"]["target"]["after"] for name, run in runs.items()}
    assert set(after) == {"python-stdlib", "licences", "cpp-headers", "uniform", "mixture"}
    assert all(runs[n]["epochs"] == 1 and runs[n]["distinct_tokens"] == 1024 for n in ("python-stdlib", "licences"))
    assert all(run["distinct_tokens"] * run["epochs"] == pytest.approx(1024) for run in runs.values())
    assert len({run["targets"]["target"]["before"] for run in runs.values()}) == 1
    assert after["python-stdlib"] < min(after["licences"], after["cpp-headers"])
    assert not list((finished[0] / "train").rglob("*.pt")), "artefacts must be safetensors, no pickle"


def test_the_verdict_is_the_same_in_terminal_json_page_and_mlflow(finished, job_run):
    from mlflow import MlflowClient

    out, printed, _ = finished
    known, found = job_run.tracked, stored(out, "finetune")["verdict"]
    assert next(iter(stored(out, "finetune"))) == "verdict" and found["state"] != "not tested"
    less = stored(out, "finetune")["uniform_less_mixture"]["target"]
    assert found["against"]["uniform"]["value"] == pytest.approx(less["value"])
    tags = MlflowClient(known["uri"]).get_run(known["run_id"]).data.tags
    assert (tags["align_ray.verdict"], tags["align_ray.verdict_why"]) == (found["state"], found["why"])
    assert f"verdict: {found['state']}: {found['why']}" in re.sub(r"\s+", " ", printed)
    assert f"<b>{found['state'].capitalize()}</b>" in (out / "report.html").read_text()


def test_mlflow_holds_the_answer_on_the_parent_a_table_of_trials_and_a_child_for_every_run(finished, job_run):
    from mlflow import MlflowClient

    out = finished[0]
    known = job_run.tracked
    client = MlflowClient(known["uri"])
    parent = client.get_run(known["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.metrics["mixture_alignment"] > 0.5
    children = client.search_runs([known["experiment_id"]], f"tags.`mlflow.parentRunId` = '{known['run_id']}'")
    kinds = [c.data.tags["align_ray.kind"] for c in children]
    trials = len(stored(out, "search")["trials"])
    assert [kinds.count(k) for k in ("alignment", "trial", "finetune")] == [3, 0, 5]
    assert f"Verdict: **{stored(out, 'finetune')['verdict']['state']}**" in parent.data.tags["mlflow.note.content"]
    names = {a.path for a in client.list_artifacts(known["run_id"])}
    assert {"report.html", "config.yaml", "alignment.json", "recipe", "search_trials.json", "ratios.csv"} <= names
    assert {i.dataset.digest for i in parent.inputs.dataset_inputs} == {
        c["sample_digest"] for c in stored(out, "corpora").values()
    }
    best = [m.value for m in client.get_metric_history(known["run_id"], "search/best_penalised")]
    assert len(best) == trials and best == sorted(best)
    trained = [c for c in children if c.data.tags["align_ray.kind"] == "finetune"]
    assert all(len(client.get_metric_history(c.info.run_id, "training_loss")) == 4 for c in trained), (
        "1024 tokens are 4 steps"
    )
    registered = client.get_model_version_by_alias("mixture-study", "recommended")
    assert registered.run_id == known["run_id"]


def test_the_report_is_self_contained_and_its_numbers_are_the_stored_ones(finished):
    html = (finished[0] / "report.html").read_text()
    body = html[: html.index("<script>")]
    assert not re.search(r"(src|href)=[\"']?https?:", body)
    for row in stored(finished[0], "alignment")["ranking"]["target"]:
        assert f"{row['value']:.4f}" in body
    for run in stored(finished[0], "finetune")["runs"].values():
        assert f"{run['targets']['target']['after']:.4f}" in body


def test_a_stage_runs_alone_from_what_is_stored(finished):
    out, _, config = finished
    (out / "report.html").unlink()
    before = stored(out, "alignment")
    for stage in ("align", "report"):
        assert align_ray(stage, config).exit_code == 0
    assert stored(out, "alignment") == before and (out / "report.html").exists()


def test_the_noise_floor_says_what_reaches_a_floor(finished):
    _, _, config = finished
    done = align_ray("align", config, "--noise-floor", "0.05")
    assert done.exit_code == 0, done.stderr
    noise = stored(finished[0], "alignment")["noise"]["licences"]
    # the table below the ranking's
    row = [line for line in done.stdout.splitlines() if line.startswith("licences")][-1]
    assert f"{noise['floor']['value']:.4f}" in row and str(needed(noise, 0.05)["draws"]) in row.split()


def test_a_result_of_another_configuration_is_not_used(finished):
    out, _, config = finished
    refused = align_ray("align", config, "--set", "seed=99")
    assert refused.exit_code == 2 and "no result of the stage 'embed' for this configuration" in refused.stderr
    partial = align_ray("report", config, "--set", "search.trials=7")
    assert partial.exit_code == 0 and "'search' belongs to this configuration" in partial.stdout
    html = (out / "report.html").read_text()
    assert "Candidates for" in html and "<h2>Mixtures</h2>" not in html
    assert align_ray("report", config).exit_code == 0
    assert "<h2>Mixtures</h2>" in (out / "report.html").read_text()


def test_text_from_the_configuration_cannot_become_markup_in_the_report(finished):
    config = load_config(finished[0] / "config.yaml")
    hostile = config.candidates[0].model_copy(update={"template": "</pre><script>alert(1)</script>{text}"})
    config = config.model_copy(update={"candidates": [hostile, *config.candidates[1:]]})
    names = ("corpora", "alignment", "search", "finetune", "cost")
    html = render_report(*typed(config, {name: stored(finished[0], name) for name in names}))
    assert "alert(1)" in html and "<script>alert" not in html


@pytest.mark.slow
def test_a_second_run_recomputes_nothing_and_gives_the_same_numbers(finished):
    out, _, config = finished
    before = {name: stored(out, name) for name in ("alignment", "search", "finetune")}
    done = align_ray("run", config)
    assert done.exit_code == 0, done.output
    assert "embedded 0 batches" in done.stdout
    assert list(differing(before, {name: stored(out, name) for name in before})) == []


RESIDUALS = ("/kkt_residual", "/kkt_residual_within", "/gap_of_search")
"""Differences of two equal numbers, where the search is at its optimum: 7e-14 is as good as 0."""


def differing(before, after, at=""):
    """Where two JSON values differ, with both: numbers by more than nine digits, since another number of threads adds
    in another order; RESIDUALS by more than is left of numbers near one by that alone."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from differing(before[key], after[key], f"{at}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from differing(*pair, f"{at}/{place}")
    elif isinstance(before, float) and isinstance(after, float):
        if not math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12 if at.endswith(RESIDUALS) else 0.0):
            yield f"{at}: {before} != {after}"
    elif before != after:
        yield f"{at}: {before} != {after}"


def test_a_stage_before_its_time_names_the_stage_to_run_first(small_config, tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(small_config(tmp_path / "out")))
    done = align_ray("align", config)
    assert done.exit_code == 2 and "no result of the stage 'embed'" in done.stderr

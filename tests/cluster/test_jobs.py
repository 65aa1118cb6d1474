"""`ray job submit` of the job scripts (the run itself: `tests/job.py`)."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from align_ray import stages

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", sorted((REPOSITORY / "jobs").glob("*.py")), ids=lambda file: file.name)
def test_every_script_takes_a_configuration(script, small_config, tmp_path, monkeypatch, capsys):
    """In this process; whether a study can be run by them as jobs, others of these tests tell."""
    if script.name == "train_probe.py":
        pytest.skip("no job: it makes the embedded probe")
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(small_config(tmp_path / "out") | {"seed": -1}))
    further = ["--corpus", "licences", "--out", "x", "--documents", "1"] if script.name == "select_documents.py" else []
    monkeypatch.setattr(sys, "argv", [str(script), "--config", str(config), *further])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 2 and "field 'seed' is -1" in capsys.readouterr().err


def test_a_stage_script_runs_the_stage_of_its_name(small_config, tmp_path, monkeypatch):
    config, called = tmp_path / "study.yaml", []
    config.write_text(yaml.safe_dump(small_config(tmp_path / "out")))
    monkeypatch.setattr(stages.Stage, "__call__", lambda stage, *_: called.append(stage.name) or sys.exit(0))
    named = ["embed", "align", "contamination", "samples", "search", "finetune", "validate"]
    for name in named:
        monkeypatch.setattr(sys, "argv", [name, "--config", str(config)])
        with pytest.raises(SystemExit):
            runpy.run_path(str(REPOSITORY / "jobs" / f"{name}.py"), run_name="__main__")
    assert called == named


def test_a_failing_job_ends_failed_and_says_why(job_run):
    failed = job_run.failed
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout.upper() and "search.token_budget" in failed.stdout


@pytest.mark.slow
def test_a_study_in_a_bucket_runs_as_a_job_that_is_stopped_and_goes_on_where_it_was(job_run):
    stopped, done = job_run.stopped, job_run.done
    assert stopped == "STOPPED"
    assert job_run.before, "it was stopped before a batch was embedded"
    assert not job_run.whole_when_stopped
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "embedded" in done.stdout
    assert "report: s3://bucket/study/report.html" in done.stdout
    after = job_run.after
    assert len(after) > len(job_run.before)
    assert {path: after[path] for path in job_run.before} == job_run.before, "a finished batch was computed again"
    assert json.loads((job_run.folder / "out" / "alignment.json").read_text())["ranking"]["target"][0]["candidate"] == (
        "python-stdlib"
    )
    assert (job_run.folder / "mlartifacts").is_dir(), "MLflow's files are beside its data base"


@pytest.mark.slow
def test_the_events_and_costs_of_every_stage_are_in_the_bucket_beside_the_results(job_run):
    out = job_run.folder / "out"
    runs = [[json.loads(line) for line in f.read_text().splitlines()] for f in sorted((out / "events").glob("*.jsonl"))]
    assert runs[0][0]["event"] == "started" and runs[0][0]["stage"] == "embed"
    assert runs[0][-1]["event"] != "finished", "the job that was stopped"
    whole = [events for events in runs if events[-1]["event"] == "finished"]
    names = [events[0]["stage"] for events in whole]
    assert names == ["embed", "align", "contamination", "samples", "search", "finetune"]
    assert [events[0]["place"] for events in whole] == [f"{n}/6" for n in range(1, 7)]
    spent = {e["stage"]: e for events in whole for e in events if e["event"] == "spent"}
    costs = json.loads((out / "cost.json").read_text())
    for name, row in costs.items():
        assert (
            row["worker_seconds"] == spent[name]["worker_seconds"] <= row["spent"]
            and row["cost"] == spent[name]["cost"]
        )
    said = [e["text"] for events in whole for e in events if e["event"] == "said"]
    assert any(text.startswith("embedded ") for text in said)
    assert "stage 6/6: finetune" in job_run.done.stdout, "a job's log says where it is"

"""`ray job submit` of the job scripts against a head node started here."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from align_ray import stages

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node of its own; yields (job server, environment of a client)."""
    temp = Path("/tmp") / f"aray{os.getpid()}"  # Ray's socket paths must stay short
    dashboard = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temp}", "--disable-usage-stats", "--object-store-memory=300000000",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    server = f"http://127.0.0.1:{dashboard}"
    probe = [RAY, "job", "submit", "--address", server, "--", "true"]  # accepted once the job agent is up
    for _ in range(15):
        answer = subprocess.run(probe, env=environment, capture_output=True, text=True)
        if answer.returncode == 0:
            break
        assert process.poll() is None, Path(log.name).read_text()
        time.sleep(1)
    assert answer.returncode == 0, answer.stderr
    yield server, environment
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def submit(head, *command: str) -> subprocess.CompletedProcess:
    server, environment = head
    line = [RAY, "job", "submit", "--address", server, "--working-dir", ".", "--", "python", *command]
    return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_a_study_runs_as_a_job_and_its_log_shows_the_answer(head, small_config, tmp_path):
    config = tmp_path / "study.yaml"
    closed_form = {"token_budget": 10_000, "method": "closed_form"}
    config.write_text(yaml.safe_dump(small_config(tmp_path / "out", search=closed_form)))
    done = submit(head, "jobs/run.py", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "embedded" in done.stdout and "report.html" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert (
        json.loads((tmp_path / "out" / "alignment.json").read_text())["ranking"]["target"][0]["candidate"]
        == "python-stdlib"
    )


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


def test_a_failing_job_ends_failed_and_says_why(head, small_config, tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(small_config(tmp_path / "out")).replace("token_budget: 10000", "token_budget: -1"))
    done = submit(head, "jobs/run.py", "--config", str(config))
    assert done.returncode == 1
    assert "FAILED" in done.stdout.upper() and "search.token_budget" in done.stdout


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_was(head, small_config, tmp_path):
    server, environment = head
    mapping = small_config(
        tmp_path / "out", probe={}, sampling={"sequence_length": 128, "batch_size": 8, "batches": 16}
    )
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(mapping))

    def units() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "embeddings").rglob("*.parquet")}

    def ray_job(*command: str) -> subprocess.CompletedProcess:
        line = [RAY, "job", command[0], "--address", server, *command[1:]]
        return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)

    job = ["--submission-id", "halted", "--no-wait", "--working-dir", ".", "--"]
    assert ray_job("submit", *job, "python", "jobs/embed.py", "--config", str(config)).returncode == 0
    end = time.monotonic() + 120
    while not units() and time.monotonic() < end:
        time.sleep(0.2)
    stopped = ray_job("stop", "halted")
    assert stopped.returncode == 0 and "stopped" in (stopped.stdout + stopped.stderr).lower(), (
        stopped.stdout + stopped.stderr
    )
    before = units()
    assert before and not (tmp_path / "out" / "embedding.json").exists()
    again = submit(head, "jobs/embed.py", "--config", str(config))
    assert again.returncode == 0, again.stdout + again.stderr
    after = units()
    assert len(after) > len(before) and {p: after[p] for p in before} == before, "a finished batch was computed again"

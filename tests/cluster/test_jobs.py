"""`ray job submit` of the job scripts against a head node started here. Corpora, output and artefacts are in an object
store, spoken to over HTTP by S3's protocol."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import yaml

from align_ray import stages

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


PLANTED = "planted-secret-of-the-store"


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on loopback with an empty bucket; yields the environment that leads to it, and its files."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    known = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": PLANTED, "AWS_DEFAULT_REGION": "us-east-1"}
    store = pafs.S3FileSystem(
        access_key="key", secret_key=PLANTED, region="us-east-1", endpoint_override=f"127.0.0.1:{port}", scheme="http",
        allow_bucket_creation=True,
    )  # fmt: skip
    for attempt in range(60):
        try:
            store.create_dir("bucket")
            break
        except OSError:
            assert attempt < 59 and server.poll() is None, "the server did not start"
            time.sleep(0.5)
    yield known | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, store
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def head(bucket, tmp_path_factory):
    """A head node of its own; yields (job server, environment of a client)."""
    temp = Path("/tmp") / f"aray{os.getpid()}"  # Ray's socket paths must stay short
    dashboard = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= bucket[0] | {
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
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
def test_a_study_in_a_bucket_runs_as_a_job_that_is_stopped_and_goes_on_where_it_was(
    bucket, head, small_config, tmp_path
):
    (server, environment), store = head, bucket[1]
    mapping = small_config(
        "s3://bucket/study",
        probe={},  # enough work to be stopped in
        sampling={"sequence_length": 64, "batch_size": 8, "batches": 12},
        search={"token_budget": 10_000, "method": "closed_form"},
        finetune={"tokens": 512, "eval_tokens": 512, "learning_rate": 1e-4, "seeds": 2},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    for corpus in mapping["targets"] + mapping["candidates"]:
        name = f"bucket/corpora/{corpus['name']}.jsonl"
        with open(corpus["source"], "rb") as file, store.open_output_stream(name) as there:
            there.write(file.read())
        corpus["source"] = f"s3://{name}"
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(mapping))

    def units() -> dict[str, int]:
        found = store.get_file_info(pafs.FileSelector("bucket/study/embeddings", recursive=True, allow_not_found=True))
        return {i.path: i.mtime_ns for i in found if i.is_file}

    def ray_job(*command: str) -> subprocess.CompletedProcess:
        line = [RAY, "job", command[0], "--address", server, *command[1:]]
        return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)

    job = ["--submission-id", "halted", "--no-wait", "--working-dir", ".", "--"]
    assert ray_job("submit", *job, "python", "jobs/run.py", "--config", str(config)).returncode == 0
    end = time.monotonic() + 120
    while not units() and time.monotonic() < end:
        time.sleep(0.2)
    stopped = ray_job("stop", "halted")
    assert stopped.returncode == 0 and "stopped" in (stopped.stdout + stopped.stderr).lower(), (
        stopped.stdout + stopped.stderr
    )
    before = units()
    assert before and store.get_file_info("bucket/study/embedding.json").type == pafs.FileType.NotFound

    done = submit(head, "jobs/run.py", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "embedded" in done.stdout
    assert "report: s3://bucket/study/report.html" in done.stdout and PLANTED not in done.stdout + done.stderr
    after = units()
    assert len(after) > len(before) and {p: after[p] for p in before} == before, "a finished batch was computed again"
    with store.open_input_stream("bucket/study/alignment.json") as file:
        assert json.loads(file.read())["ranking"]["target"][0]["candidate"] == "python-stdlib"
    assert (tmp_path / "mlartifacts").is_dir(), "MLflow's files are beside its data base"

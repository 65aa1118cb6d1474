"""A whole study as a job: from the installed wheel, on a head node of its own, with corpora and output in an object store
that is spoken to over HTTP by S3's protocol; stopped in its middle and submitted again."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import yaml

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


@dataclasses.dataclass(frozen=True)
class JobRun:
    """What the jobs left behind."""

    folder: Path
    """With study.yaml, MLflow's store, and in `out` a copy of what was written to the bucket."""
    failed: subprocess.CompletedProcess
    """The job with a mistake in its configuration."""
    stopped: str
    """The state of the job that was stopped."""
    before: dict[str, int]
    """Embedded batches when it was stopped, with their times."""
    whole_when_stopped: bool
    done: subprocess.CompletedProcess
    after: dict[str, int]
    tracked: dict[str, Any]
    """mlflow-run.json."""
    scraped: set[str]
    """Names of align-ray's metrics that the head node's export port offered meanwhile."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def s3_server(secret: str) -> Iterator[tuple[dict[str, str], pafs.S3FileSystem]]:
    """An S3 server on loopback with an empty bucket; yields the environment that leads to it, and its files."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    known = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1"}
    store = pafs.S3FileSystem(
        access_key="key", secret_key=secret, region="us-east-1", endpoint_override=f"127.0.0.1:{port}", scheme="http",
        allow_bucket_creation=True,
    )  # fmt: skip
    try:
        for attempt in range(60):
            try:
                store.create_dir("bucket")
                break
            except OSError:
                assert attempt < 59 and server.poll() is None, "the server did not start"
                time.sleep(0.5)
        yield known | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, store
    finally:
        server.terminate()
        server.wait()


@contextmanager
def head_node(environment: dict[str, str], log: Path) -> Iterator[tuple[str, str]]:
    """A head node that takes jobs; yields the addresses of its job server and of its metrics."""
    temp = Path("/tmp") / f"aray{os.getpid()}"  # Ray's socket paths must stay short
    dashboard, metrics = free_port(), free_port()
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temp}",
        "--disable-usage-stats", "--object-store-memory=300000000", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=environment | {"RAY_metrics_report_interval_ms": "1000"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    server = f"http://127.0.0.1:{dashboard}"
    try:
        for attempt in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{server}/api/version", timeout=5):
                break
            assert attempt < 119 and process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield server, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)


def stop(server: str, job: str) -> str:
    """Stop a job, without the seconds that a command takes to start; returns its last state."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/api/jobs/{job}/stop", method="POST"), timeout=30).close()
    for _ in range(120):
        with urllib.request.urlopen(f"{server}/api/jobs/{job}", timeout=30) as answer:
            state = json.load(answer)["status"]
        if state not in ("PENDING", "RUNNING"):
            break
        time.sleep(0.2)
    return state


@contextmanager
def scraping(address: str) -> Iterator[set[str]]:
    """The names of align-ray's metrics that are seen there while it is open, as Prometheus would see them."""
    seen: set[str] = set()
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1):
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
                seen.update(re.findall(r"^(ray_align_ray_\w+)\{", answer.read().decode(), re.MULTILINE))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def run_as_jobs(study: dict, folder: Path, store: pafs.S3FileSystem, environment: dict[str, str]) -> JobRun:
    """Submit a study whose configuration is a mistake, then the study: stop it once something is embedded, and submit
    it again. `study`: its mapping, whose output becomes the bucket; `environment`: of the cluster and the client."""
    work = folder / "work"
    (work / "jobs").mkdir(parents=True)
    shutil.copy(ROOT / "jobs" / "run.py", work / "jobs")
    study = study | {"output": "s3://bucket/study"}
    (work / "study.yaml").write_text(yaml.safe_dump(study))
    (work / "mistake.yaml").write_text(yaml.safe_dump(study | {"search": {"token_budget": -1}}))

    def units() -> dict[str, int]:
        found = store.get_file_info(pafs.FileSelector("bucket/study/embeddings", recursive=True, allow_not_found=True))
        return {i.path: i.mtime_ns for i in found if i.is_file}

    with head_node(environment, folder / "head.log") as (server, metrics), scraping(metrics) as scraped:

        def ray_job(*command: str) -> subprocess.CompletedProcess:
            line = [RAY, "job", command[0], "--address", server, *command[1:]]
            return subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, timeout=500)

        def submit(config: str, *options: str) -> subprocess.CompletedProcess:
            return ray_job("submit", *options, "--working-dir", ".", "--", "python", "jobs/run.py", "--config", config)

        for _ in range(10):  # taken once the job agent is up as well
            halted = submit("study.yaml", "--submission-id", "halted", "--no-wait")
            if halted.returncode == 0:
                break
        assert halted.returncode == 0, halted.stdout + halted.stderr
        end = time.monotonic() + 120
        while not units() and time.monotonic() < end:
            time.sleep(0.2)
        stopped = stop(server, "halted")
        before = units()
        whole = store.get_file_info("bucket/study/embedding.json").type != pafs.FileType.NotFound
        with ThreadPoolExecutor() as pool:  # while the study goes on
            running = pool.submit(submit, "mistake.yaml")
            done = submit("study.yaml")
            failed = running.result()
    shutil.move(work / "study.yaml", folder)
    shutil.rmtree(work)
    (folder / "head.log").unlink()
    pafs.copy_files("bucket/study", str(folder / "out"), store, pafs.LocalFileSystem())
    tracked = folder / "out" / "mlflow-run.json"
    known = json.loads(tracked.read_text()) if tracked.exists() else {}
    return JobRun(folder, failed, stopped, before, whole, done, units(), known, scraped)

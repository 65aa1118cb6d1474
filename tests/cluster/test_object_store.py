"""A study whose corpora, output and artefacts are in an object store, spoken to over HTTP by S3's protocol."""

import os
import subprocess
import sys
import time

import pyarrow.fs as pafs
import pytest
import yaml

from tests.cluster.test_jobs import REPOSITORY, free_port

PLANTED = "planted-secret-of-the-store"

TWICE = """
import sys
from align_ray.cli.main import app
app(["run", sys.argv[1]], standalone_mode=False)
print("between", flush=True)
input()
app(["embed", sys.argv[1]], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on loopback with an empty bucket; yields the environment that leads to it."""
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


@pytest.mark.slow
def test_a_study_lives_in_a_bucket_and_goes_on_there(bucket, small_config, tmp_path):
    environment, store = bucket
    mapping = small_config(
        "s3://bucket/study",
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        finetune={"tokens": 512, "eval_tokens": 512},
    )
    for corpus in mapping["targets"] + mapping["candidates"]:
        name = f"bucket/corpora/{corpus['name']}.jsonl"
        with open(corpus["source"], "rb") as file, store.open_output_stream(name) as there:
            there.write(file.read())
        corpus["source"] = f"s3://{name}"
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(mapping))

    def units() -> dict[str, int]:
        found = store.get_file_info(pafs.FileSelector("bucket/study/embeddings", recursive=True))
        return {i.path: i.mtime_ns for i in found if i.is_file}

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TWICE, str(config)], cwd=tmp_path, env=os.environ | environment | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        first = []
        while (line := process.stdout.readline()) and line != "between\n":
            first.append(line)
        kept = units()
        again, _ = process.communicate("\n", timeout=300)
    first, errors = "".join(first), (tmp_path / "log").read_text()
    assert process.returncode == 0, first + again + errors[-3000:]
    assert PLANTED not in first + again + errors
    assert "report: s3://bucket/study/report.html" in first and len(kept) >= 12
    assert "embedded 0 batches now" in again
    after = units()
    assert {path: after[path] for path in kept} == kept, "a finished batch was computed again"
    assert (tmp_path / "mlartifacts").is_dir() and not (tmp_path / "mlruns").exists(), (
        "MLflow's files are beside its data base"
    )

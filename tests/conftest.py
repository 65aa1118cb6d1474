"""Fixtures: small corpora of real text, a tiny probe, and one Ray of this process for every test that needs one."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, settings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process less a training; no machine here is taken away
os.environ["RAY_DATA_DEFAULT_MIN_PARALLELISM"] = "4"  # parts that Ray Data groups rows in: 200 by default, a task each

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "corpora"

for profile, examples in {"default": 100, "full": 1000}.items():
    settings.register_profile(profile, max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="also what is marked `full`, and many examples of every property"
    )


def pytest_configure(config):
    settings.load_profile("full" if config.option.full else "default")


def pytest_collection_modifyitems(config, items):
    import torch

    # by marker: `item.keywords` holds the names of the folders above as well, so of a checkout that is named `gpu`
    if not config.option.full:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    astray = {item.path.name for item in items if "job_run" in item.fixturenames and not of_the_job(str(item.path))}
    assert not astray, f"the study would run twice: add {astray} to OF_THE_JOB"
    items.sort(key=lambda item: not of_the_job(str(item.path)))
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="no shared corpora beside the checkout"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


OF_THE_JOB = ("cluster/test_jobs", "cluster/test_metrics", "test_security", "test_study", "test_wheel")
"""The files whose tests look at the one study that runs as a job: one process takes them all, and begins with them."""


def of_the_job(path: str) -> bool:
    """Whether a test's id or file is in one of them."""
    return any(f"tests/{name}.py" in path for name in OF_THE_JOB)


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        """A file at a time, since its tests share fixtures."""

        def _split_scope(self, nodeid):
            return "the job" if of_the_job(nodeid) else super()._split_scope(nodeid)

    return ByFile(config, log)


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: t}) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Path:
    """A folder with four small JSONL corpora cut from installed text."""
    from itertools import islice

    from align_ray.corpora.installed import INSTALLED

    folder = tmp_path_factory.mktemp("corpora")
    for name in ("python-stdlib", "python-stdlib-heldout", "licences", "cpp-headers"):
        write_jsonl(folder / f"{name}.jsonl", list(islice(INSTALLED[name](), 60)))
    return folder


@pytest.fixture(scope="session")
def tiny_probe(corpora, tmp_path_factory) -> str:
    """A folder with a GPT-2 of two narrow layers and the embedded tokenizer, trained for some steps on the small
    corpora."""
    from tests.tiny import train_tiny_probe

    texts = [
        json.loads(line)["text"]
        for name in ("python-stdlib", "licences", "cpp-headers")
        for line in (corpora / f"{name}.jsonl").open()
    ]
    return train_tiny_probe(tmp_path_factory.mktemp("probe"), texts)


@pytest.fixture(scope="session")
def tracking(tmp_path_factory) -> dict:
    """One MLflow store for all studies of which MLflow is not the point: a new one takes seconds."""
    return {"uri": f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"}


@pytest.fixture(scope="session")
def small_config(corpora, tiny_probe, tracking):
    """A function that gives the mapping of a small study in a given output folder: tiny probe, one worker, the
    tests' MLflow store."""

    def make(output, candidates=("python-stdlib", "licences"), **sections) -> dict:
        return {
            "output": str(output),
            "probe": {"model": tiny_probe},
            "cluster": {"max_actors": 1},
            "tracking": tracking,
            "targets": [{"name": "target", "source": str(corpora / "python-stdlib-heldout.jsonl")}],
            "candidates": [{"name": n, "source": str(corpora / f"{n}.jsonl")} for n in candidates],
            "sampling": {"sequence_length": 32, "batch_size": 4, "batches": 4},
            "search": {"token_budget": 10_000, "trials": 6},
            "finetune": {"tokens": 1024, "eval_tokens": 1024, "learning_rate": 1e-4, "seeds": 2},
            **sections,
        }

    return make


@pytest.fixture(scope="session")
def local_ray():
    """The Ray that align-ray starts when there is none."""
    import ray

    from align_ray.config import Cluster
    from align_ray.runtime import connect

    connect(Cluster())
    yield ray
    ray.shutdown()


PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-5b1f",
    "HF_TOKEN": "hf_planted7c2e",
    "MLFLOW_TRACKING_USERNAME": "planted-user-18aa",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-90d3",
    "RAY_AUTH_TOKEN": "planted-ray-e64f",
}
"""Secrets in the environment of the study below."""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since setuptools puts whatever lies in `build/` into a wheel; nothing is downloaded."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "align_ray", source / "align_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def from_wheel(wheel, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder into which the wheel is installed, and an environment in which it is found before all else, also by
    Ray's workers; dependencies come from the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder, os.environ | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def bucket():
    """An S3 server; the environment that leads to it, and its files."""
    from tests.job import s3_server

    with s3_server(PLANTED["AWS_SECRET_ACCESS_KEY"]) as found:
        yield found


@pytest.fixture(scope="session")
def job_run(small_config, from_wheel, bucket, tmp_path_factory):
    """A whole study as a user runs it on a cluster (`tests/job.py`): the embedded probe, an MLflow store of
    its own, secrets in the environment; one of its corpora is in the bucket."""
    from tests.job import run_as_jobs

    folder, (known, store) = tmp_path_factory.mktemp("study"), bucket
    settings = {
        "probe": {},
        "cluster": {"max_actors": 1},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "finetune": {"tokens": 1024, "eval_tokens": 1024, "learning_rate": 1e-4, "seeds": 3},
        "sampling": {"sequence_length": 32, "batch_size": 8, "batches": 12},  # enough to be stopped in
        "cost": {"price_per_hour": 1.2},
    }
    study = small_config("out", candidates=("python-stdlib", "licences", "cpp-headers"), **settings)
    there = study["candidates"][0]
    with open(there["source"], "rb") as file, store.open_output_stream("bucket/corpora/stdlib.jsonl") as copy:
        copy.write(file.read() + b'{"text": ""}\n')  # a record that is left out
    where = known["AWS_ENDPOINT_URL"].removeprefix("http://")
    there["source"] = (
        f"s3://bucket/corpora/stdlib.jsonl?anonymous=true&scheme=http&region=us-east-1&endpoint_override={where}"
    )
    environment = {k: v for k, v in from_wheel[1].items() if not k.startswith("RAY_")} | PLANTED | known
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return run_as_jobs(study, folder, store, environment)


@pytest.fixture(scope="session")
def whole_study(job_run):
    """The finished study of the job: its folder with the output in `out`, all that the job printed, and its
    configuration, whose output is that folder now."""
    assert job_run.done.returncode == 0, job_run.done.stdout + job_run.done.stderr
    config = job_run.folder / "study.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"output": "out"}))
    return job_run.folder, job_run.done.stdout + job_run.done.stderr, config


@contextmanager
def actors_here():
    """Within, Ray Data's pools of actors are one actor in this process: the start of a worker is seconds of imports,
    and where the pool is not the point a test is over sooner. Reading stays on Ray; the pool itself is tested in
    embedding/test_stage.py."""
    import torch
    from ray.data import Dataset

    on_ray, threads = Dataset.map_batches, torch.get_num_threads()

    def map_batches(self, fn, *, batch_size=None, batch_format="default", fn_constructor_args=(), **options):
        if not isinstance(fn, type):
            return on_ray(self, fn, batch_size=batch_size, batch_format=batch_format, **options)

        def rows():
            actor = fn(*fn_constructor_args)
            for batch in self.iter_batches(batch_size=batch_size, batch_format=batch_format):
                receipt = actor(batch)
                yield from (dict(zip(receipt, values, strict=True)) for values in zip(*receipt.values(), strict=True))

        return SimpleNamespace(iter_rows=rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "map_batches", map_batches)
        yield
    torch.set_num_threads(threads)


@contextmanager
def trainings_here():
    """Within, training jobs run in this process: a run of Ray Train is ten seconds of imports. Ray Train itself is
    tested in cluster/test_recovery.py, test_search.py and with the whole study."""
    import ray.train.torch
    import torch
    from ray import train

    from align_ray.training import jobs

    alone, threads = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1), torch.get_num_threads()

    def train_here(study, heldout, todo, rung, resume=True):
        jobs.train_loop(jobs.loop_settings(study, heldout) | {"jobs": todo, "rung": rung})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_train", train_here)
        patch.setattr(train, "get_context", lambda: alone)
        patch.setattr(train, "report", lambda *_, **__: None)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        patch.setattr(ray.train.torch, "prepare_model", lambda model: model)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_trainings():
    """`trainings_here` for a whole test."""
    with trainings_here():
        yield


@pytest.fixture
def no_pools(local_ray):
    """`actors_here` for a whole test; the Ray."""
    with actors_here():
        yield local_ray

"""Fixtures: small corpora of real text, a tiny probe, and one Ray of this process for every test that needs one."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, settings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
os.environ["RAY_DATA_DEFAULT_MIN_PARALLELISM"] = "4"  # parts that Ray Data groups rows in: 200 by default, a task each

SHARED = Path(__file__).resolve().parents[2] / "shared" / "corpora"


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

    if not config.option.full:
        config.hook.pytest_deselected(items=[item for item in items if "full" in item.keywords])
        items[:] = [item for item in items if "full" not in item.keywords]
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="no shared corpora beside the checkout"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


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
            "finetune": {"tokens": 1024, "eval_tokens": 1024},
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


@pytest.fixture(scope="session")
def whole_study(small_config, tmp_path_factory):
    """A whole study as a user runs it, in a process of its own: the embedded probe, as many workers as there are, an
    MLflow store of its own, secrets in the environment. Its folder, all that it printed, its configuration."""
    folder = tmp_path_factory.mktemp("study")
    config = folder / "study.yaml"
    defaults = {"probe": {}, "cluster": {}, "tracking": {}}
    config.write_text(
        yaml.safe_dump(small_config("out", candidates=("python-stdlib", "licences", "cpp-headers"), **defaults))
    )
    command = [str(Path(sys.executable).with_name("align-ray")), "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500, env=os.environ | PLANTED)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr, config


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


@pytest.fixture
def no_pools(local_ray):
    """`actors_here` for a whole test."""
    with actors_here():
        yield

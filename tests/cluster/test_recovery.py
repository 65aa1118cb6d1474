"""Workers killed in embed and finetune, and the driver: what is stored ends as that of an undisturbed study
(the search: mixture/test_search.py)."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from align_ray import pipeline
from align_ray.config import Config
from align_ray.config_file import load_config
from align_ray.context import Study
from align_ray.corpora.sample import sample_corpora
from align_ray.store import Store
from align_ray.training import jobs
from align_ray.training.jobs import job_keys, train_jobs
from align_ray.training.loop import train_loop
from align_ray.training.rows import candidate_jobs, heldout_rows
from tests.conftest import actors_here, trainings_here
from tests.job import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from soak_run import broken_off, furthest, results, start_driver, trainings, workers  # noqa: E402

ACTORS, TRAININGS = ("ray::MapWorker(MapBatches(ProbeActor",), ("ray::RayTrainWorker",)
"""What the workers of embed and of finetune are called."""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a cluster in a process of their own; yields its address and that process' id. With a dashboard, as
    clusters have it: without one Ray Train leaves the placement groups of a killed driver."""
    script = f"""
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=3, include_dashboard=True, dashboard_port={free_port()}))
cluster.add_node(num_cpus=2)
print(cluster.address, flush=True)
input()
"""
    head = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    yield head.stdout.readline().strip(), head.pid
    family = psutil.Process(head.pid).children(recursive=True)
    head.kill()
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            pass


def kill_a_worker(root: int, kinds: tuple[str, ...], rng: random.Random, going_on: Callable[[], bool]) -> str:
    """Wait for workers below a process while `going_on`, kill one and say which."""
    while going_on():
        running = workers([root], kinds)
        for victim in rng.sample(running, len(running)):
            with contextlib.suppress(psutil.Error):  # it ended by itself: another one
                name = victim.name()
                victim.send_signal(signal.SIGKILL)
                return name
        time.sleep(0.05)
    raise AssertionError(f"the stage ended before any of {kinds} was killed")


def break_a_training(root: int, out: Path, rng: random.Random, going_on: Callable[[], bool]) -> str:
    """Kill a worker below a process within a training, after its first checkpoint, and say after which step."""
    while going_on():
        running, states = trainings([root], out)
        for victim in rng.sample(running, min(1, len(running))):
            with contextlib.suppress(psutil.Error):
                victim.send_signal(signal.SIGKILL)
                victim.wait(30)
                if broken_off(out, states):
                    return str(states)
        time.sleep(0.02)
    raise AssertionError("the stage ended before a worker was killed within a training")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stages_with_workers_survive_the_death_of_one_and_finetune_that_of_the_driver(
    cluster, local_ray, small_config, tmp_path
):
    """The death of a driver that embeds: test_jobs.py. What is between the two stages, and the undisturbed run, is in
    this process, on the Ray of the tests."""
    address, head = cluster
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    sizes = {
        "probe": {},  # enough work for several workers to be killed in
        "sampling": {"sequence_length": 64, "batch_size": 8, "batches": 8},
        "search": {"token_budget": 10_000, "method": "closed_form"},
        "finetune": {  # 16 steps, with a checkpoint after the eighth
            "tokens": 4096,
            "batch_size": 4,
            "eval_tokens": 512,
            "learning_rate": 1e-4,
            "seeds": 2,
            "checkpoint_every": 0.001,
        },
        "cluster": {"max_actors": 2},  # with room beside: Ray may keep what a training held whose driver was killed
    }
    out, config = tmp_path / "killed", tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(small_config(out, **sizes)))

    def go_on(study: Study) -> None:
        with actors_here():
            pipeline.align(study)
            pipeline.search(study)

    def kill_when_under_way() -> str:
        end = time.monotonic() + 300  # the stage may have failed
        while not any((out / "embeddings").rglob("*.parquet")):
            assert time.monotonic() < end, "nothing was embedded"
            time.sleep(0.05)
        return kill_a_worker(os.getpid(), ACTORS, rng, lambda: not (out / "embedding.json").exists())

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill_when_under_way)
        pipeline.embed(study := pipeline.open_study(load_config(config)))
        print(f"embed: killed {killer.result()}")
    go_on(study)

    driver = start_driver(config, address, "finetune")
    while not any((out / "finetune").glob("*.json")):
        assert driver.poll() is None, "the driver ended before a training had"
        time.sleep(0.05)
    print(f"finetune: killed after {break_a_training(head, out, rng, lambda: driver.poll() is None)}")
    time.sleep(rng.uniform(0.0, 1.0))
    assert driver.poll() is None, "the driver ended before it was killed"
    driver.kill()
    driver.wait()
    had = {f: f.stat().st_mtime_ns for f in (out / "finetune").glob("*.json")}
    pipeline.finetune(study)  # on another Ray: what the first one knew is in the folder
    assert had and {f: f.stat().st_mtime_ns for f in had} == had, "a finished training was made again"

    killed = results(out)
    undisturbed = pipeline.open_study(Config.model_validate(small_config(tmp_path / "undisturbed", **sizes)))
    with actors_here():
        pipeline.embed(undisturbed)
    go_on(undisturbed)
    with trainings_here():
        pipeline.finetune(undisturbed)
    expected = results(tmp_path / "undisturbed")
    assert killed["units"] == expected["units"], "a batch is lost or doubled"
    np.testing.assert_allclose(killed["embeddings"], expected["embeddings"], rtol=1e-5)
    assert furthest(killed["alignment"], expected["alignment"]) < 1e-6
    assert furthest(killed["weights"], expected["weights"]) < 1e-5
    assert furthest(killed["losses"], expected["losses"]) < 1e-6


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_choice_by_training_survives_the_death_of_a_worker_and_of_the_driver_within_a_rung(
    cluster, local_ray, small_config, tmp_path
):
    address, head = cluster
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    sizes = {
        "probe": {},
        "sampling": {"sequence_length": 64, "batch_size": 8, "batches": 8},
        "search": {"token_budget": 10_000, "method": "closed_form"},
        "choose": {"by": "training"},
        "finetune": {"tokens": 8192, "eval_tokens": 1024, "learning_rate": 1e-4, "checkpoint_every": 0.001},
        "cluster": {"max_actors": 2},
    }
    out, config = tmp_path / "killed", tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(small_config(out, **sizes)))

    def ready(study: Study) -> Study:
        with actors_here():
            pipeline.embed(study)
            pipeline.align(study)
        return study

    study = ready(pipeline.open_study(load_config(config)))
    driver = start_driver(config, address, "choose")
    while len(list((out / "finetune" / "state").glob("*.json"))) < 2:  # both candidates are at the first rung
        assert driver.poll() is None, "the driver ended before a rung was reached"
        time.sleep(0.05)
    print(f"choose: killed {kill_a_worker(head, TRAININGS, rng, lambda: driver.poll() is None)}")
    time.sleep(rng.uniform(0.0, 3.0))
    assert driver.poll() is None, "the driver ended before it was killed"
    driver.kill()
    driver.wait()
    after = pipeline.choose(study)
    undisturbed = ready(pipeline.open_study(Config.model_validate(small_config(tmp_path / "undisturbed", **sizes))))
    with trainings_here():
        expected = pipeline.choose(undisturbed)
    assert after.spent == expected.spent and after.chosen() == expected.chosen()
    for name, row in expected.targets["target"].candidates.items():
        found = after.targets["target"].candidates[name]
        assert found.value == pytest.approx(row.value, abs=1e-6) and found.p_best == pytest.approx(row.p_best, abs=1e-6)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_takes_its_worker_down_three_times_keeps_no_other_from_its_end(
    local_ray, small_config, tmp_path, monkeypatch
):
    """In one share of two trainings; when Ray Tune tries the share again, the first one is well."""
    study = pipeline.open_study(Config.model_validate(small_config(tmp_path / "out")))
    sample_corpora(study)
    heldout, pair = heldout_rows(study), candidate_jobs(study, 1024)
    (first, second), notes = job_keys(study, heldout, pair), tmp_path / "notes"
    notes.mkdir()

    def deadly(settings):
        from align_ray.training.loop import train_loop

        began, others = len(list(notes.iterdir())), [job["key"] for job in settings["jobs"]]
        (notes / str(began)).write_text(f"{others.index(first) if first in others else None} {second in others}")
        if first in others and began < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        train_loop(settings)

    monkeypatch.setattr(jobs, "train_loop", deadly)
    done = train_jobs(study, heldout, pair)
    assert [(notes / str(i)).read_text() for i in range(5)] == [*["0 True"] * 3, "None True", "0 False"]
    assert len(list(notes.iterdir())) == 5
    with trainings_here():
        monkeypatch.setattr(jobs, "train_loop", train_loop)
        again = train_jobs(dataclasses.replace(study, store=Store(str(tmp_path / "again"))), heldout, pair)
    for one, other in zip(done, again, strict=True):
        np.testing.assert_allclose(one.losses["target"].after, other.losses["target"].after, atol=1e-6)

"""Ray's own state of an experiment, cut off by a kill, never keeps a run from going on."""

import json
import pickle
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from align_ray import pipeline
from align_ray.config import Config
from align_ray.errors import StoreError
from align_ray.pipeline import open_study
from align_ray.training import experiment as module
from align_ray.training.experiment import drop_torn, restorable
from tests.conftest import actors_here


@pytest.fixture(scope="module")
def searched(local_ray, small_config, tmp_path_factory):
    """A study after its search; its output folder and the folder of Ray Tune's experiment."""
    out = tmp_path_factory.mktemp("searched")
    study = open_study(
        Config.model_validate(small_config(out, search={"token_budget": 10_000, "trials": 4, "resamples": 20}))
    )
    with actors_here():
        pipeline.embed(study)
        pipeline.search(study)
    (experiment,) = (out / "tune").glob("search-*")
    return study, out, experiment


def copied(experiment: Path, folder: Path) -> Path:
    return Path(shutil.copytree(experiment, folder / "experiment"))


def tear(folder: Path, pattern: str, share: float) -> None:
    file = max(folder.glob(pattern))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def test_a_whole_snapshot_is_restored_and_left_as_it_is(searched, tmp_path):
    folder = copied(searched[2], tmp_path)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert restorable(str(folder))
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
    assert not restorable(str(tmp_path / "nothing"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("pattern", ["experiment_state-*", "search_gen_state-*", "searcher-state-*", "tuner.pkl"])
def test_a_torn_snapshot_alone_means_a_new_experiment(searched, tmp_path, pattern, share):
    folder = copied(searched[2], tmp_path)
    tear(folder, pattern, share)
    assert not restorable(str(folder)) and not folder.exists()


@pytest.mark.parametrize("torn", [True, False])
@pytest.mark.parametrize("kind", ["experiment_state", "search_gen_state", "searcher-state"])
def test_a_torn_or_missing_snapshot_gives_way_to_the_one_before(searched, tmp_path, kind, torn):
    folder = copied(searched[2], tmp_path)
    for file in [f for f in folder.glob("*-20*") if f.is_file()]:  # not a trial that began in a minute's second 20
        later = file.with_name(file.name.partition("-20")[0] + "-2099-01-01_00-00-00" + file.suffix)
        shutil.copy(file, later)
    (last,) = folder.glob(f"{kind}-2099*")
    last.write_bytes(last.read_bytes()[:-1]) if torn else last.unlink()
    assert restorable(str(folder)) and not list(folder.glob("*-2099*")) and list(folder.glob(f"{kind}-20*"))


def test_a_search_goes_on_with_the_trials_it_had(searched):
    study, out, experiment = searched
    expected, trials = (
        json.loads((out / "search.json").read_text()),
        {f.name for f in experiment.glob("MixtureTrial_*")},
    )
    (out / "search.json").unlink()
    assert pipeline.search(study).dump()["trials"] == expected["trials"]
    assert {f.name for f in experiment.glob("MixtureTrial_*")} == trials, "a trial was made anew"


def test_a_search_goes_on_from_a_torn_snapshot_to_the_same_result(searched):
    study, out, experiment = searched
    expected = json.loads((out / "search.json").read_text())
    tear(experiment, "searcher-state-*", 0.0)  # what a kill left in a run of these tests
    (out / "search.json").unlink()
    assert pipeline.search(study).dump()["mixtures"] == expected["mixtures"]


def test_what_goes_on_takes_no_more_than_what_began(local_ray, tmp_path):
    """Ray Tune restores a function without its resources: a driver of 0.1 CPUs would hold a whole one."""
    from ray import tune

    def trial(point, file=str(tmp_path / "may-end")):
        import ray
        from ray import tune

        held = ray.get_runtime_context().get_assigned_resources()
        if not Path(file).exists():
            raise RuntimeError("not yet")
        tune.report({"held": held.get("CPU")})

    def run():
        made = (str(tmp_path / "tune"), "once", trial, {"x": tune.grid_search([0])}, tune.TuneConfig(), {"cpu": 0.1})
        return module.experiment(*made).fit()

    assert run().errors
    (tmp_path / "may-end").touch()
    assert restorable(str(tmp_path / "tune" / "once"))
    assert [result.metrics["held"] for result in run()] == [0.1]


def test_a_torn_json_file_is_dropped_and_a_whole_one_kept(tmp_path):
    whole, torn = tmp_path / "whole.json", tmp_path / "torn.json"
    whole.write_text('{"a": 1}')
    torn.write_text('{"a": ')
    for file in (whole, torn, tmp_path / "none.json"):
        drop_torn(str(file))
    assert whole.exists() and not torn.exists()


class Once(pafs.FSSpecHandler):
    """A local file system on which the first read of files whose name has `part` fails."""

    def __init__(self, part):
        from fsspec.implementations.local import LocalFileSystem

        super().__init__(LocalFileSystem())
        self.part, self.failed = part, False

    def open_input_stream(self, path):
        if self.part in path and not self.failed:
            self.failed = True
            raise OSError("connection reset by peer")
        return super().open_input_stream(path)


def all_files(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def snapshots(tmp_path):
    """What Ray Tune writes of an experiment, two snapshots."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "tuner.pkl").write_bytes(pickle.dumps({"a": 1}))
    for time in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        (folder / f"experiment_state-{time}.json").write_text('{"trials": []}')
        (folder / f"basic-variant-state-{time}.json").write_text("{}")
    return folder


@pytest.mark.parametrize("part", ["tuner.pkl", "experiment_state", "basic-variant-state"])
def test_a_store_that_does_not_answer_once_loses_no_experiment(snapshots, monkeypatch, part):
    before, fs = all_files(snapshots), pafs.PyFileSystem(Once(part))
    monkeypatch.setattr(module, "file_system", lambda place: (fs, place))
    with pytest.raises(StoreError, match="connection reset by peer.*nothing was removed"):
        restorable(str(snapshots))
    assert all_files(snapshots) == before
    assert restorable(str(snapshots)) and all_files(snapshots) == before


def test_a_json_file_that_cannot_be_read_once_is_kept(tmp_path, monkeypatch):
    file, fs = tmp_path / "whole.json", pafs.PyFileSystem(Once("whole"))
    file.write_text("{}")
    monkeypatch.setattr(module, "file_system", lambda place: (fs, place))
    with pytest.raises(StoreError, match="cannot be read"):
        drop_torn(str(file))
    drop_torn(str(file))
    assert file.exists()

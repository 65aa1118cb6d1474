"""MLflow as a user meets it: real stores, and the server that `align-ray ui` starts."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from pydantic import ValidationError

from align_ray.cli.ui import local_tracking
from align_ray.config import Config, digest
from align_ray.errors import ConfigError
from align_ray.reporting import tracking
from align_ray.reporting.results import Alignment, Corpora, Mixture
from align_ray.reporting.tracking import start_tracking
from align_ray.reporting.trained import Finetuned
from align_ray.reporting.values import Verdict
from align_ray.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = {"batches": 4, "estimated_tokens": 1000, "documents": 10, "bytes": 4000}
CORPORA = {
    "t": {"role": "target", "sample_digest": "aa" * 8, **COUNTS},
    "a": {"role": "candidate", "sample_digest": "bb" * 8, **COUNTS},
    "b": {"role": "candidate", "sample_digest": "cc" * 8, **COUNTS},
}


def study(output, **fields) -> Config:
    return Config.model_validate(
        {
            "output": str(output),
            "targets": [{"name": "t", "source": "installed:python-stdlib-heldout"}],
            "candidates": [
                {"name": "a", "source": "installed:licences"},
                {"name": "b", "source": "s3://bucket/b/", "column": "body"},
            ],
            **fields,
        }
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One store for all tests, whose studies differ in their name: a new store takes MLflow two seconds."""
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture
def opened(output, request):
    """Configuration, store and tracker of a study of the test's own."""
    config = study(output, name=f"study-{digest(request.node.name)}")
    store = Store(config.output)
    return config, store, start_tracking(config, store)


def recipe(weight=0.75, **fields):
    weights = {"a": weight, "b": 1 - weight}
    return {"weights": weights, "token_budget": 1000, "objective": "cross-entropy", "targets": ["t"], **fields}


def sample(looks=()):
    work = {
        "key": "k",
        "dtype": "float32",
        "planned": 3,
        "computed": 0,
        "tokens": 0,
        "actor_seconds": 0.0,
        "looks": list(looks),
    }
    return Corpora.parse({"corpora": CORPORA, "work": work})


def search(values, key="penalised"):
    trials = [{"weights": {"a": 0.5, "b": 0.5}, "value": v, key: v} for v in values]
    alignment = {"value": 0.9, "error": 0.01, "low": 0.88, "high": 0.92}
    best = {"weights": {"a": 0.75, "b": 0.25}, "value": -6.0, "alignment": alignment, "epochs": {"a": 1.0, "b": 1.0}}
    return Mixture.parse({"trials": trials, "mixtures": {"recommended": best}, "weights": {}, "caps": {}})


def trained(runs):
    return Finetuned.parse({"tokens": 64, "runs": runs})


def history(tracker, metric):
    return [(m.step, m.value) for m in MlflowClient(tracker.uri).get_metric_history(tracker.run_id, metric)]


def children(tracker):
    runs = MlflowClient(tracker.uri).search_runs(
        [tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'"
    )
    return {run.info.run_id: run for run in runs}


def test_every_corpus_is_a_dataset_of_the_parent_run_with_its_digest_and_role(opened):
    config, store, tracker = opened
    for _ in range(2):
        tracking.corpora(tracker, config, store, sample())
    inputs = MlflowClient(tracker.uri).get_run(tracker.run_id).inputs.dataset_inputs
    assert {i.dataset.name: i.dataset.digest for i in inputs} == {n: c["sample_digest"] for n, c in CORPORA.items()}
    assert {i.dataset.name: i.tags[0].value for i in inputs} == {"t": "target", "a": "candidate", "b": "candidate"}
    assert len(inputs) == 3, "logged twice, there once"
    remote = next(i.dataset for i in inputs if i.dataset.name == "b")
    assert remote.source_type == "s3" and json.loads(remote.source) == {"uri": "s3://bucket/b/", "column": "body"}
    assert json.loads(remote.profile) == COUNTS
    assert [column["name"] for column in json.loads(remote.schema)["mlflow_colspec"]] == ["body"]


def test_looks_of_a_sequential_study_and_trials_are_steps_of_the_parent_run(opened):
    config, store, tracker = opened
    looks = [{"batches": 16, "unsettled": 2}, {"batches": 24, "unsettled": 0}]
    store.write_json("recipe.json", recipe())
    for _ in range(2):
        tracking.corpora(tracker, config, store, sample(looks))
        tracking.mixture(tracker, config, store, search([-8.0, -6.0, -7.0]))
    assert history(tracker, "looks/batches") == [(1, 16), (2, 24)] and history(tracker, "looks/unsettled") == [
        (1, 2),
        (2, 0),
    ]
    assert history(tracker, "search/value") == [(0, -8), (1, -6), (2, -7)]
    assert history(tracker, "search/best_penalised") == [(0, -8), (1, -6), (2, -6)]


def test_of_losses_the_best_so_far_is_the_lowest(opened):
    config, store, tracker = opened
    store.write_json("recipe.json", recipe())
    tracking.mixture(tracker, config, store, search([4.0, 3.0, 5.0], key="loss"))
    assert history(tracker, "search/best_loss") == [(0, 4), (1, 3), (2, 3)]


def test_a_training_has_its_losses_by_step_and_is_tracked_once(opened):
    config, store, tracker = opened
    change = {"before": 4.0, "after": 3.5, "change": -0.5, "change_error": None, "overlap": 0.0}
    alone = {"weights": {"a": 1.0}, "sequences": 2, "training": [[1, 4.25], [2, 4.0]], "targets": {"t": change}}
    runs = {"a": alone, "mixture": {**alone, "weights": {"a": 0.75, "b": 0.25}}}
    tracking.finetuned(tracker, config, store, trained(runs))
    before = children(tracker)
    tracking.finetuned(tracker, config, store, trained(runs))
    assert set(children(tracker)) == set(before) and len(before) == 2
    client = MlflowClient(tracker.uri)
    for run_id, found in before.items():
        assert [(m.step, m.value) for m in client.get_metric_history(run_id, "training_loss")] == [(1, 4.25), (2, 4.0)]
        assert found.data.metrics["loss/t"] == 3.5 and set(found.data.params) == {"weight/a", "weight/b"}
    assert history(tracker, "mixture_loss/t") == [(0, 3.5)]
    change["after"] = 3.25
    tracking.finetuned(tracker, config, store, trained(runs))
    assert {r.data.metrics["loss/t"] for r in children(tracker).values()} == {3.25}, "another result replaces the run"
    assert len(children(tracker)) == 2


def test_of_so_many_corpora_that_mlflow_takes_them_in_parts_everything_is_there(output, request):
    names = [f"c{i}" for i in range(1050)]
    corpora = [{"name": n, "source": f"{n}.jsonl"} for n in names]
    config = study(output, name=f"study-{digest(request.node.name)}", candidates=corpora)
    store = Store(config.output)
    tracker = start_tracking(config, store)
    counts = {n: {**CORPORA["a"], "sample_digest": digest(n)[:16]} for n in names} | {"t": CORPORA["t"]}
    tracking.corpora(tracker, config, store, sample().model_copy(update={"corpora": Corpora.parse(
        {"corpora": counts, "work": sample().work.model_dump()}).corpora}))  # fmt: skip
    weights = {n: (1 + i) / 551_775 for i, n in enumerate(names)}
    change = {"before": 4.0, "after": 3.5, "change": -0.5, "change_error": None, "overlap": 0.0}
    run = {"sequences": 2, "targets": {"t": change}}
    runs = {"c1": {**run, "weights": {"c1": 1.0}}, "mixture": {**run, "weights": weights}}
    tracking.finetuned(tracker, config, store, trained(runs))
    alignment = {"value": 0.9, "error": 0.01, "low": 0.88, "high": 0.92}
    best = {"weights": weights, "value": -6.0, "alignment": alignment, "epochs": weights}
    found = Mixture.parse({"mixtures": {"recommended": best}, "weights": {}, "caps": {}})
    store.write_json("recipe.json", {**recipe(), "weights": weights})
    for _ in range(2):
        tracking.mixture(tracker, config, store, found)
    tracking.answer(tracker, config, {"search": found}, "Train on many.", "")
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert len(run.inputs.dataset_inputs) == 1051
    assert sum(name.startswith("weight/") for name in run.data.metrics) == 1050
    assert "| 1030 others | 96.2% |" in run.data.tags["mlflow.note.content"].splitlines()
    below = {r.info.run_name: r.data.params for r in children(tracker).values()}
    assert len(below["mixture"]) == 1050 and below["c1"] == {"weight/c1": "1"}
    version = MlflowClient(tracker.uri).get_model_version_by_alias(f"mixture-{config.name}", "recommended")
    assert str(version.version) == "1" and version.description.endswith("and 96.2% of 1030 others.")


def test_the_answer_is_on_the_parent_run_and_what_lasted_is_shown_so(opened, tmp_path):
    config, store, tracker = opened
    client, start = MlflowClient(tracker.uri), int(time.time() * 1000) - 60_000
    tracker = dataclasses.replace(tracker, since=start)
    store.write_json("recipe.json", recipe())
    searched = search([-8.0, -6.0])
    change = {"before": 4.0, "after": 3.5, "change": -0.5, "change_error": None, "overlap": 0.0}
    training = {"weights": {"a": 0.75, "b": 0.25}, "sequences": 2, "targets": {"t": change}}
    fine = Finetuned.parse(
        {"tokens": 64, "runs": {"mixture": training}, "verdict": {"state": "undecided", "why": "because"}}
    )
    tracking.mixture(tracker, config, store, searched)
    tracking.finetuned(tracker, config, store, fine)
    tracking.answer(tracker, config, {"search": searched, "finetune": fine}, "Train on a.", "")
    run = client.get_run(tracker.run_id)
    day = time.strftime("%Y-%m-%d", time.gmtime(run.info.start_time / 1000))
    assert run.info.run_name == f"{day} t ({config.name})"
    description = run.data.tags["mlflow.note.content"]
    for line in (
        "**Train on a.**",
        "Verdict: **undecided**: because",
        "| a | 75.0% |",
        "| mixture | 3.5000 | -0.5000 |",
    ):
        assert line in description.splitlines()
    assert run.data.metrics["weight/a"] == 0.75 and run.data.metrics["mixture_loss/t"] == 3.5
    assert run.data.tags["align_ray.verdict"] == "undecided"
    found = list(children(tracker).values())
    assert [r.info.run_name for r in found] == ["mixture"], "cheap trials are a table"
    assert found[0].info.start_time == start and found[0].info.end_time - start >= 60_000
    path = download_artifacts(
        run_id=tracker.run_id, artifact_path="search_trials.json", tracking_uri=tracker.uri, dst_path=str(tmp_path)
    )
    table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["value"] for row in rows] == [-8.0, -6.0] and {row["a"] for row in rows} == {0.5}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "search_trials.json", "type": "table"}]
    experiment = client.get_experiment(tracker.experiment_id)
    assert "weight/NAME" in experiment.tags["mlflow.note.content"]


def test_trials_that_trained_are_runs_one_level_deeper(opened):
    config, store, tracker = opened
    store.write_json("recipe.json", recipe())
    tracking.mixture(tracker, config, store, search([4.0, 3.0], key="loss"))
    (above,) = children(tracker).values()
    below = children(dataclasses.replace(tracker, run_id=above.info.run_id)).values()
    assert above.info.run_name == "search" and sorted(r.data.metrics["loss"] for r in below) == [3.0, 4.0]


def test_the_mixture_is_registered_once_and_its_files_are_the_recipe(opened):
    _, _, tracker = opened
    client, name = MlflowClient(tracker.uri), "mixture-registered-once"
    assert [tracker.register(name, recipe()) for _ in range(2)] == ["1", "1"]
    version = client.get_model_version_by_alias(name, "recommended")
    assert version.run_id == tracker.run_id and version.tags["weight/a"] == "0.75"
    folder = download_artifacts(client.get_model_version_download_uri(name, version.version), tracking_uri=tracker.uri)
    assert [f.name for f in Path(folder).iterdir()] == ["recipe.json"]
    assert json.loads((Path(folder) / "recipe.json").read_text()) == recipe()

    assert tracker.register(name, recipe(0.5)) == "2"
    for number, weight in (("1", 0.75), ("2", 0.5)):
        folder = download_artifacts(client.get_model_version_download_uri(name, number), tracking_uri=tracker.uri)
        assert json.loads((Path(folder) / "recipe.json").read_text()) == recipe(weight), (
            "a later version leaves the earlier one"
        )
    assert str(client.get_model_version_by_alias(name, "recommended").version) == "2"
    assert tracker.register(name, recipe()) == "1", "found again: the version it had"
    assert str(client.get_model_version_by_alias(name, "recommended").version) == "1"


def test_another_configuration_has_a_parent_run_of_its_own_and_another_cluster_has_not(opened):
    config, store, tracker = opened
    client = MlflowClient(tracker.uri)
    other = config.model_copy(update={"seed": 7})
    assert start_tracking(config, store) == tracker
    assert (
        start_tracking(
            config.model_copy(update={"cluster": config.cluster.model_copy(update={"max_actors": 2})}), store
        )
        == tracker
    )
    second = start_tracking(other, store)
    assert second.run_id != tracker.run_id
    assert [client.get_run(t.run_id).data.params["seed"] for t in (tracker, second)] == ["0", "7"]
    assert store.read_json("mlflow-run.json")["run_id"] == second.run_id
    client.delete_run(tracker.run_id)
    assert start_tracking(config, store).run_id != tracker.run_id, "a deleted run is not written to"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_the_parent_run_says_how_a_stage_ended(opened, error, status):
    tracker = opened[2]
    seen = lambda: MlflowClient(tracker.uri).get_run(tracker.run_id).info.status  # noqa: E731
    try:
        with tracker.running():
            assert seen() == "RUNNING"
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert seen() == status


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=r"field 'tracking.uri': MLflow at http://127.0.0.1:\d+ does not answer"):
        start_tracking(study(tmp_path, tracking={"uri": uri}), Store(str(tmp_path)))


def written(path, config) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_ui_refuses_what_is_tracked_elsewhere_or_not_yet(tmp_path):
    config = written(tmp_path / "elsewhere.yaml", study(tmp_path, tracking={"uri": "https://mlflow.example.org"}))
    with pytest.raises(ConfigError, match="tracked at https://mlflow.example.org .*open its pages there"):
        local_tracking(config)
    with pytest.raises(ConfigError, match="mlflow.db does not exist yet; run a stage first"):
        local_tracking(written(tmp_path / "new.yaml", study(tmp_path)))
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        local_tracking(tmp_path / "config.yaml")


def command(*arguments) -> list[str]:
    return [sys.executable, "-c", "from align_ray.cli.main import app; app()", "ui", *map(str, arguments)]


@pytest.mark.parametrize("module", ["reporting.tracking", "doctor", "cli.ui", "cli.main"])
def test_whatever_imports_mlflow_finds_its_telemetry_off(module):
    script = (
        f"import align_ray.{module}, os, sys; print('mlflow' in sys.modules, os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    bare = {k: v for k, v in os.environ.items() if k != "MLFLOW_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=bare, capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["False", "true"], done.stderr


def test_ui_names_a_port_that_is_taken(output, opened):
    written(output / "config.yaml", opened[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(output, "--port", port), capture_output=True, text=True, timeout=60, cwd=REPOSITORY
        )
    assert done.returncode == 2 and f"--port {port}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_ui_serves_the_study_on_loopback_alone_and_a_study_can_be_tracked_on_such_a_server(output, opened, tmp_path):
    written(output / "config.yaml", opened[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        command(output, "--port", port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPOSITORY
    )
    try:
        uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            try:
                assert urllib.request.urlopen(f"{uri}/health", timeout=5).read() == b"OK"
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        assert MlflowClient(uri).get_run(opened[2].run_id).info.run_name.endswith(f"({opened[0].name})")

        config, store = study(tmp_path, tracking={"uri": uri, "experiment": "through-a-server"}), Store(str(tmp_path))
        tracker = start_tracking(config, store)
        tracking.corpora(tracker, config, store, sample())
        assert [tracker.register("mixture-on-a-server", recipe()) for _ in range(2)] == ["1", "1"]
        assert len(MlflowClient(uri).get_run(tracker.run_id).inputs.dataset_inputs) == 3
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def test_the_verdict_is_a_tag_of_the_parent_run(opened):
    _, _, tracker = opened
    said = lambda: {
        k: v for k, v in MlflowClient(tracker.uri).get_run(tracker.run_id).data.tags.items() if "verdict" in k
    }
    tracker.verdict(Verdict(state="undecided", why="few seeds"), "finetune")
    assert said()["align_ray.verdict"] == "undecided"
    validated = {"align_ray.verdict": "confirmed", "align_ray.verdict_why": "lower", "align_ray.verdict_by": "validate"}
    tracker.verdict(Verdict(state="confirmed", why="lower"), "validate")
    assert said() == validated
    tracker.verdict(Verdict(state="undecided", why="few seeds"), "finetune")
    tracker.verdict(None, "validate")
    assert said() == validated, "what compares most stays"


def test_a_deleted_experiment_is_one_sentence_that_says_how_to_restore_it(tmp_path):
    config = study(tmp_path)
    tracker = start_tracking(config, Store(str(tmp_path)))
    MlflowClient(tracker.uri).delete_experiment(tracker.experiment_id)
    remedy = f"mlflow experiments restore --experiment-id {tracker.experiment_id}"
    with pytest.raises(ConfigError, match=rf"field 'tracking.experiment': .* was deleted; .*{remedy}"):
        start_tracking(config, Store(str(tmp_path)))


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ({"experiment": ""}, "at least 1 character"),
        ({"experiment": "  "}, "an experiment needs a name"),
        ({"experiment": "x" * 251}, "at most 250 characters"),
        ({"uri": "localhost:5000"}, "write http://localhost:5000 or https://localhost:5000"),
        ({"uri": "10.0.0.1:5000/mlflow"}, "an address needs its scheme"),
    ],
)
def test_a_name_or_address_that_mlflow_cannot_take_is_refused_with_the_field(tmp_path, tracking, said):
    with pytest.raises(ValidationError, match=said):
        study(tmp_path, tracking=tracking)


def test_alignment_is_a_run_a_candidate_with_every_targets_values_as_metrics(opened):
    """Seventy candidates and two targets are seventy runs, and no more when they are tracked again."""
    config, store, tracker = opened
    names = [f"c{i}" for i in range(70)]
    estimate = {"error": 0.01, "low": 0.0, "high": 1.0}

    def ranked(target):
        return [{"candidate": n, "value": i + target / 2, "p_best": 0.0, **estimate} for i, n in enumerate(names)]

    rankings = {"t": ranked(0), "u": ranked(1)}
    ceiling = dict.fromkeys("tu", {"value": 1.0, **estimate})
    predicted = {"measure": "words", "ranking": {"t": rankings["u"][:-1], "u": rankings["t"]}}
    predicted["unranked"] = {"t": [{"tokens": 5, **rankings["u"][-1]}]}
    result = Alignment.parse(
        {"targets": [*"tu"], "candidates": names, "ranking": rankings, "ceiling": ceiling, "predicted": predicted}
    )
    for _ in range(2):
        tracking.alignment(tracker, config, store, result)
    clause = f"tags.`mlflow.parentRunId` = '{tracker.run_id}' and tags.`align_ray.kind` = 'alignment'"
    found = MlflowClient(tracker.uri).search_runs([tracker.experiment_id], clause)
    assert {run.info.run_name for run in found} == set(names) and len(found) == 70
    (last,) = [run.data for run in found if run.info.run_name == "c69"]
    assert last.params == {"candidate": "c69"}
    assert last.metrics == {
        "alignment/t": 69, "alignment/u": 69.5, "alignment_error/t": 0.01, "alignment_error/u": 0.01,
        "cross_entropy/t": 69.5, "cross_entropy/u": 69,
    }  # fmt: skip

"""What SECURITY.md promises, tried: planted secrets, planted code, names that would escape, sockets, pickle."""

import json
import os
import pickle
import pickletools
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.config_file import load_config
from align_ray.errors import ConfigError, ProbeError
from align_ray.handover.export import EXPORTERS
from align_ray.handover.recipe import FORMAT, read_recipe
from tests.conftest import PLANTED
from tests.tiny import tiny_model

REPOSITORY = Path(__file__).resolve().parents[1]


def ours(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command line of this working tree, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | options.pop("env", {})
    command = [sys.executable, "-c", "from align_ray.cli.main import app; app()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, **options)


def content(file: Path) -> bytes:
    """Of a Parquet file its texts and metadata, which are compressed in the file; else the bytes."""
    if file.suffix != ".parquet":
        return file.read_bytes()
    table = pq.read_table(file)
    texts = [c.to_pylist() for c in table.columns if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
    return repr((texts, table.schema.metadata)).encode()


@pytest.mark.slow
def test_no_secret_of_the_environment_is_printed_or_stored(whole_study):
    folder, printed, _ = whole_study
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert {"report.html", "config.yaml", "mlflow.db", "recipe.json"} <= {f.name for f in files}
    assert any("mlartifacts" in f.parts for f in files)
    for variable, value in PLANTED.items():
        assert value not in printed, variable
        assert not [f for f in files if value.encode() in content(f)], variable


def is_pickle(data: bytes) -> bool:
    """Whether the bytes are a whole pickle, or a zip archive as torch.save makes."""
    try:
        *_, (_, _, end) = pickletools.genops(data)
    except (ValueError, OverflowError):
        return data.startswith(b"PK")
    return len(data) > 1 and end == len(data) - 1  # "0.5 of a text" ends at its point


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
def test_no_pickle_is_stored_but_in_ray_tunes_own_folders(whole_study):
    out = whole_study[0] / "out"
    assert is_pickle(pickle.dumps({"a": [1]})) and not is_pickle(b'{"a": 1}')
    files = [f for f in out.rglob("*") if f.is_file() and f.relative_to(out).parts[0] not in ("tune", "train")]
    assert any(f.suffix == ".safetensors" for f in files)
    assert not [f for f in files if f.suffix in (".pkl", ".pickle", ".pt", ".bin", ".joblib")]
    assert not [f for f in files if is_pickle(f.read_bytes())]
    assert list((out / "tune").rglob("*.pkl")), "Ray Tune keeps no pickle any more: SECURITY.md can say so"


def test_the_dashboard_of_a_ray_that_align_ray_starts_is_on_loopback_alone(local_ray):
    port = int(local_ray.worker.get_dashboard_url().rpartition(":")[2])
    places = [place for p in psutil.Process().children(recursive=True) for place in listening(p)]
    assert {place.ip for place in places if place.port == port} == {"127.0.0.1"}


def listening(process: psutil.Process) -> list:
    try:
        return [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    except psutil.Error:  # it has ended
        return []


def test_a_ray_that_align_ray_starts_answers_nobody_without_its_token(local_ray):
    """Ray's control service and workers listen on every interface, whatever the dashboard does."""
    jobs = f"http://{local_ray.worker.get_dashboard_url()}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError, match="401|403"):
        urllib.request.urlopen(jobs, timeout=10)
    command = [
        str(Path(sys.executable).with_name("ray")),
        "status",
        "--address",
        local_ray.get_runtime_context().gcs_address,
    ]

    def ask(mode):
        environment = os.environ | {"RAY_AUTH_MODE": mode}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    asked = {mode: ask(mode) for mode in ("token", "disabled")}
    end = time.monotonic() + 60
    while "No cluster status" in asked["token"].stdout and time.monotonic() < end:  # the autoscaler has yet to look
        asked["token"] = ask("token")
    assert asked["token"].returncode == 0 and "CPU" in asked["token"].stdout, asked["token"].stderr
    assert asked["disabled"].returncode != 0 and "CPU" not in asked["disabled"].stdout


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A folder with a tiny model and the embedded tokenizer, and a file that planted code would make."""
    from align_ray.fisher.probe import EMBEDDED

    folder = tmp_path / "model"
    tiny_model("llama").float().save_pretrained(folder)
    for file in EMBEDDED.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder, tmp_path / "ran"


def test_code_that_comes_with_a_model_runs_when_asked_for_and_never_else(model, small_config, tmp_path):
    folder, marker = model
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out", probe={"model": str(folder)})))
    refused = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml")])
    assert refused.exit_code == 2 and "trust_remote_code" in refused.stderr and "Traceback" not in refused.stderr
    assert not marker.exists()
    ours(
        "run",
        str(tmp_path / "study.yaml"),
        "--set",
        "probe.trust_remote_code=true",
        env={"HF_HOME": str(tmp_path / "hub")},
    )
    assert marker.exists(), "the planted code would have run"


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("beside", [False, True])
def test_pickled_weights_are_never_opened(model, small_config, tmp_path, beside):
    """Alone they are refused in a sentence; beside safetensors of another name they are not fallen back to."""
    from align_ray.fisher.probe import load_model, locate_probe
    from align_ray.fisher.settings import ProbeName

    folder, marker = model
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    weights = folder / "model.safetensors"
    if beside:
        weights.rename(folder / "other.safetensors")
        with pytest.raises(ProbeError, match="other"):
            load_model(locate_probe(ProbeName(str(folder))))
    else:
        weights.unlink()
        (tmp_path / "study.yaml").write_text(
            yaml.safe_dump(small_config(tmp_path / "out", probe={"model": str(folder)}))
        )
        done = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml")])
        assert done.exit_code == 2 and "pickle is refused" in done.stderr and done.stderr.count("\n") == 1
    assert not marker.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert marker.exists(), "the planted pickle would have run"


# --- configurations ---------------------------------------------------------------------------------------------------

STUDY = {
    "output": "out",
    "targets": [{"name": "t", "source": "t.jsonl"}],
    "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
}
CREDENTIALS = (
    "https://zq7xw@mlflow.example.org",
    "https://zq7xw:@mlflow.example.org",
    "postgresql://user:zq7xw@db.example.org/mlflow",
    "mysql+pymysql://user:zq7xw@db/m",
    "s3://KEY:zq/7xw-zq7xw@bucket/x",
    "s3://KEY:zq7xw#x@bucket",
    "hf://user:zq7xw@owner/name",
    "https://h/x?X-Amz-Credential=zq7xw&X-Amz-Date=1",
    "https://h/x?X-Amz-Security-Token=zq7xw",
    "https://h/x?X-Goog-Signature=zq7xw",
    "https://h.blob.core.windows.net/x?sv=1&sig=zq7xw",
    "https://h/x?api_key=zq7xw",
    "https://h/x#access_token=zq7xw",
    "ray://user:zq7xw@head:10001",
)


@pytest.mark.parametrize(
    "field", ["output", "tracking.uri", "candidates.source", "probe.model", "finetune.model", "cluster.address"]
)
@pytest.mark.parametrize("uri", CREDENTIALS)
def test_a_credential_in_any_place_is_refused_and_not_repeated(tmp_path, field, uri):
    data = json.loads(json.dumps(STUDY))
    section, _, name = field.partition(".")
    if section == "candidates":
        data["candidates"][1]["source"] = uri
    else:
        data[section] = {name: uri} if name else uri
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="carries a credential") as caught:
        load_config(tmp_path / "study.yaml")
    assert not any(part in str(caught.value) for part in ("zq", "q7", "7x", "xw")) and section in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": ["s3://k:zq7xw@b"]},
        {"output": {"uri": "s3://k:zq7xw@b"}},
        {"seed": "s3://k:zq7xw@b"},
        {"seed": "mysql+pymysql://mlflow:zq7xw@db/m"},
    ],
)
def test_a_credential_in_the_wrong_place_is_not_repeated_either(tmp_path, wrong):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | wrong))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "study.yaml")
    assert not any(part in str(caught.value) for part in ("zq", "q7", "7x", "xw")) and next(iter(wrong)) in str(
        caught.value
    )


@pytest.mark.parametrize(
    "uri",
    ["hdfs://namenode:8020/user@site/x", "gs://anonymous@bucket/x", "abfs://box@account.dfs.core.windows.net/x", "sqlite:////data/m.db",
     "http://127.0.0.1:5000", "hf://owner/name", "s3://bucket/a@b:c?region=eu-west-1", "ray://head:10001"],
)  # fmt: skip
def test_an_address_without_a_credential_is_taken(uri):
    assert Config.model_validate(STUDY | {"output": uri}).output == uri


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system"]
)
def test_yaml_makes_no_objects(tmp_path, tag):
    marker = tmp_path / "ran"
    (tmp_path / "study.yaml").write_text(f"output: {tag} ['touch {marker}']\n")
    calls = (["run", str(tmp_path / "study.yaml")], ["demo", "--set", f"output={tag} ['touch {marker}']"])
    for call in calls:
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 2 and "not valid YAML" in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not marker.exists()


# --- names and paths --------------------------------------------------------------------------------------------------

ESCAPES = ("../x", "..", ".", "/etc/x", "a/b", "a\\b", "a\0b", "", "a\n", "C:x", "~", "-x", "x y")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_cannot_be_a_path(name):
    with pytest.raises(ValidationError):
        Corpus(name=name, source="x")
    with pytest.raises(ValidationError):
        Config.model_validate(STUDY | {"name": name})


def recipe(name: str) -> dict:
    counts = {"documents": 10, "tokens": 1000, "epochs": 1.0}
    both = (name, "b")
    return {
        "format": FORMAT,
        "weights": dict.fromkeys(both, 0.5),
        "corpora": dict.fromkeys(both, counts),
        "token_budget": 1000,
        "targets": ["t"],
        "seed": 0,
        "tokenizer": {"model": "embedded", "vocabulary": "0"},
    }


@pytest.mark.parametrize("name", ESCAPES)
def test_a_recipe_cannot_lead_an_exporter_out_of_the_data_folder(tmp_path, name):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe("a")))
    assert all(
        "/data/b" in EXPORTERS[kind].write(read_recipe(file), "/data") for kind in ("megatron", "olmo", "levanter")
    )
    file.write_text(json.dumps(recipe(name)))
    done = CliRunner().invoke(app, ["export", str(file), "--format", "megatron", "--data", "/data"])
    assert done.exit_code == 2 and "recipe" in done.stderr and "Traceback" not in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize(
    "change", [{"weights": {"a": 1.0}}, {"corpora": {}}, {"seed": "x"}, {"targets": ["../t"]}, {"weights": None}]
)
def test_a_recipe_that_does_not_fit_together_is_refused_in_a_sentence(tmp_path, change):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe("a") | change))
    with pytest.raises(
        ConfigError, match=next(iter(change)) if "corpora" not in change else "different corpora"
    ) as caught:
        read_recipe(tmp_path / "recipe.json")
    assert "\n" not in str(caught.value)

"""`align-ray doctor`: each thing that a study needs, whether it is well, and what to do where it is not."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from align_ray import doctor
from align_ray.cli.main import app
from align_ray.config import Config
from align_ray.doctor import APART, Check, diagnose
from align_ray.errors import CapacityError

PLANTED = "planted-4c1d"


def row(rows: list[Check], name: str) -> Check:
    return next(r for r in rows if r.check == name)


@pytest.fixture
def config(small_config, tmp_path):
    """A function that gives a small study's configuration with other sections."""
    return lambda **sections: Config.model_validate(small_config(tmp_path / "out", **sections))


def test_a_sound_environment_passes_and_nothing_stays_behind(small_config, monkeypatch):
    """All checks for real, Ray too; its files and processes are told by their folder, environment values by a
    planted one."""
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, PLANTED)
    folder = Path(tempfile.mkdtemp(prefix="ad", dir="/tmp"))  # short: Ray's socket paths must be
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    study = folder.with_suffix(".yaml")
    study.write_text(yaml.safe_dump(small_config(folder / "out", probe={}, cluster={}, tracking={})))
    done = CliRunner().invoke(app, ["doctor", str(study), "--json"])
    study.unlink()
    assert done.exit_code == 0, done.output
    rows = {r["check"]: r for r in json.loads(done.stdout)}
    assert {
        "Python",
        "packages",
        "configuration",
        "output",
        "torch",
        "GPU",
        "Ray",
        "versions",
        "object store",
        "workers",
        "MLflow",
        "hub",
        "probe",
    } <= set(rows)
    assert "failed" not in {r["status"] for r in rows.values()} and "starts here" in rows["Ray"]["result"]
    assert "finite logits" in rows["probe"]["result"] and "HF_HUB_OFFLINE" in rows["hub"]["result"]
    assert PLANTED not in done.output
    assert not list(folder.iterdir()), "files stayed behind"
    folder.rmdir()
    deadline = time.monotonic() + 20  # Ray's helpers end with the raylet, a moment later
    while left := [
        p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in part for part in p.info["cmdline"] or ())
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_what_is_wrong_with_a_study_fails_with_status_1(small_config, tmp_path, monkeypatch):
    kept = {name: APART[name] for name in ("configuration", "output", "MLflow")}
    monkeypatch.setattr(doctor, "APART", kept)
    wrong = small_config("/dev/null/out", tracking={"uri": "http://127.0.0.1:9"})
    wrong["candidates"][0]["source"] = "/nowhere/x.jsonl"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(wrong))
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "study.yaml"), "--json"])
    assert done.exit_code == 1
    rows = [Check(**r) for r in json.loads(done.stdout)]
    assert [r.check for r in rows if r.status == "failed"] == ["configuration", "output", "MLflow"]
    assert "/nowhere/x.jsonl" in row(rows, "configuration").result and "Not a directory" in row(rows, "output").result
    assert "tracking.uri" in row(rows, "MLflow").remedy
    monkeypatch.setattr(doctor, "diagnose", lambda *_: rows)
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "study.yaml")])
    assert done.exit_code == 1 and done.stdout.count("failed") == 3 and "what to do" in done.stdout
    assert CliRunner().invoke(app, ["doctor", str(tmp_path / "none.yaml")]).exit_code == 2


def test_a_cluster_that_does_not_answer_is_given_up_and_its_address_not_shown(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{PLANTED}.invalid:1")
    monkeypatch.setitem(APART, "Ray", (APART["Ray"][0], 2, "look"))
    start = time.monotonic()
    (found,) = doctor._apart("Ray", None)
    assert found.status == "failed" and time.monotonic() - start < 15
    assert PLANTED not in str(found)


def test_a_check_that_breaks_gives_its_class_but_not_its_words(monkeypatch):
    def broken(_):
        raise RuntimeError(f"at {PLANTED}")

    monkeypatch.setitem(APART, "hub", (broken, 1, "look"))
    (found,) = json.loads(doctor._answer("hub", "null"))
    assert found == {"check": "hub", "status": "failed", "result": "RuntimeError", "remedy": "look"}


def test_a_missing_or_old_package_is_named_with_the_command_that_mends_it(monkeypatch):
    metadata = doctor.importlib.metadata
    wanted = ["ray[data]<2.61,>=2.60", "no-such-package>=1", 'gguf>=99; extra == "smollm2"']
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    found = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.50.0" if name == "ray" else found(name))
    old, missing = doctor._packages()
    assert (old.check, old.status, old.result) == (
        "ray",
        "failed",
        "2.50.0",
    ) and old.remedy == "pip install 'ray<2.61,>=2.60'"
    assert missing.result == "not installed" and "no-such-package>=1" in missing.remedy
    smollm2, study, _ = doctor._extras()
    assert smollm2.status == "ok" and "align-ray[smollm2]" in smollm2.remedy and study.result == "installed"


@pytest.mark.parametrize(
    ("driver", "sections", "status", "word"),
    [
        (False, {}, "ok", "the CPU is used"),
        (False, {"cluster": {"use_gpu": True}}, "failed", "cluster.use_gpu"),
        (False, {"cluster": {"use_gpu": True, "address": "ray://head:10001"}}, "ok", "the CPU is used"),
        (True, {}, "warning", "a driver is here"),
        (True, {"cluster": {"use_gpu": True}}, "failed", "a driver is here"),
    ],
)
def test_a_gpu_is_missed_only_where_it_is_there_or_asked_for(config, monkeypatch, driver, sections, status, word):
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.setattr(doctor.Path, "exists", lambda _: False)
    found = row(doctor._torch(config(**sections)), "GPU")
    assert (found.status, word in found.result) == (status, True)


def test_workers_that_the_cluster_cannot_hold_fail(local_ray, config):
    rows = doctor._ray(config(cluster={"use_gpu": True}))
    assert row(rows, "Ray").status == "ok" and row(rows, "workers").status == "failed"
    assert "cluster.use_gpu" in row(rows, "workers").result
    assert row(doctor._ray(config()), "workers").status == "ok"
    assert local_ray.is_initialized(), "a Ray that was there goes on"


HERE = {"align-ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}


def test_versions_are_those_of_this_environment_on_every_node(local_ray, config):
    from importlib.metadata import version

    from align_ray import __version__

    found = row(doctor._ray(config()), "versions")
    names = ", ".join(f"{n} {version(n).partition('+')[0]}" for n in ("ray", "torch", "transformers"))
    assert (found.status, found.result) == ("ok", f"as here on every node: align-ray {__version__}, {names}")


def test_builds_of_one_version_are_the_same():
    assert doctor.compared(HERE, [HERE, HERE | {"torch": "2.13.0+cu128"}]).status == "ok"


@pytest.mark.parametrize(
    ("nodes", "status", "says"),
    [
        ([HERE | {"torch": "2.12.1+cu128"}], "warning", "torch is 2.13.0 here, but 2.12.1 on the cluster"),
        (
            [HERE, HERE | {"ray": "2.59.0", "transformers": "5.1"}, HERE | {"transformers": "5.2"}],
            "failed",
            "ray is 2.60.0 here, but 2.59.0 on 1 of 3 nodes; transformers is 5.23.0 here, but 5.1 and 5.2 on 2 of 3 nodes",
        ),
        (
            [{n: v for n, v in HERE.items() if n != "align-ray"}],
            "failed",
            "align-ray is 0.1.0 here, but not installed on the cluster",
        ),
    ],
)
def test_versions_that_differ_are_one_sentence(nodes, status, says):
    found = doctor.compared(HERE, nodes)
    assert (found.status, found.result) == (status, says) and "the same versions" in found.remedy


def test_a_cluster_that_ray_refuses_for_its_version_is_told_by_both(config, monkeypatch):
    from ray._private.utils import check_version_info

    from align_ray.runtime import _one_sentence

    def refuse(*_):
        with _one_sentence("RAY_ADDRESS"):
            check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, PLANTED)

    monkeypatch.setattr("align_ray.runtime.connect", refuse)
    (found,) = doctor._ray(config())
    assert found.status == "failed" and "but 2.1.0 on the cluster; Python is" in found.result
    assert PLANTED not in str(found)


def test_a_probe_whose_weights_are_broken_fails(config, tmp_path):
    from align_ray.fisher.probe import EMBEDDED

    folder = shutil.copytree(EMBEDDED, tmp_path / "probe")
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (found,) = doctor._probe(config(probe={"model": str(folder)}))
    assert found.status == "failed" and "not finite" in found.result


def test_one_training_step_of_the_model_is_tried_where_it_is_asked_for(config, tmp_path, monkeypatch):
    """With its settings: here adapters over a bfloat16 base, in two parts."""
    spared = {"lora_rank": 2, "dtype": "bfloat16", "micro_batch_size": 4, "checkpoint_layers": True}
    (found,) = doctor._training_step(config(finetune={"tokens": 1024, **spared}))
    assert found.status == "ok" and found.result.startswith("8 x 32 tokens on cpu in ") and "; loss " in found.result
    (found,) = doctor._training_step(config(finetune={"tokens": 1024, "shard": True, "workers": 4}))
    assert found.status == "ok" and found.result.startswith("not tried: 4 workers share the model, 0.")
    broken = tmp_path / "broken"
    shutil.copytree(config().probe.model, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({k: v * float("nan") for k, v in tensors.items()}, broken / "model.safetensors", {"format": "pt"})
    (found,) = doctor._training_step(config(finetune={"tokens": 1024, "model": str(broken)}))
    assert found.status == "failed" and "its loss is not finite" in found.result
    monkeypatch.setattr("align_ray.training.memory.memory_here", lambda gpu: 1e6)
    with pytest.raises(CapacityError, match="GB of a worker"):
        doctor._training_step(config())


def test_little_room_is_a_warning(config, monkeypatch):
    assert doctor._output(config())[0].status == "ok"
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    (found,) = doctor._output(config())
    assert found.status == "warning" and "free" in found.result
    assert not Path(config().output).exists(), "looking makes no folder"


def test_the_hub_is_needed_by_few(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://user:{PLANTED}@127.0.0.1:9")
    (found,) = doctor._hub(None)
    assert found.status == "warning" and PLANTED not in str(found)


def test_without_a_study_there_is_no_row_about_one(monkeypatch):
    looked = []
    monkeypatch.setattr(doctor, "_apart", lambda name, _: looked.append(name) or [Check(name, "ok", "")])
    assert [r.check for r in diagnose()][-6:] == ["output", "torch", "Ray", "MLflow", "hub", "probe"]
    assert "configuration" not in looked


def corpus_rows(tmp_path, **fields):
    chat = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}]
    records = [{"messages": chat, "text": "What is two and two? It is four."}] * 4
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = Config.model_validate(
        {
            "output": str(tmp_path / "out"),
            "targets": [{"name": "t", "source": str(tmp_path / "a.jsonl"), **fields}],
            "candidates": [{"name": n, "source": f"installed:{n}"} for n in ("licences", "javascript")],
        }
    )
    return row(doctor._configuration(config), "corpus t")


def test_what_is_read_of_a_corpus_is_shown(tmp_path):
    plain = corpus_rows(tmp_path)
    assert plain.status == "warning" and "column 'text', but 'messages' holds conversations" in plain.result
    assert "'chat', or 'prompt' and 'completion'" in plain.remedy and plain.result.count("It is four.") == 2
    chat = corpus_rows(tmp_path, chat="messages")
    assert chat.status == "ok" and "conversations in 'messages'" in chat.result
    assert chat.result.count("\u00abIt is four.\u00bb") == 2


def test_no_text_is_shown_that_may_not_leave(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a secret text of some words"}) + "\n")
    corpora = [{"name": n, "source": str(tmp_path / "a.jsonl")} for n in "t"]
    others = [{"name": n, "source": f"installed:{n}"} for n in ("licences", "javascript")]
    data = {"output": str(tmp_path / "out"), "targets": corpora, "candidates": others, "text_in_results": False}
    rows = doctor._configuration(Config.model_validate(data))
    assert row(rows, "corpus t").result.startswith("column 'text'") and "secret" not in repr(rows)


@pytest.mark.parametrize(("load", "nice", "status"), [(5.0, "15", "warning"), (5.0, "0", "ok"), (0.5, "15", "ok")])
def test_other_work_beside_which_rays_workers_starve_is_a_warning(monkeypatch, load, nice, status):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setenv("RAY_worker_niceness", nice)
    found = doctor._priority()
    assert found.status == status and f"run at nice {nice} here; load {load} on 2 CPUs" in found.result
    assert ("RAY_worker_niceness=0" in found.remedy) is (status == "warning")

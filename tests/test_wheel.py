"""The wheel holds all of the package, and a study runs from it where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The sum of two even numbers is even, and that of two odd ones is even too; this is document {} of corpus {}."

pytestmark = pytest.mark.slow


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools puts whatever lies in `build/` into a wheel; nothing is downloaded."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "align_ray", source / "align_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = [f for f in (ROOT / "align_ray").rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
    ours = {f.relative_to(ROOT).as_posix() for f in files}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == ours
    reporting = {f"align_ray/reporting/report.{end}" for end in ("html.j2", "css", "js")}
    assert {"align_ray/demo.yaml", "align_ray/checks/published.json", "align_ray/py.typed", *reporting} <= held
    assert "align_ray/fisher/embedded_probe/model.safetensors" in held


def test_a_study_runs_from_the_wheel(wheel, tmp_path):
    installed = tmp_path / "installed"
    pip("install", "--no-deps", "--no-index", "--target", installed, wheel)
    for name in ("target", "a", "b"):
        lines = (json.dumps({"text": TEXT.format(i, name)}) for i in range(60))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    study = {
        "output": "out",
        "targets": [{"name": "target", "source": "target.jsonl"}],
        "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
        "sampling": {"sequence_length": 16, "batch_size": 2, "batches": 2},
        "search": {"token_budget": 1000},
        "finetune": {"tokens": 256, "eval_tokens": 256},
        "embedding": {"dtype": "float32", "draws": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    # before all else on the path, also for Ray's workers; dependencies come from this environment
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    found = run(sys.executable, "-P", "-c", "import align_ray; print(align_ray.__file__)")
    assert Path(found.strip()).is_relative_to(installed)
    align_ray = installed / "bin" / "align-ray"
    run(align_ray, "embed", "study.yaml")
    run(align_ray, "align", "study.yaml")
    ranking = json.loads((tmp_path / "out/alignment.json").read_text())["ranking"]["target"]
    assert len(ranking) == 2

"""The wheel holds all of the package, and a study runs from it where there is no checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = [f for f in (ROOT / "align_ray").rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
    ours = {f.relative_to(ROOT).as_posix() for f in files}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == ours
    reporting = {f"align_ray/reporting/report.{end}" for end in ("html.j2", "css", "js")}
    assert {"align_ray/demo.yaml", "align_ray/checks/published.json", "align_ray/py.typed", *reporting} <= held
    assert "align_ray/fisher/embedded_probe/model.safetensors" in held


def test_a_study_runs_from_the_wheel(whole_study, from_wheel):
    """What `whole_study` has stored, test_study.py and test_security.py look at."""
    folder, environment = from_wheel
    where = [sys.executable, "-P", "-c", "import align_ray; print(align_ray.__file__)"]
    found = subprocess.run(where, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(folder)
    assert (whole_study[0] / "out" / "report.html").exists()

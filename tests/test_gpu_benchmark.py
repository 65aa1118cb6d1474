"""What is measured on a GPU, rehearsed on the CPU with tiny sizes, where Ray, MLflow, pydantic and typer are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WITHOUT = """
import importlib.machinery, runpy, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

BLOCKED = {"ray", "pydantic", "pydantic_core", "mlflow", "typer", *sys.argv.pop(1).split(",")}
sys.meta_path[:] = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.path.insert(0, "benchmarks")
exec(sys.argv.pop(1))
sys.argv[0] = "benchmarks/gpu.py"
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def rehearsal(out, blocked, before, *more):
    """Run it without the packages named, after these lines of Python."""
    line = [sys.executable, "-c", WITHOUT, blocked, before, str(out), "--tiny", *more]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.mark.slow
def test_every_part_is_measured_without_ray_and_peft_and_its_tables_are_written(tmp_path):
    done, found, table = rehearsal(tmp_path, "peft,accelerate", "")
    assert done.returncode == 0, done.stderr + table
    parts = found["parts"]
    assert list(parts) == ["exact", "fisher", "memory", "noise", "training", "tests"]
    assert all(part["rows"] and part["seconds"] > 0 for part in parts.values())
    assert parts["exact"]["rows"][0]["largest_error"] < 1e-4
    assert parts["memory"]["rows"][0]["at_once"] <= 2
    assert all(0 < row["floor"] < 1 for row in parts["noise"]["rows"])
    ways = [row["way"] for row in parts["training"]["rows"]]
    assert ways[0] == "plain" and "LoRA 16, bfloat16 base (peft is not there)" in ways
    rates = [row["tokens_per_s"] for name in ("fisher", "training") for row in parts[name]["rows"]]
    assert len(rates) == 14 and all(rate > 0 for rate in rates)
    assert parts["tests"]["rows"][0]["waiting_for_a_gpu"] >= 2
    assert {row["bound_by"] for row in found["expected"]} <= {"products", "memory"} and len(found["expected"]) == 5
    assert all(f"## {name} " in table for name in parts) and "| way |" in table.replace("| shape ", "")


@pytest.mark.full
def test_a_part_that_fails_or_comes_too_late_is_told_and_the_next_is_measured(tmp_path):
    lost = "import pathlib, align_ray.fisher.probe as p; p.EMBEDDED = pathlib.Path('nowhere')"
    done, found, table = rehearsal(tmp_path, "", lost, "--only", "noise", "exact", "training", "--seconds", "100")
    assert done.returncode == 1 and "failed" not in found["parts"]["exact"]
    assert "failed: ProbeError" in found["parts"]["noise"]["state"]
    assert found["parts"]["training"]["state"] == "left out: the time is up" and "left out" in table


@pytest.mark.slow
def test_rows_that_were_measured_before_a_part_failed_are_kept_and_one_that_does_not_fit_is_told(tmp_path):
    lost = """
import torch, align_ray.training.step as step
real, calls = step.whole_step, []
def fails(*given):
    calls.append(1)
    if len(calls) == 4:
        raise RuntimeError("lost")
    def full():
        raise torch.OutOfMemoryError("full")
    return full if len(calls) == 2 else real(*given)
step.whole_step = fails
"""
    done, found, table = rehearsal(tmp_path, "", lost, "--only", "training", "exact")
    part = found["parts"]["training"]
    assert done.returncode == 1 and part["state"] == "failed: RuntimeError: lost" and part["state"] in table
    assert [row["way"] for row in part["rows"]] == ["plain", "bfloat16, float32 master", "checkpointed"]
    assert [row.get("left_out") for row in part["rows"]] == [None, "out of memory", None]
    assert len(found["parts"]["exact"]["rows"]) == 2

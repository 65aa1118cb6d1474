"""The benchmark scripts run and print their tables; what they measure is not tested."""

import ast
import importlib
import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

RUNS = {
    "fisher.py": (["--sequences", "1", "--rounds", "1", "--only", "head only, float32"], "| head only, float32 |"),
    "noise.py": (["--rows", "8", "--only", "exact", "--probe", "TINY"], "| exact, bfloat16, R=2 | trunk |"),
    "correction.py": (["--corpora", "cpp-headers", "licences", "--draws", "4", "--probe", "TINY"], "| 128 |"),
    "sequential.py": (["--studies", "2"], "| all equal |"),
    "interval_coverage.py": (
        ["--repetitions", "4", "--pieces", "160", "--corpora", "cpp-headers", "licences", "--probe", "TINY"],
        "| simulation | 128 |",
    ),
    "word_coverage.py": (["--repetitions", "2", "--pieces", "96"], "| 8 | 32 |"),
    "mixtures.py": (["--rows", "500", "--corpora", "4", "--repetitions", "1"], "| 4 | 500 |"),
    "scale.py": (
        ["--corpora", "6", "--entries", "60", "--most-units", "4", "--megabytes", "0.1"],
        "| 6 | 1 |",
    ),
    "optimum.py": (["--corpora", "60", "--entries", "100"], "| scaled cosine, worst of 10, with a prior | 60 |"),
    "distances.py": (["--corpora", "2", "--batches", "20", "--entries", "3000"], "blocked is"),
}


LONG = ("fisher.py", "correction.py", "interval_coverage.py", "word_coverage.py")
"""Those that take ten seconds and more."""


@pytest.mark.slow
@pytest.mark.parametrize("script", [pytest.param(s, marks=pytest.mark.full) if s in LONG else s for s in RUNS])
def test_a_benchmark_prints_its_table(script, tiny_probe, monkeypatch, capsys):
    arguments, expected = RUNS[script]
    line = [str(FOLDER / script), *(tiny_probe if a == "TINY" else a for a in arguments)]
    if script == "fisher.py":  # it starts processes of itself
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
        return
    monkeypatch.setattr(sys, "argv", line)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code
    finally:
        torch.set_num_threads(threads)
    assert expected in capsys.readouterr().out


def test_the_extrapolation_is_held_against_recorded_losses(tmp_path, monkeypatch, capsys):
    """Of curves that go on in log tokens as they began, but for noise, nearly all intervals hold."""
    rng, steps = np.random.default_rng(0), (2, 6, 16, 40, 100)
    rows = []
    for name, slope in zip("abcd", (-0.05, -0.1, -0.15, -0.2), strict=True):
        for seed in (0, 1):
            what = {"candidate": name, "seed": seed, "target": "t"}
            rows.append({**what, "steps": 0, "half": "report", "losses": [3.0] * 8})
            rows += [
                {**what, "steps": s, "half": "validation", "losses": 3 + slope * np.log1p(s) + rng.normal(0, 0.05, 8)}
                for s in steps
            ]
    pd.DataFrame(rows).to_parquet(tmp_path / "losses.parquet")
    monkeypatch.setattr(sys, "argv", ["extrapolation.py", str(tmp_path / "losses.parquet")])
    runpy.run_path(str(FOLDER / "extrapolation.py"), run_name="__main__")
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| losses")]
    assert [row[2].strip() for row in table] == ["16%", "40%"]
    assert all(float(row[3].strip().rstrip("%")) >= 75 and float(row[9]) == 1.0 for row in table)


def ours(tree: ast.AST) -> dict[str, Any]:
    """What a script imports of align_ray, by the name it has there, where it has no other meaning."""
    found: dict[str, Any] = {}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    others = [node for node in imports if (node.module or "").split(".")[0] != "align_ray"]
    for node in imports:
        if node not in others:
            module = importlib.import_module(node.module)
            for name in node.names:
                part = getattr(module, name.name, None) or importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = part
    return {k: v for k, v in found.items() if all(k not in (n.asname or n.name for n in o.names) for o in others)}


@pytest.mark.parametrize("script", sorted(p.name for p in FOLDER.glob("*.py")))
def test_a_benchmark_calls_our_functions_as_they_are(script):
    """Most of them are too long to be run here: every call has the arguments that the function takes."""
    tree = ast.parse((FOLDER / script).read_text())
    known, bound = ours(tree), 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
            continue
        called, _, attribute = ast.unparse(node.func).partition(".")
        found = known.get(called)
        function = getattr(found, attribute, None) if attribute and inspect.ismodule(found) else found
        if not callable(function) or (attribute and function is found) or any(k.arg is None for k in node.keywords):
            continue
        try:
            signature = inspect.signature(function)
        except ValueError:  # of a class of C there is none
            continue
        signature.bind(*node.args, **{k.arg: k for k in node.keywords})
        bound += 1
    assert bound or not known

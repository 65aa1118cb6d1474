"""Who imports whom: fisher and alignment work without Ray, pydantic, MLflow and typer; all imports run one way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALONE = '''
import importlib.machinery, importlib.util, pkgutil, sys

BLOCKED = {"ray", "pydantic", "pydantic_core", "mlflow", "typer"}

class Without(importlib.machinery.PathFinder):
    """Finds what is installed but the blocked packages: they are as if they were not there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
for name in BLOCKED:
    assert importlib.util.find_spec(name) is None

import align_ray.errors, align_ray.fisher, align_ray.alignment

for package in (align_ray.fisher, align_ray.alignment):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

import numpy as np, torch
from transformers import GPT2Config, GPT2LMHeadModel
from align_ray.alignment.coefficients import align_corpora
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.settings import Estimator, ProbeName
from align_ray.fisher.probe import locate_probe
from align_ray.fisher.trunk import fisher_embeddings

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
ids = np.random.default_rng(0).integers(0, 29, (3, 4, 8))
assert torch.isfinite(fisher_embeddings(model, ids[0], 2, 0).trunk).all()
units = {name: [embed_batch(model, b, Estimator(), 0, 0)[0] for b in ids + i] for i, name in enumerate("tc")}
assert align_corpora(units, ["t"])["ranking"]["t"]
print(sorted({m.partition(".")[0] for m in sys.modules} & BLOCKED), locate_probe(ProbeName()).context)
'''


def test_fisher_and_alignment_work_where_ray_pydantic_mlflow_and_typer_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] ")


LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}  # before any checkout that is installed
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_run_one_way():
    """The order is in pyproject.toml, `[tool.importlinter]`."""
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("embedding/pool.py", "def later():\n    from align_ray.pipeline import run\n", "align_ray.pipeline"),
        ("handover/rule.py", "import align_ray.mixture.solver\n", "align_ray.mixture.solver"),
        ("alignment/words.py", "def later():\n    import ray\n", "-> ray"),
        ("new.py", "", "not listed as layers"),
    ],
)
def test_an_import_the_other_way_is_found_wherever_it_stands(tmp_path, module, line, says):
    for name in ("align_ray", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "embedded_probe"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "align_ray" / module).open("a") as file:
        file.write(line)
    done = lint(tmp_path)
    assert done.returncode == 1 and says in done.stdout, done.stdout + done.stderr

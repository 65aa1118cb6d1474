"""The benchmark scripts run and print their tables; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

RUNS = {
    "fisher.py": (["--sequences", "1", "--rounds", "1", "--only", "head only, float32"], "| head only, float32 |"),
    "noise.py": (["--rows", "8", "--only", "exact"], "| exact, bfloat16, R=2 | trunk |"),
    "correction.py": (["--corpora", "docstrings", "licences", "--draws", "4"], "| 128 |"),
    "sequential.py": (["--studies", "2"], "| all equal |"),
    "interval_coverage.py": (["--repetitions", "4", "--pieces", "160", "--corpora", "docstrings", "licences"], "| simulation | 128 |"),
    "mixtures.py": (["--rows", "500", "--corpora", "4", "--repetitions", "1"], "| 4 | 500 |"),
    "distances.py": (["--corpora", "2", "--batches", "20", "--entries", "3000"], "blocked is"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_a_benchmark_prints_its_table(script):
    arguments, expected = RUNS[script]
    done = subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and expected in done.stdout, done.stderr

"""The quickstart notebook runs as it stands, with the interpreter that runs the tests."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs_and_names_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert 10 <= len(notebook.cells) <= 20


SMALLER = {'"batch_size": 8, "batches": 8': '"batch_size": 4, "batches": 4', '"tokens": 8_192': '"tokens": 2_048'}


@pytest.mark.slow
@pytest.mark.parametrize(
    "smaller", [SMALLER, pytest.param({}, marks=pytest.mark.full)], ids=["smaller", "as it stands"]
)
def test_the_notebook_runs_and_shows_a_ranking_a_mixture_and_the_report(local_ray, tmp_path, monkeypatch, smaller):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # the kernel starts in a folder of its own
    monkeypatch.setenv("RAY_ADDRESS", local_ray.get_runtime_context().gcs_address)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    configured = next(cell for cell in notebook.cells if "sequence_length" in cell.source)
    for text, small in smaller.items():
        assert text in configured.source
        configured.source = configured.source.replace(text, small)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    out = tmp_path / "runs" / "quickstart"
    weights = json.loads((out / "recipe.json").read_text())["weights"]
    assert sum(weights.values()) == pytest.approx(1) and max(weights, key=weights.get) == "stdlib"
    assert (out / "report.html").stat().st_size > 10_000
    data = [
        o.data
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if o.output_type in ("execute_result", "display_data")
    ]
    tables = [d["text/html"] for d in data if "<table" in d.get("text/html", "")]
    assert len(tables) == 5
    ranking = tables[1]
    assert ranking.index("stdlib") < ranking.index("reference") and "95%" in ranking
    figures = [d["application/vnd.plotly.v1+json"] for d in data if "application/vnd.plotly.v1+json" in d]
    assert [set(f["data"][0]["y"]) for f in figures] == [set(weights), {*weights, "uniform", "mixture"}]
    printed = "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    assert str(out / "report.html") in printed and "Traceback" not in printed

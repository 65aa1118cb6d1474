"""The quickstart notebook runs: its cells in this process, and with `--full` as it stands, by a kernel."""

import json
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbclient import NotebookClient
from plotly.io import renderers

from tests.conftest import actors_here, trainings_here

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs_and_names_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert 10 <= len(notebook.cells) <= 20


SMALLER = {
    '"batch_size": 8, "batches": 8': '"batch_size": 4, "batches": 4',
    '"tokens": 8_192': '"tokens": 2_048',
}


def run_here(notebook, folder: Path) -> None:
    """Run the cells by IPython in this process, outputs into the notebook as a kernel gives them."""
    with actors_here(), trainings_here(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(renderers, "default", "plotly_mimetype")
        shell = InteractiveShell.instance()
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            with shell.display_trap, capture_output() as captured:
                done = shell.run_cell(cell.source)
            done.raise_error()
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=captured.stdout)]
            cell.outputs += [nbformat.v4.new_output("display_data", data=rich.data) for rich in captured.outputs]
        InteractiveShell.clear_instance()


def run_by_a_kernel(notebook, folder: Path) -> None:
    there = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=there).execute()


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize(
    ("run", "smaller"),
    [(run_here, SMALLER), (run_by_a_kernel, {})],
    ids=["smaller, in this process", "as it stands"],
)
def test_the_notebook_runs_and_shows_a_ranking_a_mixture_and_the_report(
    local_ray, no_pools, no_trainings, tmp_path, monkeypatch, run, smaller
):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # the kernel starts in a folder of its own
    monkeypatch.setenv("RAY_ADDRESS", local_ray.get_runtime_context().gcs_address)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    configured = next(cell for cell in notebook.cells if "sequence_length" in cell.source)
    for text, small in smaller.items():
        assert text in configured.source
        configured.source = configured.source.replace(text, small)
    run(notebook, tmp_path)

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

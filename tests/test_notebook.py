"""The notebooks of examples/ run: smaller in this process, and with `--full` as they stand, by a kernel."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbclient import NotebookClient
from plotly.io import renderers

from tests.conftest import SHARED, actors_here, trainings_here

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
GALLERY = {
    name: REPOSITORY / f"examples/{name}.ipynb"
    for name in ("autoformalization", "instruction-data", "continued-pretraining")
}


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


@pytest.mark.parametrize("name", GALLERY)
def test_a_worked_case_is_stored_with_its_output_and_names_no_machine(name):
    notebook = nbformat.read(GALLERY[name], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or "config =" in cell.source for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # in order, of one run
    kinds = {o.output_type for cell in code for o in cell.outputs}
    assert "error" not in kinds
    text = GALLERY[name].read_text(encoding="utf-8")
    assert not re.search(r"/(?:work|tmp|home|root|usr)/|Traceback|file://", text) and len(text) < 400_000
    said = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "examples/fetch_corpora.py" in said and re.search(r"AMD EPYC, no GPU, 2\d{3}-\d\d-\d\d", said)


def smaller(notebook) -> None:
    """Shorter rows, fewer batches, shorter trainings: the same cells in seconds."""
    configured = next(cell for cell in notebook.cells if "sequence_length" in cell.source)
    sizes = {
        r'"sampling": \{.*?\}': '"sampling": {"sequence_length": 64, "batch_size": 2, "batches": 3}',
        r'("unigram": \{.*?\},\s*)?"search":': '"unigram": {"tokens": 128}, "search":',
        r'"tokens": [\d_]+, ("batch_size": \d+, )?"eval_tokens": [\d_]+, "learning_rate": \[.*?\], "seeds": 3': (
            '"tokens": 1_024, "batch_size": 2, "eval_tokens": 1_024, "learning_rate": 1e-3, "seeds": 3'
        ),
    }
    for pattern, small in sizes.items():
        configured.source, found = re.subn(pattern, small, configured.source)
        assert found == 1, pattern


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("instruction-data", run_here),
        *(pytest.param(name, run_here, marks=pytest.mark.full) for name in GALLERY if name != "instruction-data"),
        *(pytest.param(name, run_by_a_kernel, marks=pytest.mark.full) for name in GALLERY),
    ],
)
def test_a_worked_case_runs(local_ray, tmp_path, monkeypatch, name, run):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_ADDRESS", local_ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("MPLBACKEND", "agg")
    (tmp_path / "data").symlink_to(SHARED)  # what examples/fetch_corpora.py writes has the same names and columns
    notebook = nbformat.read(GALLERY[name], as_version=4)
    smaller(notebook)
    run(notebook, tmp_path)

    (out,) = (tmp_path / "runs").iterdir()
    recipe = json.loads((out / "recipe.json").read_text())
    assert sum(recipe["weights"].values()) == pytest.approx(1) and len(recipe["weights"]) > 4
    assert (out / "report.html").stat().st_size > 10_000
    (last,) = [o for o in notebook.cells[-1].outputs if o.output_type in ("execute_result", "display_data")]
    assert last.data["text/plain"].startswith("{") and all(n in last.data["text/plain"] for n in recipe["weights"])
    assert "Traceback" not in "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))

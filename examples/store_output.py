"""Execute worked cases anew and store their output in them, without what went to standard error.

python examples/fetch_corpora.py examples/data
python examples/store_output.py autoformalization instruction-data continued-pretraining
"""

import tempfile
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def main(
    names: Annotated[list[str], typer.Argument(help="Notebooks of this folder, without suffix.")],
    data: Annotated[Path, typer.Option(help="The folder that examples/fetch_corpora.py made.")] = HERE / "data",
) -> None:
    """Execute notebooks in a temporary folder and store their output."""
    for name in names:
        file = HERE / f"{name}.ipynb"
        notebook = nbformat.read(file, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "data").symlink_to(data.resolve())
            NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, file)
        print(f"{file.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    typer.run(main)

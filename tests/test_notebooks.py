"""The notebooks in examples/. `python tests/test_notebooks.py` executes quickstart.ipynb and stores its outputs in it."""

import json
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
QUICKSTART = ROOT / "examples" / "quickstart.ipynb"
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|Users|opt)/|site-packages")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[str]:
    """What a cell shows: names of streams, mime types."""
    found = [output["name"] if output.output_type == "stream" else [*output["data"]] for output in cell.outputs]
    return sorted({name for one in found for name in ([one] if isinstance(one, str) else one)})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_small_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    assert notebook.cells[0].cell_type == "markdown"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [{kind: text for kind, text in output.get("data", {}).items() if kind != "image/png"} for output in outputs]
    assert not MACHINE.search(json.dumps([shown, [output.get("text") for output in outputs]]))
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no errors
    assert not any(cell.metadata for cell in notebook.cells)


def test_the_quickstart_has_outputs_in_the_order_of_its_cells():
    cells = code_cells(nbformat.read(QUICKSTART, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells[1:])  # the first one imports


def execute(folder: Path) -> tuple[nbformat.NotebookNode, NotebookClient]:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, coalesce_streams=True, record_timing=False, resources={"metadata": {"path": folder}}
    )
    return notebook, client


@pytest.mark.slow
def test_the_quickstart_runs_and_its_cells_run_again(tmp_path):
    stored = code_cells(nbformat.read(QUICKSTART, as_version=4))
    notebook, client = execute(tmp_path)
    with client.setup_kernel():
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
        for before, now in zip(stored, code_cells(notebook), strict=True):
            assert kinds(before) == kinds(now), now.source
        (recipe,) = (before for before in stored if "recipe.dump" in before.source)
        (now,) = (cell for cell in code_cells(notebook) if "recipe.dump" in cell.source)
        assert recipe.outputs[-1]["text"].splitlines()[-20:] == now.outputs[-1]["text"].splitlines()[-20:]
        results = json.loads((tmp_path / "runs" / "notebook" / "results.json").read_text())
        assert results["before"]["accuracy"] <= 0.3
        assert results["after"]["accuracy"] >= 0.9
        again = [cell for cell in code_cells(notebook) if "prepare(run" in cell.source or "= train(" in cell.source]
        for cell in again:
            client.execute_cell(cell, notebook.cells.index(cell))
        (trained,) = again[-1].outputs
        assert "\nruns/notebook: already finished, 12 steps" in trained["text"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        notebook, client = execute(Path(folder))
        client.execute()
    for cell in notebook.cells:
        cell.metadata.clear()
    nbformat.write(notebook, QUICKSTART)
    sys.exit()

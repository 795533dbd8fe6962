"""The notebook runs from top to bottom, and is committed without what it printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_student.ipynb"
SHORT = {
    **{f"task.max_{split}_examples": 8 for split in ("validation", "test")},
    **{f"{part}trainer.max_steps": 2 for part in ("", "teacher.train.", "student.predistill.")},
    "task.max_train_examples": 64,
    "trainer.evaluate_every": 1,
}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stripped(notebook):
    nbformat.validate(notebook)
    for number, cell in enumerate(notebook.cells):
        assert cell.id == f"cell-{number}"  # not a random one, so that a change is a small one
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            compile(cell.source, str(NOTEBOOK), "exec")
    assert nbformat.writes(notebook) + "\n" == NOTEBOOK.read_text(encoding="utf-8")


def test_it_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (at,) = (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(at + 1, new_code_cell(f"overrides = {SHORT}"))
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()  # an error raises
    assert (tmp_path / "first_student" / "results.json").is_file()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed.count("(right: ") == 8
    assert "return" in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)

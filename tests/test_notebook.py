"""The notebook of the guide runs from its first cell to its last, and its numbers make sense."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients
nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-optional.txt")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nilearn")

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from_zero_to_picture.ipynb"


def test_from_zero_to_picture():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": NOTEBOOK.parent}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
    told = ast.literal_eval(outputs[-1]["data"]["text/plain"])
    assert told["dice"]["wt"] > 0.6
    assert 0 < told["expected_dice"]["wt"] <= 1

"""The notebooks run from the committed files alone, and what they are committed with is small."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from project_runs import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_MAX_BYTES = 300_000
_CELL_SECONDS = 1800  # a bound for one that hangs


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs(notebook: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(project / "src"))
    copy = project / "notebooks" / notebook.name
    copy.parent.mkdir()
    shutil.copy(notebook, copy)
    opened = nbformat.read(copy, as_version=4)
    resources = {"metadata": {"path": str(copy.parent)}}
    NotebookClient(opened, timeout=_CELL_SECONDS, kernel_name="python3", resources=resources).execute()
    assert {path.name for path in project.iterdir()} == {"conf", "data", "docs", "notebooks", "pyproject.toml", "src"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_small_and_shows_its_outputs(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert notebook.stat().st_size < _MAX_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]

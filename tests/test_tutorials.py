"""The tutorials run as they are, from start to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent.parent / "tutorials"
MAX_NOTEBOOK_BYTES = 1_000_000  # outputs are kept, and kept small


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_notebook_runs(path: Path, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_keeps_its_outputs_and_no_path_of_a_machine(path: Path):
    assert path.stat().st_size < MAX_NOTEBOOK_BYTES
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not any(root in text for text in texts for root in ("/home/", "/tmp/", "/root/", "C:\\"))
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


def test_each_notebook_has_a_script():
    names = [{path.stem for path in TUTORIALS.glob(pattern)} for pattern in ("*.ipynb", "*.py")]
    assert names[0] == names[1] != set()


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_script_runs(path: Path, tmp_path: Path):
    finished = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "phantom" in finished.stdout

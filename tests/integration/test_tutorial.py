"""The tutorial in ``docs/``: executed in small, and as it is stored."""

import re
from pathlib import Path

import nbformat
import pytest
from documented import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
RUN = "/home/me/runs/tutorial"


def read() -> NotebookNode:
    return nbformat.read(TUTORIAL, as_version=4)


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    [cell] = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def data(cell: NotebookNode, kind: str) -> list[str]:
    return [str(output.data[kind]) for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    # What it would install is this environment.
    notebook.cells.remove(tagged(notebook, "install"))
    tagged(notebook, "parameters").source = 'settings = ["experiment=smoke"]'
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    # The progress: bars that are updated in place, and the tables at the end.
    shown = tagged(notebook, "train")
    assert len(data(shown, "application/vnd.jupyter.widget-view+json")) == 1
    assert any("Privacy spent per example" in text for text in data(shown, "text/html"))
    assert not any("round 1/2" in text for text in data(shown, "text/plain"))
    # The report of the run.
    [report] = data(tagged(notebook, "report"), "text/html")
    assert "Method fedsvd, model embedded:tiny" in report
    assert report.count("<details open>") == 2
    assert report.count("data:image/svg+xml;base64,") >= 3
    assert "The unit of protection is one training example of one client." in report
    [statement] = data(tagged(notebook, "statement"), "text/markdown")
    assert statement.startswith("## Privacy statement")
    [image] = data(tagged(notebook, "plot"), "image/png")
    assert len(image) > 10_000
    # The export predicts what the run predicts.
    predicted, loaded = (data(tagged(notebook, tag), "text/plain")[-1] for tag in ("predict", "load"))
    assert predicted == loaded
    assert (tmp_path / "exported-model" / "model.safetensors").is_file()


def test_it_is_stored_with_its_results() -> None:
    notebook = read()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert all(cell.execution_count and "error" not in str(cell.outputs) for cell in cells)
    assert "widgets" not in notebook.metadata
    assert "ε = 3.00 " in data(tagged(notebook, "statement"), "text/markdown")[0]
    assert {path for cell in cells for path in re.findall(r"PosixPath\('(.*?)'\)", str(cell.outputs))} <= {RUN}

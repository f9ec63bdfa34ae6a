"""The notebook of the documentation runs, shows what is stored in it, and names no machine.

``python -m tests.test_notebook`` executes it again, and stores what it shows.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch

import evalkit
from evalkit.report.comparison import compare_folders
from evalkit.results.comparisons import shown_table
from evalkit.storage.run_folder import read_run
from tests.support.documents import ROOT
from tests.support.written_trainings import write_scores, write_training

NOTEBOOK = ROOT / "docs" / "guides" / "examples" / "scores.ipynb"


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def executed(place: Path) -> Any:
    """The notebook, executed in a folder with the bundled checkpoints."""
    from nbclient import NotebookClient

    (place / "checkpoints").symlink_to(ROOT / "checkpoints")
    notebook = read()
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(place)}},
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    return notebook


def shown(notebook: Any) -> list[str]:
    """What each cell shows, numbers left out: last digits are those of the machine."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            text = data.get("text/html", data.get("text/plain", ""))
            texts.append(re.sub(r"-?\d[\d.e+-]*|NaN|\s+", "#", text))
    return texts


def test_the_notebook_runs_and_shows_what_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pyarrow")
    stored, found = read(), executed(tmp_path)
    assert shown(found) == shown(stored)
    assert len(shown(stored)) == 7
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code")


def test_the_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:tmp|home|root|work|usr|Users)/| at 0x", text)
    assert "stderr" not in text


def test_what_users_hold_shows_itself(tmp_path: Path) -> None:
    name = "<b>loss</b>"
    runs = []
    for optimizer, ratio in (("sgd", 1.5), ("ief", 0.5)):
        training = write_training(tmp_path / optimizer, optimizer)
        runs.append(write_scores(tmp_path / f"run-{optimizer}", training, {"ief": [ratio] * 3}))
    comparison = compare_folders(runs)
    shown = comparison._repr_html_()
    assert shown.count("<td>") == shown_table(comparison).size
    assert all(f"<p>{escape(note)}</p>" in shown for note in comparison.notes)
    run = replace(read_run(runs[0]), provenance={"task": name, "finished": None})
    assert escape(name) in run._repr_html_()
    assert name not in run._repr_html_()
    assert "<td" in run._repr_html_()
    model, inputs, targets = torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    lin = evalkit.linearize(model, inputs, targets)
    solved = evalkit.natural_gradient(lin)
    for found, value in ((lin, lin.gamma_floor), (solved, solved.gammas[-1])):
        assert f">{value:.4g}</td>" in found._repr_html_()


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        made = executed(Path(folder))
    for cell in made.cells:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", {}):  # addresses, times and versions beside it
                output["data"].pop("text/plain", None)
    nbformat.write(made, NOTEBOOK)

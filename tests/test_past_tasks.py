"""Past tasks on the command line: scored beside, described, and a part of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from evalkit.cli import main
from evalkit.report.page.solver import solver_table
from evalkit.results.summaries import summarize
from evalkit.storage.run_folder import read_run
from tests.support.cases import Draw
from tests.support.table import initialise

FILE = """import torch
from torch import nn
import evalkit
from tests.support.small_studies import tensors

def model():
    return nn.Linear(8, 3)

def wide():
    return nn.Linear(8, 4)

def before():
    return tensors(1)

task = evalkit.Task(model=model, data=tensors)
past = evalkit.Task(model=model, data=before)
large = evalkit.Task(model=wide, data=before)
"""


class Command:
    """A task, past tasks and their checkpoints in a folder.

    Attributes:
        folder: where they lie.
        file: of the tasks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "continual.py"
        self.file.write_text(FILE, encoding="utf-8")
        for name, steps in {"checkpoints": (1,), "past": (1, 2), "others": (1,)}.items():
            (folder / name).mkdir()
            for step in steps:
                layer = nn.Linear(8, 4 if name == "others" else 3)
                initialise(layer, Draw(step + len(name)))
                torch.save(layer.state_dict(), folder / name / f"step-{step}.pt")

    def __call__(
        self, methods: str, *past: tuple[str, str], batches: int = 2, labels: str = "sampled"
    ) -> int:
        """Score into ``run``, beside past tasks and the places of their checkpoints."""
        pairs = [f"--past={self.file}:{task}={self.folder / path}" for task, path in past]
        given = ["--task", f"{self.file}:task", "--methods", methods, *pairs]
        given += ["--batches", "2", "--batch-size", "8", "--past-batches", str(batches)]
        given += ["--past-labels", labels]
        return main(["score", f"{self.folder / 'checkpoints'}", *given, f"--out={self.run}"])

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_the_command_scores_beside_past_tasks(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of checkpoints stands for its last one; ``run.json`` says what the past was."""
    assert command("sgd,fopng,fopng:form=published", ("past", "past")) == 0, capsys.readouterr()
    found = read_run(command.run)
    (entry,) = found.provenance["past"]
    assert entry["checkpoint"] == "step-2"
    assert entry["batches"] == len(entry["data_sha256"]) == 2
    assert "continual.py" in entry["code"]
    residuals = found.scores.set_index("method")["relative_residual"].groupby("method").max()
    assert residuals["fopng"] < 1e-3 < 1e-2 < residuals["fopng:form=published"]
    assert pd.isna(residuals["sgd"])
    before = (command.run / "scores.csv").read_bytes()
    assert command("sgd,fopng,fopng:form=published", ("past", "past/step-2.pt")) == 0
    assert (command.run / "scores.csv").read_bytes() == before
    table = solver_table(summarize(found), found.scores)
    assert {row[3].text for row in table.rows} == {"projection"}


def test_labels_of_the_past_are_what_is_asked_for(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sgd,fopng", ("past", "past"), labels="exact") == 0, capsys.readouterr()
    (entry,) = read_run(command.run).provenance["past"]
    assert entry["labels"] == "exact"
    exact = (command.run / "scores.csv").read_bytes()
    assert command("sgd,fopng", ("past", "past"), labels="sampled") == 2
    shutil.rmtree(command.run)
    assert command("sgd,fopng", ("past", "past"), labels="sampled") == 0
    assert (command.run / "scores.csv").read_bytes() != exact
    shutil.rmtree(command.run)
    capsys.readouterr()
    assert command("sgd,fopng", ("past", "past"), labels="exakt") == 2
    assert "expected --past-labels to be one of sampled, exact" in capsys.readouterr().err
    assert not command.run.exists()


def test_a_run_goes_on_with_the_same_past_alone(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without one may be extended by methods that need one."""
    assert command("sgd") == 0
    assert "past" not in json.loads((command.run / "run.json").read_text())
    assert command("sgd,fopng", ("past", "past")) == 0
    assert len(json.loads((command.run / "run.json").read_text())["past"]) == 1
    capsys.readouterr()
    for past, batches, sentence in (
        ([("past", "past")], 3, "past task 1 (batches): 2 instead of 3"),
        ([("past", "past/step-1.pt")], 2, "past task 1 (checkpoint): step-2 instead of step-1"),
        ([("task", "past")], 2, "past task 1 (task)"),
        ([("past", "past"), ("past", "past")], 2, "number of past tasks: 1 instead of 2"),
    ):
        assert command("sgd,fopng", *past, batches=batches) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert command("sgd") == 0  # rows of other methods know no past


def test_the_gate_compares_runs_beside_the_same_past_alone(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A baseline without a past has no rows that depend on one."""
    kept = ("--baseline", str(command.folder / "baseline.csv"))
    check = ["check", str(command.run), *kept]
    assert command("sgd,ief") == 0
    assert main([*check, "--update-baseline"]) == 0
    assert "past" not in Path(kept[1]).read_text(encoding="utf-8")
    assert command("sgd,ief,fopng", ("past", "past")) == 0
    capsys.readouterr()
    main(check)
    assert "past" not in capsys.readouterr().out
    assert main([*check, "--update-baseline"]) == 0
    assert main(check) == 0
    shutil.rmtree(command.run)
    assert command("sgd,ief,fopng", ("past", "past/step-1.pt")) == 0
    capsys.readouterr()
    assert main(check) == 1
    printed = capsys.readouterr()
    assert "past tasks SHA-256" in " ".join((printed.out + printed.err).split())


def test_bad_input_is_said_in_a_sentence(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods, past, batches, sentence in (
        ("sgd,fopng", [], 2, "expected past tasks for method 'fopng', found none; give --past"),
        ("sgd", [("past", "past")], 2, "has past tasks as an input beside --past, found none"),
        ("fopng", [("past", "past")], 0, "past batches of at least 1, found 0"),
        ("fopng", [("past", "nowhere")], 2, "nowhere"),
        ("fopng", [("large", "others")], 2, "'weight' with shape (3, 8), found shape (4, 8)"),
        ("fopng", [("past", "others")], 2, "past task 'continual.py:past': expected"),
        ("fopng", [("", "past")], 2, "attribute"),
    ):
        assert command(methods, *past, batches=batches) == 2
        found = " ".join(capsys.readouterr().err.split())
        assert sentence in found
        assert "Traceback" not in found
        assert not command.run.exists()
    assert main(["score", str(command.folder), "--methods", "fopng", "--past", "past"]) == 2
    assert "TASK=CHECKPOINT, found 'past'" in " ".join(capsys.readouterr().err.split())

"""The command ``evalkit errors``: its tables, what it goes on with, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import evalkit
import evalkit.diagnosis.running
from evalkit.cli import main
from evalkit.diagnosis.matrix_errors import ALL, WHOLE, check_have_blocks
from evalkit.storage.rows import MatrixError

diagnosis = sys.modules["evalkit.diagnosis.matrix_errors"]
TABLES = ("errors.csv", "scales.csv")
ARGUMENTS = ["--batch-size", "12", "--batches", "1", "--methods", "kfac:labels=exact,diagonal"]


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    errors, scales = (pd.read_csv(folder / f"{name}.csv") for name in ("errors", "scales"))
    return errors, scales, json.loads((folder / "errors.json").read_text())


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two checkpoints of the bundled trajectory."""
    folder = tmp_path_factory.mktemp("few")
    bundled = Path(__file__).parent.parent / "checkpoints" / "digits-mlp"
    for step in ("000000", "000092"):
        [file] = bundled.glob(f"step-{step}.*")
        shutil.copy(file, folder)
    return folder


FEW = ["--task", "digits-mlp", "--batch-size", "4", "--batches", "1", "--methods", "diagonal"]


@pytest.fixture(scope="module")
def found_before(trajectory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of a few samples."""
    out = tmp_path_factory.mktemp("found") / "out"
    assert main(["errors", str(trajectory), *FEW, f"--out={out}"]) == 0
    return out


def test_the_command_writes_and_prints_both_tables(
    trajectory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["errors", str(trajectory), "--task", "digits-mlp", *ARGUMENTS]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "KFAC (exact)" in printed
    assert "Error 1 by layer at step-000092" in printed
    errors, scales, described = tables(out)
    assert set(errors["checkpoint"]) == {"step-000000", "step-000092"}
    assert list(dict.fromkeys(errors["block"])) == ["0", "2", "4", ALL, WHOLE]
    assert set(scales["method"]) == {"kfac:labels=exact", "diagonal", "sgd", "ief"}
    assert described["finished"]
    assert described["probes"] == 32
    # What is there is not found again, and what is lost is.
    before = (out / "errors.csv").read_bytes()
    described["done"].pop()
    described["rows"].pop()
    (out / "errors.json").write_text(json.dumps(described))
    assert main([*arguments, "--out", str(out)]) == 0
    assert (out / "errors.csv").read_bytes() == before
    assert main([*arguments, "--out", str(out), "--seed", "1"]) == 2
    assert "this very request" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "sgd,kfac"], "found 'sgd', which has none to compare; choose from block, "),
        (["--methods", "kfak"], "unknown method 'kfak'; did you mean"),
        (["--probes", "1"], "at least 2 probes, found 1; set --probes to 2 or more"),
        (["--probes", "many"], "expected a whole number, found 'many'"),
        (["--methods", "eva", "--damping", "0"], "damping above 0 for method 'eva'"),
        (["--methods", "kfac", "--scales", "kfak"], "unknown method 'kfak'"),
        (["--batch-size", "0"], "--batch-size"),
        (["--dtype", "float16"], "expected dtype float32 or float64"),
    ],
)
def test_bad_requests_are_one_sentence(
    arguments: list[str],
    sentence: str,
    trajectory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = ["--task", "digits-mlp", "--out", str(tmp_path / "out")]
    assert main(["errors", str(trajectory), *task, *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_methods_without_blocks_are_found_whatever_they_are_called() -> None:
    check_have_blocks(["kfac", "eva", "shampoo:exponent=0.5"])
    for name in ("ngd", "best-weights", "fgn"):
        with pytest.raises(evalkit.EvalkitError, match=f"found '{name}'"):
            check_have_blocks([name])


def test_an_interruption_keeps_what_is_done(
    trajectory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = sys.modules["evalkit.diagnosis.running"]
    found, count = running.matrix_errors, [0]

    def interrupted(*arguments: Any) -> list[MatrixError]:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return found(*arguments)

    monkeypatch.setattr(running, "matrix_errors", interrupted)
    out = tmp_path / "out"
    command = ["errors", str(trajectory), *FEW, f"--out={out}"]
    assert main(command) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    errors, _, described = tables(out)
    assert set(errors["checkpoint"]) == {"step-000000"}
    assert described["done"] == [["step-000000", 0]]
    assert main(command) == 0
    assert count[0] == 3
    assert set(tables(out)[0]["checkpoint"]) == {"step-000000", "step-000092"}


@pytest.mark.parametrize("name", ["errors.csv", "scales.csv"])
@pytest.mark.parametrize("twice", [False, True])
def test_rows_that_are_lost_or_there_twice_are_found_again(
    name: str, twice: bool, trajectory: Path, found_before: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(found_before, tmp_path / "out")
    command = ["errors", str(trajectory), *FEW, f"--out={out}"]
    first = {table: (out / table).read_text() for table in TABLES}
    lines = first[name].splitlines()
    # The first row, of the first checkpoint: what is found again must not move to the end.
    lines[1:2] = [lines[1]] * 2 if twice else []
    (out / name).write_text("\n".join(lines) + "\n")
    assert main(command) == 0
    for table, expected in first.items():
        assert (out / table).read_text() == expected
    # All of them lost, so that no cell is whole.
    (out / name).write_text(lines[0] + "\n")
    assert main(command) == 0
    for table, expected in first.items():
        assert (out / table).read_text() == expected


@pytest.mark.parametrize(
    "found", [None, {}, [1], [["step-000000"]], [["step-000000", [0]]], [[[0], 0]]]
)
@pytest.mark.parametrize("key", ["done", "rows"])
def test_an_account_of_cells_that_is_none_is_refused_in_a_sentence(
    key: str,
    found: Any,
    trajectory: Path,
    found_before: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(found_before, tmp_path / "out")
    command = ["errors", str(trajectory), *FEW, f"--out={out}"]
    described = json.loads((out / "errors.json").read_text())
    (out / "errors.json").write_text(json.dumps(described | {key: found}))
    assert main(command) == 2
    assert f"expected a list '{key}' of pairs" in capsys.readouterr().err


def test_tables_without_numbers_of_rows_are_taken_as_they_are(
    trajectory: Path, found_before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(found_before, tmp_path / "out")
    command = ["errors", str(trajectory), *FEW, f"--out={out}"]
    first = (out / "errors.csv").read_bytes()
    described = json.loads((out / "errors.json").read_text())
    del described["rows"]
    (out / "errors.json").write_text(json.dumps(described))
    monkeypatch.delattr(evalkit.diagnosis.running, "matrix_errors")
    assert main(command) == 0
    assert (out / "errors.csv").read_bytes() == first
    assert json.loads((out / "errors.json").read_text())["rows"]


NORMED = """
import torch, evalkit

def model():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))

def data():
    return torch.linspace(-1, 1, 36).view(12, 3), torch.arange(12) % 2

task = evalkit.Task(model=model, data=data, likelihood="categorical")
"""


@pytest.mark.parametrize("others", ["block", "gradient", "leave"])
def test_parameters_without_factors_are_what_is_asked_for(tmp_path: Path, others: str) -> None:
    file, out, folder = tmp_path / "normed.py", tmp_path / "out", tmp_path / "checkpoints"
    file.write_text(NORMED)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    folder.mkdir()
    torch.save(model.state_dict(), folder / "step-0.pt")
    asked = ["--task", f"{file}:task", *ARGUMENTS, "--others", others, "--out", str(out)]
    assert main(["errors", str(folder), *asked]) == 0
    errors, scales, described = tables(out)
    errors["block"], scales["block"] = errors["block"].astype(str), scales["block"].astype(str)
    layers, norm = {"0", "2"}, {"1.weight", "1.bias"}
    expected = layers if others == "leave" else layers | norm
    assert set(errors["block"]) == expected | {ALL, WHOLE}
    assert set(scales["block"]) == expected
    assert described["settings"]["others"] == others
    one = errors[(errors["method"] == "kfac:labels=exact") & errors["block"].isin(norm)]
    assert len(one) == (0 if others == "leave" else 2)
    assert (one["frobenius"] < 1e-6).all() == (others != "gradient")


def test_what_becomes_of_other_parameters_is_one_of_three(
    trajectory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["errors", str(trajectory), "--task", "digits-mlp", "--others", "blocks"]
    assert main(arguments) == 2
    assert "--others" in capsys.readouterr().err

"""Exports, read back by the libraries that they are for."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.export.folder import MARKER, export_folder
from evalkit.export.series import curve_names
from evalkit.export.tools import TOOLS
from evalkit.extras import INSTALL
from tests.support.exported_runs import (
    DAMPINGS,
    KFAC,
    TOLD,
    Curve,
    exported_run,
    geometric,
    of_mlflow,
    of_tensorboard,
    of_wandb,
)
from tests.support.written_runs import cell, score_row, write_run

LIBRARIES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow.tracking",
    "parquet": "pyarrow.parquet",
}
NEAR_ZERO, LARGE = "kfac_labels_exact_damping_1e-12", "kfac_labels_exact_damping_0.01"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run(tmp_path_factory.mktemp("exported") / "run")


def export(run: Path, tool: str) -> Path:
    pytest.importorskip(LIBRARIES[tool])
    before = (sorted(os.listdir(run.parent)), dict(os.environ), sorted(os.listdir(Path.cwd())))
    assert main(["export", str(run), "--to", tool]) == 0
    after = (sorted(os.listdir(run.parent)), dict(os.environ), sorted(os.listdir(Path.cwd())))
    assert after == before
    return run / "exports" / tool


def check(curves: dict[str, Curve], batches: str = "batches/", rel: float = 1e-12) -> None:
    """Compare curves with the means of the rows that were written."""
    for damping, name in zip(DAMPINGS, (NEAR_ZERO, LARGE), strict=True):
        ratio = geometric(0.75 + damping, 3.0 + damping)
        sure = (0, 920) if damping == DAMPINGS[0] else (0, 92, 920)
        for quantity, value in (("gamma", 2 * ratio), ("ratio", ratio)):
            expected = pytest.approx(dict.fromkeys(sure, value), rel=rel)
            assert curves[f"{quantity}/{name}"] == expected
    # What is not to be relied on stands apart, and what is infinite is not there.
    unsure = geometric(0.75 + DAMPINGS[0], 3.0 + DAMPINGS[0])
    assert curves[f"unreliable_ratio/{NEAR_ZERO}"] == pytest.approx({92: unsure}, rel=rel)
    assert f"unreliable_ratio/{LARGE}" not in curves
    assert curves["gamma/ef_damping_0.01"] == pytest.approx({0: 6.0, 92: 6.0}, rel=rel)
    assert curves["infinite/ef_damping_0.01"] == {0: 0, 92: 0, 920: 2}
    assert curves["efficiency/ef_damping_0.01"][920] == 0
    assert curves["gamma/floor"] == {0: 1, 92: 1, 920: 1}
    assert curves["ratio/floor"] == {0: 0.5, 92: 0.5, 920: 0.5}
    losses = {step: 1 / (1 + step) for step in (0, 92, 920)}
    if batches:
        assert curves["batches/loss"] == {0: 1.5, 92: 1.5, 920: 1.5}
        assert curves["training/training_loss"] == pytest.approx(losses, rel=rel)
    else:
        assert curves["loss/batches"] == {0: 1.5, 92: 1.5, 920: 1.5}
        assert curves["training_loss/training"] == pytest.approx(losses, rel=rel)
    for name, points in curves.items():
        assert all(map(math.isfinite, points.values())), name


def test_tensorboard_reads_its_events(run: Path) -> None:
    curves, texts = of_tensorboard(export(run, "tensorboard"))
    check(curves, batches="", rel=1e-6)  # its scalars are float32
    assert f"{KFAC}, damping 0.01" in texts[f"{LARGE}/method/text_summary"]
    told = texts["run/run.json/text_summary"]
    assert json.loads(told) == TOLD
    assert "gamma may be off by 50%" in texts["run/notes/text_summary"]
    assert "gamma, ratio of ef_damping_0.01: infinite" in texts["run/notes/text_summary"]


def test_tensorboard_has_no_value_that_its_numbers_do_not_hold(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    cells = [cell("a", 3, 1.0, 0, [score_row("sgd", 1.0, sgd=1e40, floor=1e-3)])]
    assert main(["export", str(write_run(tmp_path / "run", cells)), "--to", "tensorboard"]) == 0
    curves, texts = of_tensorboard(tmp_path / "run" / "exports" / "tensorboard")
    assert "gamma/sgd" not in curves
    assert curves["ratio/sgd"] == {3: 1}
    assert "gamma/sgd lacks 1 of 1 value" in texts["run/notes/text_summary"]


def test_wandb_reads_its_offline_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    curves, config, notes = of_wandb(export(run, "wandb"))
    assert curves.pop("train/global_step") == {0: 0, 92: 92, 920: 920}
    check({name: points for name, points in curves.items() if not name.startswith("_")})
    assert config["settings"] == TOLD["settings"]
    assert config["checkpoints"] == TOLD["checkpoints"]
    assert config["curves"][LARGE] == f"{KFAC}, damping 0.01"
    assert "gamma may be off by 50%" in notes


def test_mlflow_reads_its_store(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(run, "mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    curves, record = of_mlflow(folder)
    check(curves)
    assert record.info.run_name == "run"
    assert record.info.status == "FINISHED"
    assert record.data.params["settings.dampings"] == "[1e-12, 0.01]"
    assert record.data.params["versions.torch"] == "2.13.0"
    assert record.data.params[f"curves.{LARGE}"] == f"{KFAC}, damping 0.01"
    assert "gamma may be off by 50%" in record.data.tags["mlflow.note.content"]
    told = next(folder.glob("*/*/artifacts/run.json"))
    assert json.loads(told.read_text(encoding="utf-8")) == TOLD


def test_parquet_has_every_digit_and_the_provenance(run: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = export(run, "parquet")
    from evalkit.results.summaries import summarize
    from evalkit.storage.run_folder import read_run

    read = read_run(run)
    tables = {path.stem: parquet.read_table(path) for path in folder.glob("*.parquet")}
    assert set(tables) == {"scores", "batches", "failures", "summary", "batch_summary"}
    for table in tables.values():
        assert json.loads(table.schema.metadata[b"evalkit.run"]) == TOLD
        assert b"gamma may be off by 50%" in table.schema.metadata[b"evalkit.notes"]
    assert tables["scores"].column("gamma").to_pylist() == read.scores["gamma"].tolist()
    assert tables["scores"].column("relative_residual").null_count == len(read.scores)
    rows = tables["summary"].to_pylist()
    assert [row["gamma_mean"] for row in rows] == summarize(read)["gamma_mean"].tolist()
    marked = [row for row in rows if row["gamma_mark"] == "*"]
    assert [(row["method"], row["damping"], row["step"]) for row in marked] == [(KFAC, 1e-12, 92)]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_second_export_replaces_the_first(run: Path, tool: str) -> None:
    first = export(run, tool)
    names = {path.name for path in first.rglob("*.wandb")}
    again = export(run, tool)
    assert len(list(again.rglob("*.wandb"))) == len(names)
    if tool == "tensorboard":
        assert len(list((again / "floor").iterdir())) == 1


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_library_is_a_sentence(
    run: Path,
    tool: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    hidden = "torch.utils.tensorboard" if tool == "tensorboard" else LIBRARIES[tool]
    monkeypatch.setitem(sys.modules, hidden, None)
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", tool, "--out", str(out)]) == 2
    assert INSTALL.format(extra="export") in capsys.readouterr().err
    assert not out.exists()


def test_nothing_of_anybody_else_is_removed(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    command = ["export", str(run), "--to", "parquet", "--out", str(out)]
    assert main(["export", str(run), "--to", "parquet", "--out", str(run)]) == 2
    assert main(command) == 0
    (out / "mine.txt").write_text("mine")
    assert main(command) == 2
    (out / "mine.txt").unlink()
    (out / "scores.parquet").write_text("mine")
    assert main(command) == 2
    assert (out / "scores.parquet").read_text() == "mine"
    with (
        pytest.raises(EvalkitError, match=r"an export to wandb at .* found one to parquet"),
        export_folder(out, "wandb", run),
    ):
        pass


def test_an_export_that_fails_leaves_nothing_and_one_that_is_killed_is_replaced(
    tmp_path: Path,
) -> None:
    def fail(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), export_folder(tmp_path, "mlflow", tmp_path) as made:
        fail(made)
    assert os.listdir(tmp_path) == []
    (tmp_path / MARKER).write_text('{"export": "mlflow", "files": null}')
    (tmp_path / "half").write_text("half")
    with export_folder(tmp_path, "mlflow", tmp_path):
        pass
    assert os.listdir(tmp_path) == [MARKER]


def test_checkpoints_at_one_step_are_refused_where_steps_are_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    cells = [cell(name, 3, 1.0, 0, [score_row("sgd", 1.0)]) for name in ("a", "b")]
    write_run(tmp_path / "run", cells)
    assert main(["export", str(tmp_path / "run"), "--to", "tensorboard"]) == 2
    assert "found 'a' and 'b' at one step" in capsys.readouterr().err
    assert not (tmp_path / "run" / "exports").exists()


def test_what_a_library_does_not_take_is_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def fail(*_: object) -> None:
        raise RuntimeError("no such column")

    monkeypatch.setattr(parquet, "write_table", fail)
    assert main(["export", str(run), "--to", "parquet", "--out", str(tmp_path)]) == 2
    assert "expected parquet to take the run" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_names_and_provenance_of_any_kind_are_exported(tmp_path: Path, tool: str) -> None:
    pytest.importorskip(LIBRARIES[tool])
    told = {
        **TOLD,
        "task": "../../" + 300 * "t",
        "..": {"/etc/x": "é", "": [1, None], "a=b": ""},
        "checkpoints": [],
        "long": 9000 * "x",
    }
    rows = [score_row(name, 1.0) for name in ("sgd", "../..", "m:" + 300 * "k", "a=1", "a:1")]
    write_run(tmp_path / "run", [cell("c", 5, 1.0, 0, rows)], told)
    assert main(["export", str(tmp_path / "run"), "--to", tool]) == 0
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert sorted(os.listdir(tmp_path / "run")) == [
        "batches.csv",
        "exports",
        "run.json",
        "scores.csv",
    ]


def test_no_two_curves_have_one_name() -> None:
    given = [("a:b=1", 0.0), ("a/b/1", 0.0), ("A_b_1", 0.0), ("floor", 0.0), ("../..", 0.0)]
    names = list(curve_names(given).values())
    assert names == ["a_b_1", "a_b_1_2", "A_b_1_3", "floor_2", "_"]

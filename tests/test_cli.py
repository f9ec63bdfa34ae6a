"""The command line as a user meets it: files made, exit status, one sentence for bad input."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest

from evalkit.cli import main
from evalkit.cli.early import check_names, registered
from evalkit.cli.main import commands
from evalkit.cli.options import check_given_once
from evalkit.cli.progress import Lines, duration
from evalkit.errors import EvalkitError
from evalkit.storage.run_folder import read_run
from evalkit.training import optimizers
from evalkit.updates import methods
from evalkit.updates.parser import function_of
from tests.support.folders import BUNDLED
from tests.support.refusals import sentence

SMALL = ["--batches", "2", "--batch-size", "16"]


def test_score_and_report_make_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["score", str(BUNDLED), *SMALL, "--out", str(run)]) == 0
    output = capsys.readouterr().out
    for text in ("step-000000", "step-000920", "SGD", "EF", "iEF", "SF", "floor"):
        assert text in output
    assert max(map(len, output.splitlines()[:-2])) <= 80
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    made = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"scores.csv", "batches.csv", "run.json", "report.html"} <= made
    assert any(name.endswith(".png") for name in made)
    assert any(name.endswith(".svg") for name in made)


def test_a_sweep_and_settings_of_a_method(tmp_path: Path) -> None:
    run = tmp_path / "run"
    methods = "sgd,sf:labels_per_sample=2"
    arguments = ["--methods", methods, "--damping", "1e-12,1e-3", "--out", str(run)]
    assert main(["score", str(BUNDLED), *SMALL, *arguments]) == 0
    scores = read_run(run).scores
    assert set(scores["method"]) == {"sgd", "sf:labels_per_sample=2"}
    assert set(scores["damping"]) == {1e-12, 1e-3}


def test_the_same_command_twice_gives_the_same_tables(tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert main(["score", str(BUNDLED), *SMALL, "--out", str(tmp_path / name)]) == 0
    first, second = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("first", "second"))
    pd.testing.assert_frame_equal(first, second, rtol=1e-5)


def test_list_names_tasks_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    for name in ("digits-mlp", "sgd", "ef", "ief", "ief-tikhonov", "sf", "ngd", "adamw"):
        assert name in output


@pytest.mark.parametrize("command", [[], ["score"], ["train"], ["report"], ["list"]])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_python_m_evalkit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evalkit", "score", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr


BAD = {
    "unknown command": (["scores"], "did you mean 'score'"),
    "missing argument": (["score"], "DIR"),
    "unknown option": (["score", "{bundled}", "--batch", "3"], "--batch"),
    "missing folder": (["score", "{tmp}/missing"], "missing"),
    "empty folder": (["score", "{tmp}"], "found none"),
    "unknown task": (["score", "{bundled}", "--task", "digits-mpl"], "did you mean 'digits-mlp'"),
    "unknown method": (["score", "{bundled}", "--methods", "sgd,iefs"], "did you mean 'ief'"),
    "a method of an own file": (
        ["score", "{bundled}", "--methods", "mine"],
        "--load FILE adds your",
    ),
    "a method beside an own file": (
        ["score", "{bundled}", "--load", "tests.support.folders", "--methods", "iefs"],
        "or 'ef'? --load FILE adds your own",
    ),
    "unknown setting": (["score", "{bundled}", "--methods", "sf:label=2"], "labels_per_sample"),
    "setting out of range": (
        ["score", "{bundled}", "--methods", "sf:labels_per_sample=0"],
        "labels_per_sample",
    ),
    "setting of another type": (
        ["score", "{bundled}", "--methods", 'ngd:tolerance="a"'],
        "tolerance",
    ),
    "setting of another value": (
        ["score", "{bundled}", "--methods", "ngd:solver=drect"],
        "error: expected setting 'solver' of method 'ngd' to be one of cg, sketch, direct, auto",
    ),
    "no method": (["score", "{bundled}", "--methods", ","], "at least one method"),
    "method twice": (["score", "{bundled}", "--methods", "sgd,sgd"], "once"),
    "negative damping": (["score", "{bundled}", "--damping", "-1"], "damping"),
    "damping no number": (["score", "{bundled}", "--damping", "1e-3,low"], "low"),
    "damping infinite": (["score", "{bundled}", "--damping", "inf"], "damping"),
    "damping twice": (
        ["score", "{bundled}", "--damping", "1e-3", "--damping", "1e-6"],
        "expected --damping once, found it again; write --damping x[,y...]",
    ),
    "seed twice": (["score", "{bundled}", "--seed", "1", "--seed=2"], "--seed once"),
    "optimizer twice": (
        ["train", "digits-mlp", "--optimizer", "sgd", "--optimizer", "adam", "--out", "{tmp}/new"],
        "--optimizer once",
    ),
    "baseline twice": (
        ["check", "{tmp}/no-run", "--baseline", "a.csv", "--baseline", "b.csv"],
        "--baseline once",
    ),
    "batches of 401 digits": (["score", "{bundled}", "--batches", "1" + 400 * "0"], "2^63"),
    "batches of 5000 digits": (["score", "{bundled}", "--batches", 5000 * "9"], "--batches"),
    "seed of 401 digits": (["score", "{bundled}", "--seed", "1" + 400 * "0"], "seed"),
    "setting of 5000 digits": (
        ["score", "{bundled}", "--methods", "ngd:max_iterations=" + 5000 * "9"],
        "max_iterations",
    ),
    "nested setting": (
        ["score", "{bundled}", "--methods", "ngd:max_iterations=" + 9000 * "["],
        "max_iterations",
    ),
    "no batches": (["score", "{bundled}", "--batches", "0"], "--batches"),
    "zero batch size": (["score", "{bundled}", "--batch-size", "0"], "--batch-size"),
    "more than data": (["score", "{bundled}", "--batch-size", "9999"], "--batch-size"),
    "seed no number": (["score", "{bundled}", "--seed", "one"], "'one'"),
    "negative seed": (["score", "{bundled}", "--seed", "-1"], "seed"),
    "load missing": (["score", "{bundled}", "--load", "{tmp}/no.py"], "no.py"),
    "run missing": (["report", "{tmp}/no-run"], "no-run"),
    "run empty": (["report", "{tmp}"], "run.json"),
    "train unknown task": (["train", "digit-mlp", "--out", "{tmp}/new"], "digits-mlp"),
    "train unknown optimizer": (
        ["train", "digits-mlp", "--optimizer", "adamx", "--out", "{tmp}/new"],
        "adam",
    ),
    "train zero epochs": (["train", "digits-mlp", "--epochs", "0", "--out", "{tmp}/new"], "epochs"),
    "train into a full folder": (["train", "digits-mlp", "--out", "{bundled}"], "--out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, hint = BAD[case]
    arguments = [part.format(bundled=BUNDLED, tmp=tmp_path) for part in template]
    if arguments[0] == "score" and len(arguments) > 1:
        arguments += ["--out", str(tmp_path / "run")]
    found = sentence(capsys, arguments)
    assert hint in found
    assert "error of its own" not in found
    assert list(tmp_path.iterdir()) == []


def test_repeatable_options_and_flags_add_up() -> None:
    arguments = ["--load", "a.py", "--load", "b.py", "--set", "a=1", "--set", "a=2"]
    check_given_once(commands.get_command(None, "score"), click.Context(commands), arguments)
    flags = ["--update-baseline", "--update-baseline"]
    check_given_once(commands.get_command(None, "check"), click.Context(commands), flags)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("x"), "found an error of its own (KeyError: 'x'); give the same command with"),
        (RecursionError("deep"), "RecursionError: deep"),
        (MemoryError(), "lower --batch-size"),
        (OSError(28, "No space left", "name"), "No space left 'name'"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_sentence(
    error: Exception,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("evalkit.cli.early.registered", fail)
    assert expected in sentence(capsys, ["list"])
    for arguments in (["list", "--debug"], ["--debug", "list"]):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "in fail" in shown
        assert shown.splitlines()[-1].startswith("evalkit: error: ")


def test_names_are_checked_without_torch_as_they_are_with_it() -> None:
    said = {name: (inspect.getdoc(function_of(name)) or "").split("\n")[0] for name in methods()}
    assert {name: registered("method").get(name) for name in methods()} == said
    assert sorted(registered("optimizer")) == sorted(optimizers.names())
    check_names("method", ["mine"], ["my_method.py"])
    check_names("method", ["mine"], [None, "my_task.py:task"])
    with pytest.raises(EvalkitError, match="unknown method 'mine'"):
        check_names("method", ["sgd", "mine:a=1"], [None, "digits-mlp"])


def test_lines_of_progress_where_there_is_no_terminal() -> None:
    now, lines = [0.0], []
    shown = Lines(lines.append, clock=lambda: now[0], every=30)
    for passed, done in ((0, 2), (1, 3), (29, 4), (31, 5), (32, 6), (90, 8), (91, 12), (91, 12)):
        now[0] = passed
        shown.update(done, 12, "step-1")
    assert lines == [
        "evalkit: 5 of 12, step-1, 31 s passed, about 72 s left",
        "evalkit: 8 of 12, step-1, 90 s passed, about 60 s left",
        "evalkit: 12 of 12, step-1, 91 s passed",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.04 s"),
        (9.96, "10 s"),
        (99, "99 s"),
        (300, "5 min"),
        (9000, "2.5 h"),
        (3e5, "3.5 days"),
        (1e13, "1.157e+08 days"),
    ],
)
def test_times_have_a_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_altered_checkpoint_is_refused_before_the_first_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "copy")
    last = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    found = sentence(capsys, ["score", str(folder), "--out", str(tmp_path / "run")])
    assert last.name in found
    assert not (tmp_path / "run").exists()


def test_a_model_that_draws_numbers_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import torch, evalkit\n"
        "class Noise(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x + torch.randn_like(x)\n"
        "def model():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(3, 2), Noise())\n"
        "def data():\n"
        "    return torch.ones(8, 3), torch.arange(8) % 2\n"
        "recipe = evalkit.tasks.Recipe(epochs=1, batch_size=4)\n"
        "task = evalkit.Task(model=model, data=data, recipe=recipe)\n"
    )
    task, folder = f"{tmp_path / 'noisy.py'}:task", str(tmp_path / "checkpoints")
    assert main(["train", task, "--out", folder]) == 0
    capsys.readouterr()
    arguments = ["score", folder, "--task", task, "--batch-size", "4"]
    found = sentence(capsys, [*arguments, "--out", str(tmp_path / "run")])
    assert "'1' (Noise" in found
    assert "step-000000" in found
    assert not (tmp_path / "run").exists()


def test_code_named_by_a_manifest_is_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "copy")
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    manifest = folder / "trajectory.json"
    manifest.write_text(manifest.read_text().replace("digits-mlp", f"{tmp_path}/evil.py:task", 1))
    assert "--task" in sentence(capsys, ["score", str(folder), "--out", str(tmp_path / "run")])
    assert not marker.exists()

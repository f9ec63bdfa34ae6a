"""The command line as a user meets it: files made, exit status, one sentence for bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from evalkit.cli import main
from evalkit.run import read_run
from tests.folders import BUNDLED

SMALL = ["--batches", "2", "--batch-size", "16"]


def sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must be refused, and return its one sentence."""
    status = main(arguments)
    error = capsys.readouterr().err
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("evalkit: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


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
    assert hint in sentence(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


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

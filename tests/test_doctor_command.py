"""What ``evalkit doctor`` prints, and what it says of targets that cannot be examined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.cli import main
from evalkit.doctor import Finding, Report, memory
from evalkit.doctor.finding import looked_at
from evalkit.errors import EvalkitError
from tests.support.doctor_cases import HEALTHY, PLANTED
from tests.support.documents import document, python_files
from tests.support.folders import BUNDLED
from tests.support.hub import save_bert, save_glue
from tests.support.planted import written

SMALL = ["--batch-size", "8", "--batches", "3", "--methods", "sgd,ief"]


@pytest.fixture(autouse=True)
def without_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_mebibytes", lambda work, device: 1.0)


def test_the_table_has_the_worst_first_on_lines_of_80_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = PLANTED["a parameter that nothing uses"].written(tmp_path)
    assert main(["doctor", spec, *SMALL]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mine.py:task, as initialised: a batch of 8 samples for sgd, ief")
    assert lines[1] == "It can be scored, and something should be changed: parameters."
    assert lines[3].startswith("  change  parameters   2 trained parameters that no logit")
    cure = next(line for line in lines if "-> " in line)
    assert cure.index("->") == lines[3].index("2 trained")
    assert max(map(len, lines)) <= 80
    verdicts = [line.split()[0] for line in lines[3:] if line.startswith("  ") and line[2] != " "]
    assert verdicts == sorted(verdicts) == ["change", *["ok"] * (len(verdicts) - 1)]


def test_what_cannot_be_scored_leaves_later_checks_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", PLANTED["frozen everything"].written(tmp_path), *SMALL]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == "It cannot be scored as it is."
    left = " ".join(printed.out.split())
    assert "Not looked at before that: values, determinism, companions" in left
    assert printed.err == ""


def test_a_healthy_task_is_said_to_be_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", written(tmp_path, HEALTHY["perceptron"]), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "Fine: nothing has to be changed." in printed
    assert "->" not in printed


def test_a_transformer_with_random_weights_is_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model={save_bert(tmp_path / 'bert')}", f"data={save_glue(tmp_path / 'glue')}"]
    options = [part for one in settings for part in ("--set", one)]
    assert main(["doctor", "glue-cola", *options, *SMALL, "--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["padding"]["numbers"]["told_by"] == "'attention_mask'"
    assert not findings["parameters"]["numbers"]["fall_back"]


CASES = {
    "no such device": (["digits-mlp", "--device", "cuda:77"], "--device cpu"),
    "no such thing": (["nowhere"], "known"),
    "a misspelt task": (["digits-mpl"], "did you mean 'digits-mlp'"),
    "no such file": (["{tmp}/none.py:task"], "none.py"),
    "a file without a task": (["{tmp}/mine.py"], ":task"),
    "no checkpoints": (["{tmp}/empty"], "evalkit train"),
    "no folder": (["{tmp}/gone", "--task", "digits-mlp"], "evalkit train"),
    "no such checkpoint": (
        [str(BUNDLED), "--checkpoint", "step-000001"],
        "did you mean 'step-000000'",
    ),
    "a misspelt method": (["digits-mlp", "--methods", "iefs"], "did you mean 'ief'"),
    "a checkpoint of a task": (["digits-mlp", "--checkpoint", "last"], "folder of checkpoints"),
    "too large a batch": (["digits-mlp", "--batch-size", "9999"], "--batch-size"),
    "half precision": (["digits-mlp", "--dtype", "float16"], "float64"),
    "a task that raises": (["{tmp}/raises.py:task"], "raises.py, line 5"),
    "data that raise": (["{tmp}/data.py:task"], "data.py, line 8"),
}
RAISES = """
import evalkit, torch

def model():
    raise OSError("no such weights")

def data():
    {}

task = evalkit.Task(model=model, data=data)
"""


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_opened_is_one_sentence_with_the_next_step(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code = RAISES.format("return torch.ones(200, 2), torch.zeros(200).long()")
    (tmp_path / "raises.py").write_text(code)
    code = RAISES.format("return 1 / 0").replace(
        'raise OSError("no such weights")', "return torch.nn.Linear(2, 2)"
    )
    (tmp_path / "data.py").write_text(code)
    arguments, hint = CASES[name]
    assert main(["doctor", *(part.format(tmp=tmp_path) for part in arguments)]) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert printed.out == ""
    assert len(lines) == 1
    assert lines[0].startswith("evalkit: error: ")
    assert hint in lines[0]


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(python_files(document("guides/doctor.md"))["dry_run.py"], names)
    assert names["report"].status == 0
    assert capsys.readouterr().out.startswith("ok [('forward', ")


def test_a_check_that_raises_is_a_finding() -> None:
    def wrong() -> Finding:
        raise KeyError("here")

    def refused() -> Finding:
        raise EvalkitError("expected one, found two; drop one")

    def too_large() -> Finding:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert looked_at("a", wrong).verdict == "fail"
    assert "KeyError: 'here'" in looked_at("a", wrong).finding
    found = looked_at("a", refused)
    assert (found.finding, found.cure) == ("expected one, found two", "drop one")
    assert "micro_batch_size" in looked_at("a", too_large).cure
    assert Report((found,)).status == 2
    assert Report(()).status == 0

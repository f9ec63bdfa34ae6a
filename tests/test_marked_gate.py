"""The gate on scores that are not to be relied on, and a real run that has such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from evalkit.cli import main
from evalkit.doubts import MARKED
from evalkit.gate.baseline import baseline_of, update_baseline
from evalkit.gate.baseline_file import read_baseline
from evalkit.gate.check import check
from evalkit.gate.output import headline, junit, markdown
from evalkit.report.page import render_page
from evalkit.report.writing import derived_of, mark_notes
from evalkit.storage.run_folder import read_run
from evalkit.study.batches import draw_batch
from evalkit.tasks import load_task
from tests.support.gates import Made, checked, printed, rows_of

RATIOS = (0.5, 0.6, 0.7, 0.8)
WORSE = {"ef": [1.2 * ratio for ratio in RATIOS]}


@pytest.mark.parametrize(
    ("obtained", "expected", "verdict", "doubt"),
    [
        (1e-7, 1e-7, "worse", ""),
        (0.05, 1e-7, "worse", "obtained may be off by 5%"),
        (0.3, 1e-7, "not comparable", "obtained may be off by 30%"),
        (1e-7, 0.3, "same", "expected may be off by 30%"),
        (0.1, 0.1, "same", "obtained and expected may be off by 10%"),
    ],
)
def test_a_change_within_the_stated_errors_is_no_regression(
    obtained: float, expected: float, verdict: str, doubt: str, tmp_path: Path
) -> None:
    found = checked(
        tmp_path,
        Made(WORSE, errors={"ef": obtained, "sgd": 1e-8}),
        Made(errors={"ef": expected, "sgd": 1e-8}),
    )
    row = rows_of(found)["log ratio"]
    assert row.verdict == verdict
    assert row.doubt == doubt
    assert row.difference == pytest.approx(np.log(1.2))
    if verdict == "not comparable":
        assert row.reason == "within the stated error of the run alone"
    if verdict == "same":
        assert row.reason == "within the stated error"
        assert row in found.within_error
        assert "beyond the tolerance but within the stated error" in headline(found)
        assert "score more to tell" not in headline(found)
    if doubt:
        [line, *_] = [line for line in printed(found) if "log ratio" in line]
        assert line.startswith(f"{verdict}* ")
        assert line.endswith(doubt)
        assert f"| {verdict}\\* | first | ef |" in markdown(found)
        assert doubt.encode() in junit(found)
        assert "rest on marked scores (*)" in headline(found)


def test_an_improvement_within_the_stated_error_is_none(tmp_path: Path) -> None:
    better = Made({"ef": [ratio / 1.2 for ratio in RATIOS]}, errors={"ef": 0.3})
    row = rows_of(checked(tmp_path, better, Made(errors={"ef": 1e-7})))["log ratio"]
    assert (row.verdict, row.reason) == ("same", "within the stated error")


def test_what_a_solver_leaves_is_no_excuse(tmp_path: Path) -> None:
    """Its gamma is far from that of the exact solution, and yet certain."""
    early = Made(WORSE, errors={"ef": 0.3}, stopped=("ef",))
    row = rows_of(checked(tmp_path, early, Made(errors={"ef": 1e-7})))["log ratio"]
    assert (row.verdict, row.doubt) == ("worse", "obtained may be off by 30%")


def test_the_error_of_sgd_is_that_of_every_ratio(tmp_path: Path) -> None:
    found = checked(tmp_path, Made(WORSE, errors={"sgd": 0.3, "ef": 1e-8}), Made())
    of_ef, of_sgd = rows_of(found), rows_of(found, "sgd")
    assert of_ef["log ratio"].doubt == "obtained may be off by 30%"
    assert of_ef["efficiency"].doubt == ""
    assert of_sgd["log ratio"].doubt == ""
    assert of_sgd["efficiency"].doubt == "obtained may be off by 30%"


def test_a_lost_descent_within_the_error_is_not_comparable(tmp_path: Path) -> None:
    sure, unsure = (
        rows_of(checked(tmp_path / name, Made(uphill=(1,), errors={"ef": error}), Made()))
        for name, error in (("sure", 0.5), ("unsure", 3.0))
    )
    assert sure["log ratio"].verdict == "worse"
    assert unsure["log ratio"].verdict == "not comparable"


def test_gammas_that_cannot_be_are_marked(tmp_path: Path) -> None:
    made = Made({"ef": (0.3,) * 3, "ngd": (0.9,) * 3}, errors={"ef": 1e-7, "ngd": 1e-7})
    found = checked(tmp_path, made, made)
    assert rows_of(found)["efficiency"].doubt == "obtained and expected cannot be"
    assert rows_of(found, "ngd")["log ratio"].doubt == "obtained cannot be"
    assert any("efficiency above 100%" in remark for remark in found.remarks)
    assert found.remarks[-1].startswith("* The baseline rests on marked scores")


def test_a_baseline_records_errors(tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    update_baseline(path, Made(errors={"ef": 0.012345}).write(tmp_path / "run"))
    text = path.read_text()
    assert "ratio,efficiency,descends,loss,error\n" in text
    assert read_baseline(path).rows.set_index("method")["error"]["ef"].tolist() == [0.012] * 4
    again = Made(errors={"ef": 0.02}).write(tmp_path / "again")
    assert update_baseline(path, again) == ""  # errors move a little from machine to machine
    assert update_baseline(path, Made(errors={"ef": 2e-5}).write(tmp_path / "better")) != ""
    assert "0.012" not in path.read_text()


def test_a_baseline_without_errors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "baseline.csv"
    update_baseline(path, Made().write(tmp_path / "run"))
    assert "error" not in path.read_text()
    assert read_baseline(path).rows["error"].isna().all()
    found = check(
        baseline_of(Made(errors={"ef": 1e-5}).write(tmp_path / "new")), read_baseline(path)
    )
    assert found.passed
    assert not found.doubtful


TASK = """
import evalkit
import torch
from sklearn.datasets import load_diabetes


def model():
    return torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))


def data():
    inputs, targets = load_diabetes(return_X_y=True)
    return torch.tensor(inputs).float(), torch.tensor((targets - 152) / 77).float()[:, None]


task = evalkit.Task(model=model, data=data, likelihood="gaussian")
"""


def diabetes_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))


@pytest.fixture
def diabetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a task and a checkpoint of it."""
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK, encoding="utf-8")
    Path("checkpoints").mkdir()
    torch.save(diabetes_model().state_dict(), "checkpoints/step-1.pt")
    return tmp_path


def score(out: str, *more: str) -> int:
    request = ["--task", "task.py:task", "--methods", "sgd,ef,ief,sf,ngd", "--batches", "3"]
    return main(["score", "checkpoints", *request, *more, "--out", out])


def test_float32_at_near_zero_damping_is_marked_everywhere(
    diabetes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("single", "--dtype", "float32") == 0
    printed_table = capsys.readouterr().out
    lines = printed_table.splitlines()
    ratios = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 3}
    assert all(ratios[name].endswith("*") for name in ("EF", "iEF", "SF"))
    assert "leave out --dtype float32" in " ".join(printed_table.split())
    assert "x*" in printed_table  # the headline
    run = read_run("single")
    assert any("leave out `dtype=float32`" in note for note in mark_notes([run]))
    page = render_page(run, derived_of(run))
    assert page.count('<span class="mark" role="img"') >= 3
    assert "leave out `dtype=float32`" in page
    assert main(["report", "single"]) == 0
    capsys.readouterr()
    assert "leave out --dtype float32" in Path("single/report.html").read_text(encoding="utf-8")
    gate = ["check", "single", "--baseline", "baseline.csv"]
    assert main([*gate, "--update-baseline"]) == 0
    capsys.readouterr()
    assert main([*gate, "--markdown", "gate.md"]) == 0
    told = capsys.readouterr().out
    assert "rest on marked scores (*)" in told
    assert "same*" in told
    assert "leave out --dtype float32" in " ".join(told.split())
    assert "leave out --dtype float32" in Path("gate.md").read_text(encoding="utf-8")


def exact_gammas(inputs: Tensor, targets: Tensor, damping: float) -> dict[str, float]:
    """Return gamma of EF and iEF from an SVD of the dense Jacobian, which squares no condition.

    With one output, G = diag(r) J and J d = G d / r.
    """
    model = diabetes_model().double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def output(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, x[None])[0, 0]

    rows = vmap(jacrev(output), (None, 0))(parameters, inputs.double())
    jacobian = torch.cat([row.flatten(1) for row in rows.values()], 1)
    residual = (model(inputs.double()) - targets.double()).detach().squeeze(1)
    left, values, right = torch.linalg.svd(residual[:, None] * jacobian, full_matrices=False)
    gradient = jacobian.T @ residual
    found = {}
    for name, weights in (("ef", torch.ones_like(residual)), ("ief", residual**2)):
        d = right.T @ (values / (values**2 + damping) * (left.T @ weights))
        found[name] = float((jacobian @ d).norm() / (d @ gradient).abs())
    return found


def test_no_default_row_is_wrong_unmarked(diabetes: Path) -> None:
    assert score("default") == 0
    rows = read_run("default").scores.set_index(["batch", "method"])
    task = load_task("task.py:task")
    samples = task.training_samples()
    for batch in range(2):
        inputs, targets = samples.take(draw_batch(len(samples), 160, 0, batch))
        for method, exact in exact_gammas(inputs, targets, 1e-12).items():
            row = rows.loc[batch, method]
            off = abs(row["gamma"] / exact - 1)
            assert off <= 1e-2 or row["error"] > MARKED, method
            assert off <= row["error"] + 1e-3, method

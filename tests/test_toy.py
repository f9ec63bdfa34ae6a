"""Toy fields beside closed forms, and the theory that their trajectories show."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.figures import render
from evalkit.figures.palette import method_styles
from evalkit.figures.toy_figures import plot_trajectories, toy_figure, write_toy_figure
from evalkit.toy import METHODS, PROBLEMS, Problem, Tracing, compute_toy
from evalkit.toy_tables import Toy, read_toy, write_toy

COARSE = Tracing(arrows=4, points=5, steps=3)


@cache
def toy_of(name: str, tracing: Tracing = COARSE) -> Toy:
    return compute_toy(PROBLEMS.get(name), tracing)


def moments(name: str, weight: float, bias: float) -> tuple[np.ndarray, ...]:
    """Return J (2, 2), r, S and l of both samples, written out."""
    x = np.array([0.0, 1.0] if name == "least-squares" else [0.0, 2.0])
    z, jacobian = weight * x + bias, np.stack([x, np.ones(2)], 1)
    if name == "least-squares":
        return jacobian, z, np.ones(2), z**2 / 2
    p = 1 / (1 + np.exp(-z))
    return jacobian, p - [0, 1], p * (1 - p), -np.log([1 - p[0], p[1]])


def direction(method: str, moments: tuple[np.ndarray, ...], damping: float) -> np.ndarray:
    jacobian, r, s, _ = moments
    gradients = r[:, None] * jacobian
    ridge = damping * np.eye(2)
    if method == "sgd":
        return gradients.sum(0)
    if method == "ngd":
        return np.linalg.solve(jacobian.T @ np.diag(s) @ jacobian + ridge, gradients.sum(0))
    right = np.ones(2) if method == "ef" else r**2
    return gradients.T @ np.linalg.solve(gradients @ gradients.T + ridge, right)


@pytest.mark.parametrize("damping", [1e-12, 0.3])
@pytest.mark.parametrize("name", PROBLEMS.names())
def test_fields_are_the_closed_forms(name: str, damping: float) -> None:
    toy = toy_of(name, Tracing(damping=damping, arrows=4, points=2, steps=0))
    assert toy.field["method"].value_counts().to_dict() == dict.fromkeys(METHODS, 16)
    for row in toy.field.itertuples():
        expected = direction(row.method, moments(name, row.weight, row.bias), damping)
        found = [row.direction_weight, row.direction_bias]
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", PROBLEMS.names())
def test_the_landscape_is_the_loss(name: str) -> None:
    landscape = toy_of(name).landscape
    assert len(landscape) == 25
    losses = [moments(name, row.weight, row.bias)[3].sum() for row in landscape.itertuples()]
    assert landscape["loss"].to_numpy() == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("name", PROBLEMS.names())
def test_steps_follow_the_field_and_have_the_length_asked_for(name: str) -> None:
    table = toy_of(name).trajectories
    for (method, start), rows in table.groupby(["method", "start"]):
        points = rows[["weight", "bias"]].to_numpy()
        assert tuple(points[0]) == PROBLEMS.get(name).starts[start]
        step = points[1] - points[0]
        d = direction(method, moments(name, *points[0]), 1e-12)
        assert np.linalg.norm(step) == pytest.approx(COARSE.step_length)
        assert -step @ d == pytest.approx(np.linalg.norm(step) * np.linalg.norm(d))


def fine(name: str, start: tuple[float, float], steps: int) -> pd.DataFrame:
    """Return trajectories from one start in short steps, with the loss of each sample."""
    base = PROBLEMS.get(name)
    problem = Problem(
        name, base.likelihood, base.inputs, base.targets, base.center, base.width, (start,)
    )
    tracing = Tracing(arrows=1, points=2, steps=steps, step_length=0.02)
    table = compute_toy(problem, tracing).trajectories
    losses = [moments(name, row.weight, row.bias)[3] for row in table.itertuples()]
    table[["loss 0", "loss 1"]] = losses
    return table.set_index("method")


@pytest.fixture(scope="module")
def least_squares() -> pd.DataFrame:
    return fine("least-squares", (0.3, 0.9), 60)


@pytest.fixture(scope="module")
def logistic() -> pd.DataFrame:
    return fine("logistic", (-0.5, -1.0), 60)


@pytest.mark.parametrize("method", ["ngd", "ief"])
def test_on_least_squares_ngd_and_ief_go_straight_to_the_minimum(
    method: str, least_squares: pd.DataFrame
) -> None:
    points = least_squares.loc[method, ["weight", "bias"]].to_numpy()
    assert points[:, 0] * 0.9 == pytest.approx(points[:, 1] * 0.3, abs=1e-6)
    assert points[-1] == pytest.approx([0, 0], abs=1e-6)
    assert len(points) <= 2 + np.ceil(np.hypot(0.3, 0.9) / 0.02)


def test_on_least_squares_ef_ends_where_one_sample_is_solved_and_sgd_bends(
    least_squares: pd.DataFrame,
) -> None:
    last = least_squares.loc["ef"].iloc[-1]
    assert last["loss 0"] < 1e-3
    assert last["loss 1"] > 0.2
    points = least_squares.loc["sgd", ["weight", "bias"]].to_numpy()
    assert abs(points[:, 0] * 0.9 - points[:, 1] * 0.3).max() > 0.1


def flow_time(loss: pd.Series) -> pd.Series:
    """1 / (1 - p) + log(p / (1 - p)) for l = -log p: rises by t in iEF's flow (paper, theory)."""
    p = np.exp(-loss)
    return 1 / (1 - p) + np.log(p / (1 - p))


def test_on_logistic_regression_ief_solves_both_samples_together_and_ef_does_not(
    logistic: pd.DataFrame,
) -> None:
    invariants = {
        "ief": flow_time(logistic["loss 0"]) - flow_time(logistic["loss 1"]),
        "ef": logistic["loss 0"] - logistic["loss 1"],  # EF lowers both by the same
    }
    for method, invariant in invariants.items():
        own, other = (invariant.loc[name] for name in (method, "sgd"))
        assert own.to_numpy() == pytest.approx(own.iloc[0], abs=0.03)
        assert abs(other - other.iloc[0]).max() > 0.3


def test_tables_and_figure_survive_a_round_trip(tmp_path: Path) -> None:
    toy = toy_of("logistic")
    write_toy(toy, tmp_path)
    again = read_toy(tmp_path)
    for name in ("landscape", "field", "trajectories"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(toy, name), check_exact=True)
    assert again.provenance["damping"] == 1e-12
    assert again.provenance["versions"]["torch"]
    figures = [toy_figure(one) for one in (toy, again)]
    for kind in ("svg", "png"):
        first, second = (render(figure, kind) for figure in figures)
        assert first == second
    names = {path.name for path in write_toy_figure(again, tmp_path)}
    assert names == {"logistic.png", "logistic.svg"}


def test_a_panel_shows_one_method_in_its_color() -> None:
    toy = toy_of("least-squares")
    panels = toy_figure(toy).axes[: len(METHODS)]
    styles = method_styles(METHODS)
    for method, ax in zip(METHODS, panels, strict=True):
        [arrows] = [item for item in ax.collections if isinstance(item, Quiver)]
        assert to_hex(arrows.get_facecolor()[0]) == styles[method].color
        assert np.hypot(arrows.U, arrows.V) == pytest.approx(1)
        rows = toy.field[toy.field["method"] == method]
        assert (arrows.U * rows["direction_weight"] + arrows.V * rows["direction_bias"] < 0).all()
        lines = [line for line in ax.lines if line.get_color() == styles[method].color]
        assert {len(line.get_xdata()) for line in lines} == {1, 4}


def test_a_trajectory_that_leaves_the_axes_has_no_end() -> None:
    ax = Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    table = pd.DataFrame({"start": [0, 0], "weight": [0.5, 1.5], "bias": [0.5, 0.5]})
    plot_trajectories(table, ax, method_styles([])["ef"])
    assert len(ax.lines) == 2
    plot_trajectories(table.assign(weight=0.5), ax, method_styles([])["ef"])
    assert len(ax.lines) == 2 + 3


def test_the_command_writes_figure_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.toy.Tracing", partial(replace, COARSE))
    folder = tmp_path / "toy"
    assert main(["toy", "least-squares", "--damping", "1e-6", "--out", str(folder)]) == 0
    assert str(folder / "least-squares.svg") in capsys.readouterr().out
    toy = read_toy(folder)
    assert toy.provenance["damping"] == 1e-6
    assert set(toy.trajectories["start"]) == set(range(5))


BAD = {
    "unknown problem": (["least-square"], "did you mean 'least-squares'"),
    "negative damping": (["logistic", "--damping", "-1"], "damping"),
    "damping no number": (["logistic", "--damping", "low"], "'low'"),
    "no problem": ([], "PROBLEM"),
    "a file in the way": (["logistic", "--out", "{tmp}/file/folder"], "{tmp}/file/folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments, hint = BAD[case]
    assert main(["toy", *(part.format(tmp=tmp_path) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evalkit: error: ")
    assert error.count("\n") == 1
    assert hint.format(tmp=tmp_path) in error


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match="evalkit toy"):
        read_toy(tmp_path)


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_toy(toy_of("logistic"), tmp_path)
    path = tmp_path / "trajectories.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[2] = lines[2].replace(",0,1,", ",0,one,")
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(EvalkitError, match=r"step in line 3 of .*found 'one'; make them with"):
        read_toy(tmp_path)

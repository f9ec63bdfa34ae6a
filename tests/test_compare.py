"""Trainings side by side: contenders, final losses, the gamma that is an optimizer's, and ranks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean, spearmanr

from evalkit.cli import main
from evalkit.report.comparison import compare_folders
from evalkit.results import correlations
from evalkit.results.comparisons import Comparison, shown_table
from evalkit.results.correlations import FEWEST, correlation, spearman
from evalkit.results.optimizer_ratios import stage_ratios
from evalkit.results.training_curves import accuracy_curves, loss_curves
from evalkit.results.trainings import contender_table, training_table
from tests.support.folders import sentence
from tests.support.written_trainings import write_scores, write_training

FINAL = {"sgd": 0.5, "ef": 2.0, "ief": 0.1, "sf": 0.6, "fgn": 0.2, "polyak": 0.15}


def trained(folder: Path, optimizer: str, final: float, seed: int = 0, **more: Any) -> Path:
    """Return the folder of a training of 200 steps whose last hundred have a mean loss."""
    losses = [3.0] * 100 + [final - 0.05, final + 0.05] * 50
    return write_training(folder / f"{optimizer}-{seed}", optimizer, losses, seed=seed, **more)


def study(folder: Path) -> tuple[list[Path], Path]:
    """Return runs of six optimizers, scored on their own trajectories, and one of reference."""
    runs = []
    for place, (optimizer, final) in enumerate(FINAL.items()):
        training = trained(folder, optimizer, final)
        ratio = [1.0 + 0.01 * place, 2.0 * final, 4.0 * final]
        ratios = {} if optimizer == "sgd" else {optimizer: ratio}
        runs.append(write_scores(folder / f"run-{optimizer}", training, ratios or {"ef": ratio}))
    adamw = trained(folder, "adamw", 0.12)
    runs.append(write_scores(folder / "run-adamw", adamw, {"optimizer": [0.9, 0.5, 0.4]}))
    of_reference = {name: [1.0, 5 - final, final] for name, final in FINAL.items() if name != "sgd"}
    return runs, write_scores(folder / "reference", adamw, of_reference)


def table_of(comparison: Comparison) -> pd.DataFrame:
    return contender_table(comparison.contenders).set_index("optimizer")


def test_the_final_loss_is_the_mean_of_the_last_hundred_steps(tmp_path: Path) -> None:
    draws = np.random.default_rng(0).exponential(1, 321)
    folder = write_training(tmp_path / "a", losses=draws.tolist(), accuracies=(0.1, 0.9, 0.8))
    row = table_of(compare_folders([folder])).loc["sgd"]
    assert row["final_loss_mean"] == pytest.approx(draws[-100:].mean(), rel=1e-12)
    assert math.isnan(row["final_loss_std"])
    assert row["best_validation_accuracy_mean"] == 0.9
    assert row["learning_rate"] == 0.1


def test_fewer_steps_are_said(tmp_path: Path) -> None:
    comparison = compare_folders([write_training(tmp_path / "a", losses=[2.0, 1.0, 0.5, 0.25])])
    assert table_of(comparison).loc["sgd", "final_loss_mean"] == 0.9375
    assert any("mean of 4 steps, fewer than 100" in note for note in comparison.notes)


def test_seeds_are_one_contender(tmp_path: Path) -> None:
    finals = (0.4, 0.5, 0.9)
    folders = [trained(tmp_path, "ief", final, seed) for seed, final in enumerate(finals)]
    comparison = compare_folders(folders)
    row = table_of(comparison).loc["ief"]
    assert row["seeds"] == 3
    assert row["final_loss_mean"] == pytest.approx(np.mean(finals))
    assert row["final_loss_std"] == pytest.approx(np.std(finals, ddof=1))
    curves = loss_curves(comparison.contenders)
    assert curves["loss_mean"].iloc[0] == 3
    assert curves["loss_mean"].iloc[-1] == pytest.approx(np.mean(finals))
    assert curves["loss_std"].iloc[-1] == pytest.approx(np.std(finals, ddof=1))
    accuracies = accuracy_curves(comparison.contenders)
    assert accuracies["progress"].tolist() == [0, 0.5, 1]
    assert accuracies["validation_accuracy_mean"].tolist() == pytest.approx([0.1, 0.9, 0.8])
    assert training_table(comparison.contenders)["final_loss"].tolist() == pytest.approx(finals)


def test_a_grid_is_told_apart_and_the_best_is_ranked(tmp_path: Path) -> None:
    rates = {1e-3: 0.5, 1e-2: 0.2, 1e-1: 0.4}
    folders = [
        trained(tmp_path / str(rate), "adamw", final, learning_rate=rate)
        for rate, final in rates.items()
    ]
    other = trained(tmp_path, "sgd", 0.6)
    comparison = compare_folders([*folders, other])
    names = [contender.name for contender in comparison.contenders]
    assert names == [*(f"adamw:learning_rate={rate:g}" for rate in rates), "sgd"]
    assert comparison.contenders[0].label == "AdamW (learning_rate=0.001)"
    assert [contender.name for contender in comparison.ranked] == [names[1], "sgd"]
    unranked = [note for note in comparison.notes if "not ranked" in note]
    assert len(unranked) == 2
    assert "AdamW (learning_rate=0.01) ended with a lower loss" in unranked[0]
    assert shown_table(comparison)["optimizer"].tolist()[0] == "AdamW (learning_rate=0.01)"


def test_gamma_of_an_optimizer_is_that_of_its_own_step(tmp_path: Path) -> None:
    runs, reference = study(tmp_path)
    comparison = compare_folders(runs, reference)
    own = comparison.ratios[comparison.ratios["trajectory"] == "own"]
    methods = own.groupby("optimizer", sort=False)["method"].unique().map(list).to_dict()
    assert methods == {name: [name] for name in FINAL} | {"adamw": ["optimizer"]}
    of_sgd = stage_ratios(comparison.ratios, "own", "sgd")
    assert of_sgd.iloc[0].tolist() == [pytest.approx(math.sqrt(1.1))] * 4
    of_ief = stage_ratios(comparison.ratios, "own", "ief").iloc[0]
    stages = math.sqrt(1.1) * np.array([1.02, 0.2, 0.4])
    assert of_ief[["start", "middle", "end"]].tolist() == pytest.approx(stages.tolist())
    assert of_ief["overall"] == pytest.approx(gmean(stages))
    there = stage_ratios(comparison.ratios, "reference", "ief").iloc[0]
    assert there["middle"] == pytest.approx(4.9 * math.sqrt(1.1))
    table = comparison.correlations.set_index(["trajectory", "stage"])
    gammas = [stage_ratios(comparison.ratios, "own", name)["end"][0] for name in methods]
    finals = table_of(comparison).loc[list(methods), "final_loss_mean"].tolist()
    rho = table.loc[("own", "end"), "rho"]
    assert rho == pytest.approx(spearmanr(gammas, finals).statistic)
    assert table.loc[("reference", "end"), ["rho", "optimizers"]].tolist() == [
        pytest.approx(spearmanr([1.05, 2, 0.1, 0.6, 0.2, 0.15], list(FINAL.values())).statistic),
        6,
    ]
    assert table.loc[("reference", "middle"), "rho"] < 0
    assert any("AdamW" in note and "no method 'optimizer'" in note for note in comparison.notes)


def test_what_cannot_be_paired_is_named(tmp_path: Path) -> None:
    muon = trained(tmp_path, "muon", 0.2)
    momentum = trained(tmp_path, "sgd", 0.3, momentum=0.9)
    kfac = trained(tmp_path, "kfac:labels=improved", 0.4)
    runs = [
        muon,
        write_scores(tmp_path / "momentum", momentum, {"ief": [1.0, 1.0]}),
        write_scores(tmp_path / "kfac", kfac, {"kfac": [1.0, 1.0]}),
    ]
    comparison = compare_folders(runs, runs[1])
    notes = {note.split(":")[0]: note for note in comparison.notes if "own trajectory" in note}
    assert "no RUN scores one of its trainings" in notes["Muon"]
    assert "holds no method 'optimizer'" in notes["SGD"]
    # Not `or 'optimizer'`: that method refuses optimizers whose step runs the forward.
    assert "no method 'kfac:labels=improved'; give" in notes["ieKFAC"]
    there = [note for note in comparison.notes if "reference" in note]
    assert len(there) == 3
    assert "rests on a state that only its own training has" in there[0]
    assert comparison.ratios.empty
    assert comparison.correlations.empty


def test_momentum_of_evalkits_own_optimizers_has_no_gamma_and_no_method_is_asked_for(
    tmp_path: Path,
) -> None:
    ief = trained(tmp_path, "ief", 0.2, momentum=0.5)
    run = write_scores(tmp_path / "run", ief, {"ief": [1.0, 0.5]})
    comparison = compare_folders([run], run)
    notes = [note for note in comparison.notes if "no gamma" in note]
    assert ["its own" in note for note in notes] == [True, False]
    assert all("momentum sums the directions" in note for note in notes)
    assert not any("'optimizer'" in note for note in comparison.notes)
    assert comparison.ratios.empty


@pytest.mark.parametrize(
    ("optimizer", "damping", "expected"),
    [
        ("ief", None, 1e-12),
        ("ief", 1e-3, 0.064),  # mean loss to sums over 8 samples
        ("kfac", 1e-3, 0.008),
        ("ief", 0.0, 1e-12),
    ],
)
def test_the_damping_is_that_of_the_training(
    tmp_path: Path, optimizer: str, damping: float | None, expected: float
) -> None:
    training = trained(tmp_path, optimizer, 0.2, damping=damping)
    dampings = (1e-12, 0.008, 0.064, 10.0)
    run = write_scores(tmp_path / "run", training, {optimizer: [1.0, 2.0]}, dampings)
    comparison = compare_folders([run])
    assert comparison.ratios["damping"].unique().tolist() == [expected]
    assert not any("the nearest" in note for note in comparison.notes)
    other = write_scores(tmp_path / "other", training, {optimizer: [1.0, 2.0]}, (3.0,))
    notes = [note for note in compare_folders([other]).notes if "the nearest" in note]
    assert len(notes) == (damping is not None)
    assert all(f" to the {expected if damping else 0:g} of its training" in one for one in notes)


def test_several_runs_of_one_training(tmp_path: Path) -> None:
    training = trained(tmp_path, "ief", 0.2)
    first = write_scores(tmp_path / "first", training, {"ef": [1.0, 2.0]})
    second = write_scores(tmp_path / "second", training, {"ief": [0.5, 0.5]})
    comparison = compare_folders([training, first, second])
    assert len(comparison.contenders) == 1
    assert comparison.ratios["method"].unique().tolist() == ["ief"]


def test_unfinished_and_old_trainings_are_said(tmp_path: Path) -> None:
    stopped = trained(tmp_path, "ief", 0.2, progress=0.5)
    old = write_training(tmp_path / "old", "ef", losses=None)
    skipping = trained(tmp_path, "sf", 0.3, skipped=7)
    comparison = compare_folders([stopped, old, skipping])
    assert table_of(comparison)["final_loss_mean"].isna().to_dict() == {
        "sf": False,
        "ief": True,
        "ef": True,
    }
    text = "\n".join(comparison.notes)
    assert "the training stopped at 50%" in text
    assert "no history.csv" in text
    assert "SF: 7 steps were skipped" in text
    assert table_of(comparison).loc["sf", "skipped"] == 7


def test_refusals(tmp_path: Path) -> None:
    first = trained(tmp_path, "sgd", 0.2)
    again = trained(tmp_path / "again", "sgd", 0.2)
    other = trained(tmp_path, "ief", 0.2, task="mlp-cifar10")
    samples = trained(tmp_path, "sf", 0.2, settings={"samples": 500})
    empty = tmp_path / "empty"
    empty.mkdir()
    half = tmp_path / "half"
    half.mkdir()
    (half / "unfinished.json").write_text("{}")
    gone = write_scores(tmp_path / "gone", tmp_path / "nowhere", {"ef": [1.0]})
    for folders, words in (
        ([first, again], "of seed 0 with the same settings"),
        ([first, first], "twice"),
        ([first, other], "'digits-mlp'"),
        ([first, samples], "samples=the default"),
        ([empty], "found neither"),
        ([tmp_path / "none"], "found no folder"),
        ([half], "with `resume`"),
        ([gone], "nothing at"),
    ):
        assert words in sentence(partial(compare_folders, folders))
    scored = write_scores(tmp_path / "other", other, {"ef": [1.0]}, task="mlp-cifar10")
    assert "'mlp-cifar10'" in sentence(partial(compare_folders, [first], scored))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("trajectory.json", "[]", "JSON object"),
        ("trajectory.json", '{"recipe": {"optimizer": 3}}', "a recipe with an optimizer"),
        ("trajectory.json", '{"recipe": {"optimizer": "sgd"}}', "a list of checkpoints"),
        (
            "trajectory.json",
            '{"recipe": {"optimizer": "sgd"}, "checkpoints": [{"progress": "x"}]}',
            "with its progress",
        ),
        ("history.csv", "step,loss\n1,2\n", "the columns"),
        (
            "history.csv",
            "step,epoch,progress,loss,learning_rate,skipped\n1,1,1,x,1,0\n",
            "a number as loss in line 2",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, file: str, content: str, words: str) -> None:
    folder = trained(tmp_path, "sgd", 0.2)
    (folder / file).write_text(content)
    text = sentence(partial(compare_folders, [folder]))
    assert words in text
    assert file in text


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    runs, reference = study(tmp_path)
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), "--reference", str(reference), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("iEF", "AdamW", "SGD")] == [
        "iEF",
        "AdamW",
        "SGD",
    ]
    assert "Rank correlation of gamma on each optimizer's own trajectory" in printed
    names = {"comparison.csv", "trainings.csv", "ratios.csv", "correlations.csv"}
    names |= {f"{name}.{kind}" for name in ("curves", "ranking") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == names
    assert main(["compare", str(runs[0]), str(runs[1])]) == 0
    printed = capsys.readouterr().out
    assert "optimizers that have both: 2; of fewer than 5 it means nothing" in printed
    assert "Nothing is written without --out" in printed
    assert main(["compare", str(tmp_path / "none")]) == 2


def test_rank_correlation_is_that_of_scipy() -> None:
    draws = np.random.default_rng(0)
    for count in (5, 9):
        first, second = draws.integers(0, 4, (2, 50, count)).astype(float)
        first[0, 0] = math.inf
        found = spearman(first, second)
        for place in range(50):
            if np.ptp(second[place]):
                expected = spearmanr(first[place].clip(max=100), second[place]).statistic
                assert found[place] == pytest.approx(expected)


def test_intervals_of_rank_correlations_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of normal pairs whose rank correlation is known, few of them and with a clear order too."""
    monkeypatch.setattr(correlations, "DRAWS", 500)
    draws = np.random.default_rng(1)
    for count in (5, 8, 11):
        for pearson in (0.0, 0.9):
            truth = 6 / math.pi * math.asin(pearson / 2)
            hits = 0
            for _ in range(40):
                first, noise = draws.normal(size=(2, count))
                second = pearson * first + math.sqrt(1 - pearson**2) * noise
                found = correlation([[x] for x in first], [[x] for x in second])
                assert found.low <= found.rho <= found.high
                hits += found.low <= truth <= found.high
            assert hits >= 0.85 * 40


def test_what_few_points_allow_to_say() -> None:
    rising = [[float(place)] for place in range(20)]
    assert math.isnan(correlation(rising[: FEWEST - 1], rising[: FEWEST - 1]).rho)
    five, ten = (correlation(rising[:count], rising[:count]) for count in (5, 10))
    assert (five.rho, five.statement) == (1, "undecided")
    assert (ten.rho, ten.statement) == (1, "positive")
    assert correlation(rising[:10], rising[9::-1]).statement == "negative"
    assert math.isnan(correlation(rising[:6], [[1.0]] * 6).rho)


def test_seeds_that_disagree_widen_the_interval() -> None:
    means = np.arange(8.0)
    steady = [[mean, mean] for mean in means]
    shaky = [[mean - 6, mean + 6] for mean in means]
    one, other = correlation(steady, steady), correlation(steady, shaky)
    assert one.rho == other.rho == 1
    assert other.low < one.low

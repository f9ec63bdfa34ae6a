"""Two processes that split a batch score it as one does, and none waits for one that fails."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import evalkit
from evalkit.checkpoints import open_trajectory
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.group import Group
from evalkit.linearization import split_gram
from evalkit.linearization.lost_ranks import LostRankError, lost_ranks
from evalkit.linearization.shares import shares_of
from evalkit.linearization.split import Split
from evalkit.study.running import run_study
from tests.support.dense import assert_near
from tests.support.ranks import together
from tests.support.small_studies import SMALL, save_checkpoint, task
from tests.support.split_failures import METHODS, Failing, InARow, failing, refused
from tests.support.split_scores import PARTS, SCORED, Scored, part, scored


def studied(split: Split | None, folder: Path, **more: Any) -> dict[str, pd.DataFrame]:
    """The tables of a small study."""
    folder.mkdir(exist_ok=True)
    for step in (1, 2):
        save_checkpoint(folder / "checkpoints", step)
    settings = replace(SMALL, dtype="float64")
    trajectory = open_trajectory(folder / "checkpoints")
    run_study(trajectory, more.pop("task", task()), settings, folder / "run", split=split, **more)
    return {path.name: pd.read_csv(path) for path in (folder / "run").glob("*.csv")}


def no_study(split: Split, folder: Path) -> str:
    """What is said of a study that only rank 1 cannot open."""

    def unusable() -> Any:
        raise EvalkitError("expected data here, found none; copy them")

    try:
        studied(split, folder, **({} if split.leads else {"task": task(unusable)}))
    except EvalkitError as error:
        return str(error)
    return ""


def work(rank: int) -> dict[Any, Any]:
    """Everything that a test looks at, in one order."""
    warnings.simplefilter("ignore")  # of forwards whose samples are not on axis 0
    torch.manual_seed(rank)
    for name, function in METHODS.items():
        evalkit.method(name)(function)
    split, found = Split(Group()), {}
    with tempfile.TemporaryDirectory() as folder:
        found["no study"] = no_study(split, Path(folder) / "none")
        found["study"] = studied(split, Path(folder))
    for what in SCORED:
        found[what] = scored(what, split)
    split_gram.MOST_SENT = 1 << 8
    for name in PARTS:
        found[name] = part(name, split)
    inputs = torch.arange(30.0).view(5, 6).sin()
    for where in ("forward", "backward"):
        model = Failing(where if rank else "")
        found[where] = failing(split, model, inputs)
    found["unusable"] = failing(split, Failing(""), inputs, unusable=rank == 1)
    found["in a row"] = failing(split, nn.Sequential(nn.Linear(6, 4), InARow()), inputs)
    for name in METHODS:
        found[name] = refused(split, name)
    found["after"] = scored(SCORED[1], split)
    return found


Both = tuple[dict[Any, Any], dict[Any, Any]]


@pytest.fixture(scope="module")
def both() -> Both:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo, by which processes of a CPU meet")
    return together(work)


ROUNDED = ("relative_residual", "error")
"""Columns that tell of rounding itself, and agree to what their size says of scores."""


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare every column, numbers to 1e-10."""
    assert list(found) == list(expected)
    for column in expected:
        one, other = found[column], expected[column]
        if expected[column].dtype != float:
            assert list(one.fillna("")) == list(other.fillna("")), column
        elif column in ROUNDED:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-8, err_msg=column)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14, err_msg=column)


@pytest.mark.parametrize("what", SCORED, ids=lambda what: f"{what.case}-{what.samples}")
def test_every_score_is_that_of_one_process(both: Both, what: Scored) -> None:
    found, expected = both[0][what], scored(what)
    assert expected is not None
    assert both[1][what] is None
    assert_same(pd.DataFrame(found.scores), pd.DataFrame(expected.scores))
    assert_same(pd.DataFrame(found.batches), pd.DataFrame(expected.batches))


@pytest.mark.parametrize("name", PARTS)
def test_inner_products_are_those_of_one_process(both: Both, name: str) -> None:
    expected = part(name)
    assert both[0][name].keys() >= expected.keys()
    for key, value in expected.items():
        assert_near(both[0][name][key], value, 1e-10)


def test_a_study_is_that_of_one_process(both: Both, tmp_path: Path) -> None:
    expected = studied(None, tmp_path)
    for name, table in expected.items():
        assert_same(both[0]["study"][name], table)
    assert both[1]["study"] == {}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("forward", "no forward here"),
        ("backward", "no backward here"),
        ("unusable", "a file of this node"),
        ("in a row", "depend on"),
        ("test-raises", "expected nothing of 194 numbers"),
        ("test-takes-module", "leave the method out, or `split_batch`"),
        ("test-takes-rows", "ask for `gram_of`"),
    ],
)
def test_rank_0_says_what_fails_anywhere(both: Both, what: str, said: str) -> None:
    assert said in both[0][what]
    assert both[1][what] == ""


def test_a_study_that_one_process_cannot_open_is_refused_in_all(both: Both) -> None:
    for found in both:
        assert "expected data here" in found["no study"]


def test_processes_go_on_after_errors(both: Both) -> None:
    assert_same(pd.DataFrame(both[0]["after"].scores), pd.DataFrame(both[0][SCORED[1]].scores))


@pytest.mark.parametrize(("samples", "size"), [(5, 2), (1, 2), (7, 3), (2, 4)])
def test_shares_cover_a_batch(samples: int, size: int) -> None:
    counts = [one.stop - one.start for one in shares_of(samples, size)]
    assert sum(counts) == samples
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


def test_one_process_without_a_group_has_the_whole_batch() -> None:
    what = Scored("mlp_categorical", methods=("sgd", "ief"))
    found, expected = scored(what, Split(Group())), scored(what)
    assert found is not None
    assert expected is not None
    assert_same(pd.DataFrame(found.scores), pd.DataFrame(expected.scores))


def test_a_rank_that_is_gone_is_told_in_a_sentence() -> None:
    with pytest.raises(LostRankError, match="has ended or does not answer") as caught, lost_ranks():
        raise RuntimeError("Connection closed by peer")
    assert "start the command again" in str(caught.value)


@pytest.mark.parametrize("more", [[], ["--shard", "1/2"]])
def test_one_process_has_nobody_to_split_with(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "checkpoints", 1)
    arguments = ["score", str(tmp_path / "checkpoints"), "--split-batch", *more]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "torchrun --nproc-per-node K -m evalkit score" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

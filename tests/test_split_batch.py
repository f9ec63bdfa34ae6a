"""Two processes that split a batch score it as one does, and none waits for one that fails."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.checkpoints import open_trajectory
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.group import Group
from evalkit.layers.budget import Budget
from evalkit.linearization import split_gram
from evalkit.linearization.shares import shares_of
from evalkit.linearization.split import LostRankError, Split, lost_ranks
from evalkit.settings import Settings
from evalkit.storage.rows import Cell
from evalkit.study.execute import Rows, execute
from evalkit.study.plan import Unit
from evalkit.study.running import run_study
from evalkit.updates.registry import takes_optimizer, takes_past
from tests.support.cases import CASES
from tests.support.dense import assert_near
from tests.support.ranks import together
from tests.support.small_studies import SMALL, save_checkpoint, task
from tests.support.table import Batch

SAMPLED = {"sf": "sf:labels_per_sample=2"}
ALL = tuple(
    SAMPLED.get(name, name)
    for name in evalkit.methods()
    if name != "ngd" and not takes_past(name) and not takes_optimizer(name)
)
"""Every method that is not given more than a model and a batch, but for NGD."""
SOLVED = ("ngd:solver=direct", "ngd:solver=sketch", "ngd:solver=cg:max_iterations=5")
SOME = ("ef", "ief", "sf", "kfac", "ngd:solver=direct", SOLVED[-1])


@dataclass(frozen=True)
class Scored:
    """A batch that is scored.

    Attributes:
        case: its name in the table.
        samples: of it that are taken, None for all.
        methods: that score it.
        size: of micro-batches.
        others: what is made of parameters without factors.
        dampings: at which they score it.
    """

    case: str
    samples: int | None = 5
    methods: tuple[str, ...] = SOME
    size: int | None = None
    others: Any = "block"
    dampings: tuple[float, ...] = (1e-2,)

    def batch(self) -> Batch:
        """The samples that are taken."""
        made = CASES[self.case].make()
        if self.samples is None:
            return made
        here = slice(0, self.samples)
        return made._replace(inputs=made.inputs[here], targets=made.targets[here])


SCORED = (
    Scored("mlp_categorical", methods=(*ALL, *SOLVED)),
    Scored("mlp_categorical", 1),
    Scored("mlp_bernoulli", size=2, dampings=(1e-3, 1e-2)),
    Scored("mlp_gaussian", methods=("ief", "ngd:solver=direct")),
    Scored("convolution_group_norm", methods=("ief", "kfac"), size=2, others="leave"),
    Scored("token_labels", methods=("ief", "kfac", "sf"), others="gradient"),
    Scored("embedding_tied_by_function", None, ("ief", "ngd:solver=direct")),
    Scored("module_used_twice", methods=("ief", "kfac"), size=2),
    Scored("prompt_by_repeat", methods=("ief", "ngd:solver=sketch")),
)


def scored(what: Scored, split: Split | None = None) -> Rows | None:
    """The rows of a unit, in the process that leads."""
    model, inputs, targets, likelihood = what.batch()
    if split is not None and not split.leads:
        split.follow(lambda: (model, inputs, targets))
        return None
    settings = Settings(what.methods, what.dampings, micro_batch_size=what.size, others=what.others)
    pairs = frozenset((name, damping) for name in what.methods for damping in what.dampings)
    unit = Unit(Cell("a", 0, 0.0, 0), pairs)
    with nullcontext() if split is None else split.leading():
        return execute(model, (inputs, targets), likelihood, settings, unit, "t", split=split)


class OneWayOrOther(nn.Module):
    """A layer that is called in a share of three samples, and multiplied by hand elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            return self.layer(x).tanh()
        return (x @ self.layer.weight.T + self.layer.bias).tanh()


def by_hand() -> Batch:
    """A batch of five samples, whose shares reach one layer in different ways."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 6, generator=generator).double()
    torch.manual_seed(0)
    return Batch(OneWayOrOther().double(), inputs, torch.tensor([0, 1, 2, 3, 1]), "categorical")


TINY = Budget(elements=7, formed=5, held=300)
"""So little that nothing is held at once."""
PARTS: dict[str, tuple[Callable[[], Batch], Budget | None]] = {
    "other ways": (by_hand, None),
    "other ways in parts": (by_hand, TINY),
    "no rule in parts": (CASES["weight_normalised"].make, TINY),
}


def matrices(batch: Batch, budget: Budget | None, split: Split | None = None) -> dict[str, Tensor]:
    """Inner products of all kinds, of the whole model and by blocks, and what rows make."""
    model, inputs, targets, likelihood = batch
    more = {} if budget is None else {"budget": budget}
    lin = evalkit.linearize(model, inputs, targets, likelihood, split=split, **more)
    c = torch.stack([lin.logit_gradients, lin.logits.double()])
    found = {"gram": lin.gram, "of": lin.gram_of(c), "rows": lin.sample_gradients(c)}
    found["others"] = lin.inner_products(c, c[:1], "some")
    found["again"] = lin.inner_products(c[:1], c[:1], "some")
    blocks = lin.gram_blocks(c)
    sums = {name: one.sum(0) for names, one in blocks.items() for name in names}
    weights = torch.linspace(1, 2, lin.num_samples).double()
    found["weighted"] = lin.weighted_product([(lin.logit_gradients, weights), (c[1], weights)])
    found["fvp"] = lin.fvp(lin.gradient)
    return found | {name: sums[name] for name in lin.parameters if (name,) in blocks}


def part(name: str, split: Split | None = None) -> dict[str, Tensor]:
    """The matrices of one of the batches above."""
    made, budget = PARTS[name]
    batch = made()
    if split is None:
        return matrices(batch, budget)
    if not split.leads:
        split.follow(lambda: (batch.model, batch.inputs, batch.targets))
        return {}
    with split.leading():
        return matrices(batch, budget, split)


class Failing(nn.Module):
    """A layer that fails in one of its passes."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer, self.where = nn.Linear(6, 4), where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "forward":
            raise ValueError("no forward here")
        out = self.layer(x)
        if self.where == "backward" and out.requires_grad:
            out.register_hook(self._fail)
        return out

    def _fail(self, gradient: Tensor) -> Tensor:
        raise ValueError("no backward here")


def raises(lin: evalkit.Linearization, damping: float) -> Tensor:
    """Fail after a product."""
    raise EvalkitError(f"expected nothing of {len(lin.gradient)} numbers; leave it out")


def takes_module(lin: evalkit.Linearization, damping: float) -> Tensor:
    """Run the model alone."""
    lin.module_and_batch()
    return lin.gradient


def takes_rows(lin: evalkit.Linearization, damping: float) -> Tensor:
    """Take rows as layers have them."""
    lin.gradient_rows(lin.logit_gradients.unsqueeze(0))
    return lin.gradient


METHODS = {"test-raises": raises, "test-takes-module": takes_module, "test-takes-rows": takes_rows}
"""Registered in the processes that are started, and not where other tests go on."""


def failing(split: Split, model: nn.Module, inputs: Tensor, unusable: bool = False) -> str:
    """What is said of a batch that cannot be scored."""
    targets = torch.zeros(len(inputs), dtype=torch.long)

    def prepare() -> tuple[nn.Module, Tensor, Tensor]:
        if unusable:
            raise EvalkitError("expected a file of this node, found none; copy it")
        return model, inputs, targets

    try:
        if not split.leads:
            split.follow(prepare)
            return ""
        with split.leading():
            lin = evalkit.linearize(model, inputs, targets, split=split)
            return f"{float(lin.gram.sum()):.3g}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refused(split: Split, method: str) -> str:
    """What is said of a method that is refused."""
    try:
        scored(Scored("mlp_categorical", methods=(method,)), split)
    except EvalkitError as error:
        return str(error)
    return ""


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


class InARow(nn.Module):
    """Samples that see the one before them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 0) * torch.arange(4)


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

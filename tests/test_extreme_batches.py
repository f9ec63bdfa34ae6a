"""Batches at the ends of the number range: right numbers, or errors that say that none is known."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import evalkit
from evalkit.doubts import MARKED
from evalkit.reductions import norm
from evalkit.scoring.metrics import imbalance
from tests.support.strategies import Plan

UNDAMPED = ("sgd", "ef", "ief", "polyak", "sf", "ngd")


class Table(nn.Module):
    """Logits are the parameters, times a constant."""

    def __init__(self, logits: list[list[float]], factor: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits).double())
        self.factor = factor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.factor * self.logits[rows]


def table(model: nn.Module, targets: torch.Tensor, likelihood: str = "categorical"):
    return model, torch.arange(len(targets)), targets, likelihood


def test_jacobians_whose_squares_underflow_in_float32_are_found_in_float64() -> None:
    model = Table([[1.0], [2.0]], factor=2.0**-100).float()
    batch = table(model, torch.zeros(2, 1), "gaussian")
    rows = evalkit.score(*batch, methods=UNDAMPED, damping=0.0)
    floor = 1 / (math.sqrt(5.0) * 2.0**-100)
    assert rows["dtype"].tolist() == ["float64"] * len(UNDAMPED)
    assert rows["gamma"][0] == pytest.approx(floor, rel=1e-12)
    assert rows["gamma"][5] == pytest.approx(floor, rel=1e-12)
    rows = evalkit.score(*batch, methods=UNDAMPED, damping=0.0, dtype="float32")
    assert (rows["error"] == math.inf).all()


def test_a_batch_that_is_fitted_beyond_the_smallest_number_has_no_known_gamma() -> None:
    model = Table([[0.0, 800.0], [0.0, 900.0]])
    rows = evalkit.score(*table(model, torch.ones(2).long()), methods=("sgd", "ef"), damping=0.0)
    assert (rows["gamma"] == math.inf).all()
    assert (rows["error"] == math.inf).all()


def test_a_batch_without_any_gradient_has_a_gamma_that_is_known_to_be_infinite() -> None:
    model = Table([[1.0], [2.0]])
    batch = table(model, model.logits.detach().clone(), "gaussian")
    rows = evalkit.score(*batch, methods=("sgd", "ef"), damping=1.0)
    assert (rows["gamma"] == math.inf).all()
    assert (rows["error"] == 0).all()


def test_samples_fitted_to_1e_170_keep_their_gamma_floor_and_imbalance() -> None:
    model = Table([[0.0, 400.0], [0.0, 1.0]])
    lin = evalkit.linearize(*table(model, torch.ones(2).long()))
    small, large = math.exp(-400.0), 1 / (1 + math.exp(1.0))
    assert imbalance(lin.logit_gradient_norms) == pytest.approx(large / small, rel=1e-12)
    assert imbalance(lin.gradient_norms) == pytest.approx(large / small, rel=1e-12)
    alone = evalkit.score(*table(Table([[0.0, 300.0]]), torch.ones(1).long()), methods="sgd")
    assert alone["gamma"][0] == pytest.approx(math.exp(150.0), rel=1e-10)


def test_the_floor_of_samples_whose_floor_terms_vanish() -> None:
    """f = e^-1024 is no float64, the floor e^512 is one; of soft targets f = e^1024 / 4 is none."""
    model = Table([[1024.0], [-1024.0]])
    lin = evalkit.linearize(*table(model, torch.tensor([[1.0], [0.0]]).double(), "bernoulli"))
    assert lin.gamma_floor == pytest.approx(math.exp(512.0) / math.sqrt(2.0), rel=1e-12)
    lin = evalkit.linearize(*table(model, torch.tensor([[0.5], [0.5]]).double(), "bernoulli"))
    assert lin.gamma_floor == pytest.approx(2 * math.exp(-512.0) / math.sqrt(2.0), rel=1e-12)


def test_lengths_whose_squares_underflow() -> None:
    """iEF of samples fitted to 1e-57 has a length of 1e-169 at damping 1: |r|^2 |g|."""
    model = Table([[0.0, 130.0]])
    batch = table(model, torch.ones(1).long())
    row = evalkit.score(*batch, methods="ief", damping=1.0).iloc[0]
    r = math.sqrt(2.0) * math.exp(-130.0)
    assert row.norm == pytest.approx(r**3, rel=1e-10)
    assert row.cosine_sgd == pytest.approx(1.0, rel=1e-10)
    assert row.gamma == pytest.approx(math.exp(65.0), rel=1e-10)
    assert row.error < MARKED


@pytest.mark.parametrize("size", [1e-310, 1e-170, 1e-30, 1.0, 1e30, 1e170, 4e307])
def test_norms_over_the_whole_range(size: float) -> None:
    assert norm(size * torch.tensor([3.0, 4.0]).double()) == pytest.approx(5 * size, rel=1e-12)


def test_norms_of_what_is_no_number() -> None:
    assert norm(torch.tensor([math.inf, 1.0])) == math.inf
    assert math.isnan(norm(torch.tensor([math.nan, 1.0])))
    assert norm(torch.zeros(3)) == norm(torch.zeros(0)) == 0.0


@pytest.mark.parametrize("solver", ["direct", "cg", "auto"])
def test_a_loss_whose_exponential_overflows(solver: str) -> None:
    """e^755 is no float64, the floor e^(-755/2) is one."""
    model = Table([[0.0, 755.0], [0.0, 1.0]])
    batch = table(model, torch.zeros(2).long())
    assert evalkit.linearize(*batch).gamma_floor == pytest.approx(math.exp(-377.5), rel=1e-9)
    rows = evalkit.score(*batch, methods=f"ngd:solver={solver}", damping=1e-3)
    assert rows["gamma"][0] >= math.exp(-377.5)


def test_targets_of_one_half_keep_the_digits_of_small_logits() -> None:
    model = Table([[2.0**-20], [-(2.0**-30)]])
    lin = evalkit.linearize(*table(model, torch.full((2, 1), 0.5).double(), "bernoulli"))
    z = model.logits.detach()
    torch.testing.assert_close(lin.logit_gradients, (z / 2).tanh() / 2, rtol=1e-14, atol=0)
    floor = float((z / 2).sinh().square().sum()) ** -0.5
    assert lin.gamma_floor == pytest.approx(floor, rel=1e-12)


def test_undamped_weights_of_a_gradient_that_the_decomposition_hides() -> None:
    """A sample of gradient 1e-57 decides EF's direction, and no singular value shows it."""
    plan = Plan(
        inputs="images",
        blocks=("square",),
        samples=4,
        width=1,
        classes=4,
        power=6,
        head_bias=False,
        dtype="float64",
        seed=4,
    )
    rows = evalkit.score(*plan.make(), methods=("ef", "ief", "polyak"), damping=0.0)
    assert (rows["error"] > MARKED).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_of_a_gradient_that_the_decomposition_loses(dtype: str) -> None:
    """Of samples of |G| 1e-22 and 506, and one of none, singular values show one direction.

    FGN asks e^96 of the long one: undamped, its direction is turned away from the short one.
    """
    plan = Plan(
        inputs="images",
        blocks=("tied",),
        samples=3,
        width=1,
        power=6,
        fitted="one",
        head_bias=False,
        seed=636,
    )
    exact = {"ef": 3.8203247677782036e-13, "fgn": 2.368739411997784e-14}  # of ball arithmetic
    for (method, gamma), damping in zip(exact.items(), (1e-12, 0.0), strict=True):
        row = evalkit.score(*plan.make(), methods=method, damping=damping, dtype=dtype).iloc[0]
        assert abs(row.gamma / gamma - 1) <= row.error
        assert row.error < MARKED or not damping


def test_tikhonov_ief_of_a_sample_whose_gradient_is_rounded_to_zero() -> None:
    """G_n / |r_n| has a length however small r_n is."""
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.constant_(model.weight, 0.0)
    with torch.no_grad():
        model.weight[1] = 1.0
    inputs = torch.tensor([[1.0], [900.0]]).double()
    rows = evalkit.score(model, inputs, torch.ones(2).long(), methods="ief-tikhonov", damping=1.0)
    assert rows["error"][0] == math.inf


X = torch.tensor([[2.0, 1.0, 0.5], [-1.0, 1.0, 0.25], [0.5, -0.75, 1.5]]).double()


def fitted_to(margin: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor, str]:
    """Three samples and weights, one output: z = X w = (margin, 1, -1/2), all labels one."""
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        wanted = torch.tensor([margin, 1.0, -0.5]).double()
        model.weight.copy_(torch.linalg.solve(X, wanted)[None])
    return model, X, torch.ones(3, 1).double(), "bernoulli"


def along_samples(method: str, model: nn.Module) -> torch.Tensor:
    """X d where no damping hides a sample: each asks for its own part, whatever its length."""
    p = model(X).detach().sigmoid()[:, 0]
    r = -(-model(X).detach()).sigmoid()[:, 0]
    if method in ("fgn", "fgn-tikhonov", "block:labels=floor"):
        return -1 / p
    if method == "polyak":
        return -torch.where(r == 0, 1.0, -p.log() / r.abs())
    return r


@pytest.mark.parametrize("margin", [20.0, 500.0, 720.0, 800.0])
@pytest.mark.parametrize(
    "method",
    [
        "ief",
        "fgn",
        "polyak",
        "ief-tikhonov",
        "fgn-tikhonov",
        "block:labels=improved",
        "block:labels=floor",
        "best-weights",
    ],
)
def test_undamped_sums_state_what_a_fitted_sample_asks_for(method: str, margin: float) -> None:
    """At 500, |G_n|^2 underflows; at 720, r_n has few digits left; at 800, none."""
    batch = fitted_to(margin)
    lin = evalkit.linearize(*batch)
    wanted = lin.gamma_floor
    if method != "best-weights":
        z = lin.logits[:, 0]
        u, p = along_samples(method, batch[0]), z.sigmoid()
        squares = p * (-z).sigmoid() * u.square()
        wanted = math.sqrt(float(squares.sum())) / abs(float(u @ lin.logit_gradients[:, 0]))
    row = evalkit.score(*batch, methods=method, damping=0.0).iloc[0]
    assert abs(row.gamma / wanted - 1) <= row.error
    assert row.error < MARKED or margin > 20


@pytest.mark.parametrize("norm", ["sample", "position"])
def test_normalised_logit_gradients_that_are_rounded_to_zero(norm: str) -> None:
    """The first sample, or one label position of it, is fitted beyond the smallest number."""
    several = norm == "position"
    rows = torch.tensor([[0, 1], [1, 1], [2, 2]] if several else [0, 1, 2])
    model = Table([[0.0, 900.0], [0.0, 1.0], [0.5, 0.0]])
    batch = model, rows, torch.ones(rows.shape).long()
    settings = f"labels=improved:norm={norm}"
    methods = tuple(f"{name}:{settings}" for name in ("block", "kfac", "diagonal", "fop"))
    layer = nn.Sequential(model, nn.Linear(2, 2).double())
    with torch.no_grad():
        layer[1].weight.copy_(torch.eye(2))
    scores = evalkit.score(layer, *batch[1:], methods=methods, damping=1.0)
    assert (scores["error"] == math.inf).all()
    with torch.no_grad():
        model.logits[0, 1] = 9.0
    scores = evalkit.score(layer, *batch[1:], methods=methods, damping=1.0)
    assert (scores["error"] < MARKED).all()
    with torch.no_grad():
        model.logits[0, 1] = 900.0
    with pytest.raises(evalkit.EvalkitError, match="labels=improved"):
        evalkit.past_task(layer, [batch[1:]], labels="improved", norm=norm)


def test_sampled_fisher_of_repeated_samples_is_not_a_direction_without_a_gradient() -> None:
    plan = Plan(
        inputs="features",
        blocks=("matrix", "frozen"),
        likelihood="gaussian",
        samples=2,
        classes=2,
        power=-20,
        same="two",
        head_bias=False,
        dtype="float32",
        seed=850,
    )
    rows = evalkit.score(*plan.make(), methods="sf", damping=0.0)
    assert rows["gamma"][0] > 0
    assert rows["error"][0] > MARKED


def test_conjugate_gradients_that_end_at_once_leave_what_the_floor_shows() -> None:
    """Two samples that are nearly one: g has nearly no part of what parts them."""
    plan = Plan(
        inputs="positions", blocks=(), samples=2, width=2, classes=2, power=6, fitted="all",
        same="nearly two", head_bias=False, seed=0,
    )  # fmt: skip
    rows = evalkit.score(*plan.make(), methods="ngd:solver=cg", damping=0.0)
    assert rows["gamma"][0] * rows["efficiency"][0] * (1 + rows["error"][0]) >= rows["gamma"][0]


class Wide(nn.Module):
    """Two layers, so that methods by layers have blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def out_of_range(kind: str, size: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor, str]:
    """Finite numbers whose squares or exponentials are not."""
    torch.manual_seed(0)
    model, inputs = Wide().double(), torch.randn(4, 3).double()
    if kind == "targets":
        return model, inputs, size * torch.randn(4, 3).double(), "gaussian"
    inputs[0] *= size
    return model, inputs, torch.tensor([0, 1, 2, 1]), "categorical"


@pytest.mark.parametrize(
    ("method", "kind", "size", "named"),
    [
        ("ef", "inputs", 1e154, "nearer to order one"),
        ("ngd:solver=direct", "inputs", 1e80, "nearer to order one"),
        ("kfac", "inputs", 1e154, "nearer to order one"),
        ("block:labels=exact", "inputs", 1e154, "nearer to order one"),
        ("eva", "targets", 1e120, "nearer to order one"),
        ("swan", "targets", 1e160, "nearer to order one"),
        ("fgn", "inputs", 1e4, "whose loss is"),
        ("fgn-tikhonov", "inputs", 1e4, "whose loss is"),
        ("kfac:labels=floor", "inputs", 1e4, "whose loss is"),
        ("ief", "targets", 1e160, "whose loss is"),
        ("polyak", "targets", 1e160, "whose loss is"),
    ],
)
def test_numbers_beyond_the_range_are_a_sentence_with_advice_that_helps(
    method: str, kind: str, size: float, named: str
) -> None:
    batch = out_of_range(kind, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(evalkit.EvalkitError, match=named) as caught:
            evalkit.score(*batch, methods=method, damping=1e-12)
    assert "damping" not in str(caught.value)


@pytest.mark.parametrize("kind", ["EF", "FGN", "SF", "kfac"])
def test_steps_whose_numbers_leave_the_range_are_skipped(kind: str) -> None:
    model, inputs, targets, likelihood = out_of_range("inputs", 1e154)
    before = [p.detach().clone() for p in model.parameters()]
    settings = {"lr": 1.0, "on_failure": "skip", "likelihood": likelihood}
    own = getattr(evalkit.optim, kind, None)
    optimizer = (
        own(model.parameters(), **settings)
        if own
        else evalkit.optim.Preconditioned(model.parameters(), kind, **settings)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(lambda: (model(inputs), targets))
    assert optimizer.skipped == 1
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_best_weights_without_a_gradient_that_floating_point_sees() -> None:
    model = Table([[1.0, 2.0], [0.5, 1.0]], factor=1e-320)
    rows = evalkit.score(*table(model, torch.ones(2).long()), methods="best-weights")
    assert rows["error"][0] == math.inf

"""KFAC and EKFAC of curvlinops as methods: its operators' inverses beside ours, and the example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support.cases import Batch, Draw, Net
from tests.support.documents import document, python_files
from tests.support.table import initialise

curvlinops = pytest.importorskip("curvlinops", reason="the peer is not installed: it is in [dev]")

DAMPING = 1e-2
LOSSES = {
    "categorical": nn.CrossEntropyLoss(reduction="sum"),
    "bernoulli": nn.BCEWithLogitsLoss(reduction="sum"),
    "gaussian": nn.MSELoss(reduction="sum"),
}
TYPES = {"exact": "type-2", "empirical": "empirical"}
TWICE = {"exact": 2.0, "empirical": 4.0}
"""How many times ours its matrix is where its loss is twice ours."""


@dataclass(frozen=True)
class Peer:
    """What of curvlinops is one of our methods.

    Attributes:
        kind: its operator.
        sharing: what it calls it.
        damped: returns the arguments of the inverse for (lambda, how many times ours its B is).
    """

    kind: str = "KFACLinearOperator"
    sharing: str = "expand"
    damped: Callable[[float, float], dict[str, Any]] = lambda damping, times: {
        "damping": times * damping,
        "use_exact_damping": True,
    }

    def direction(self, batch: Batch, labels: str) -> Tensor:
        """(F + lambda I)^-1 g."""
        lin = evalkit.linearize(*batch)
        model, inputs, targets = lin.module_and_batch()
        operator = getattr(curvlinops, self.kind)(
            model,
            LOSSES[batch.likelihood],
            [value for value in model.parameters() if value.requires_grad],
            [(inputs, targets)],
            fisher_type=TYPES[labels],
            kfac_approx=self.sharing,
            separate_weight_and_bias=False,
        )
        times = TWICE[labels] if batch.likelihood == "gaussian" else 1.0
        inverse = curvlinops.KFACInverseLinearOperator(operator, **self.damped(DAMPING, times))
        return times * (inverse @ lin.gradient)


PEERS = {
    "kfac": Peer(),
    "kfac:sharing=reduce": Peer(sharing="reduce"),
    "ekfac": Peer("EKFACLinearOperator"),
    "kfac:style=pi": Peer(
        damped=lambda damping, times: {
            "damping": times * damping,
            "use_heuristic_damping": True,
            "min_damping": 0.0,
        }
    ),
    "kfac:sharing=reduce:style=plain": Peer(
        sharing="reduce", damped=lambda damping, times: {"damping": (damping, times * damping)}
    ),
}


def made(
    likelihood: str, *layers: nn.Module, pooled: bool = False, size: tuple[int, ...] = (4,)
) -> Batch:
    """A model with three outputs and six samples of a size."""
    draw, body = Draw(0), nn.Sequential(*layers).double()
    initialise(body, draw)
    model = Net(lambda net, x: net.body(x).mean(1), body=body) if pooled else body
    targets = {
        "categorical": draw.integers(3, 6),
        "bernoulli": draw.bits(6, 3),
        "gaussian": draw.normal(6, 3),
    }[likelihood]
    return Batch(model, draw.normal(6, *size), targets, likelihood)


def perceptron(likelihood: str, **settings: Any) -> Batch:
    return made(likelihood, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), **settings)


def frozen() -> Batch:
    batch = perceptron("categorical")
    batch.model[0].bias.requires_grad_(False)
    return batch


BATCHES: dict[str, Callable[[], Batch]] = {
    "categorical": lambda: perceptron("categorical"),
    "bernoulli": lambda: perceptron("bernoulli"),
    "gaussian": lambda: perceptron("gaussian"),
    "frozen bias": frozen,
    "positions": lambda: perceptron("categorical", pooled=True, size=(3, 4)),
    "convolutions": lambda: made(
        "categorical",
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 3),
        size=(2, 6, 6),
    ),
}


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).norm()) <= 1e-9 * float(wanted.norm())


@pytest.mark.parametrize("labels", TYPES)
@pytest.mark.parametrize("name", BATCHES)
def test_directions_are_those_of_the_operators(name: str, labels: str) -> None:
    batch = BATCHES[name]()
    lin = evalkit.linearize(*batch)
    for text, peer in PEERS.items():
        ours = evalkit.update(f"{text}:labels={labels}", lin, damping=DAMPING)
        assert_same(peer.direction(batch, labels), ours)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_labels_at_every_position(sharing: str) -> None:
    """Its loss has classes on axis 1; what it pulls back with other labels is another matrix."""
    draw = Draw(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    initialise(body, draw)
    x, y = draw.normal(6, 2, 4), draw.integers(3, 6, 2)
    lin = evalkit.linearize(body, x, y)
    turned = Net(lambda net, x: net.body(x).mT, body=body)
    operator = curvlinops.KFACLinearOperator(
        turned,
        LOSSES["categorical"],
        list(turned.parameters()),
        [(x, y)],
        fisher_type="empirical",
        kfac_approx=sharing,
        separate_weight_and_bias=False,
    )
    inverse = curvlinops.KFACInverseLinearOperator(
        operator, damping=DAMPING, use_exact_damping=True
    )
    ours = evalkit.update(f"kfac:labels=empirical:sharing={sharing}", lin, damping=DAMPING)
    assert_same(inverse @ lin.gradient, ours)


@pytest.fixture
def example() -> str:
    """The name of the method of the documentation."""
    exec(python_files(document("guides/method.md"))["curvlinops_kfac.py"], {})
    return "curvlinops-kfac"


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_the_method_of_the_documentation(example: str, micro_batch_size: int | None) -> None:
    batch = BATCHES["convolutions"]()
    for dtype in (torch.float32, torch.float64):
        model = batch.model.to(dtype)
        rows = evalkit.score(
            model,
            batch.inputs.to(dtype),
            batch.targets,
            methods=("kfac:labels=empirical", example),
            damping=(1e-6, 1e-2),
            micro_batch_size=micro_batch_size,
        ).pivot(index="damping", columns="method", values="gamma")
        ratio = rows[example] / rows["kfac:labels=empirical"] - 1
        assert ratio.abs().max() < (1e-4 if dtype == torch.float32 else 1e-9)


def test_the_module_is_a_copy_in_the_precision_of_the_evaluation() -> None:
    batch = perceptron("gaussian")
    given = batch.model.float()
    lin = evalkit.linearize(given, batch.inputs.float(), batch.targets, "gaussian", dtype="float64")
    model, inputs, targets = lin.module_and_batch()
    assert {value.dtype for value in (*model.parameters(), inputs, targets)} == {torch.float64}
    assert torch.equal(model(inputs), lin.logits)
    assert all(
        torch.equal(one, other.double()) and one is not other
        for one, other in zip(model.parameters(), given.parameters(), strict=True)
    )


def test_no_damping_is_refused(example: str) -> None:
    with pytest.raises(evalkit.EvalkitError, match="damping above 0"):
        evalkit.score(*BATCHES["categorical"](), methods=example, damping=0.0)

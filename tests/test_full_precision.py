"""Products keep all digits of float32, whatever torch was told before, and it stays told so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import evalkit
from evalkit.evaluation.full_precision import full_precision
from tests.support.table import Batch, Draw, initialise

PLACES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def place(name: str) -> object:
    library, operation = name.split(".")
    return getattr(getattr(torch.backends, library), operation, None)


def switches() -> list[str | None]:
    return [getattr(place(name), "fp32_precision", None) for name in PLACES]


newer = pytest.mark.skipif(None in switches(), reason="this torch has older switches alone")


@pytest.fixture(autouse=True)
def told_as_before() -> Iterator[None]:
    """Torch is told again what it was told before the test."""
    before = switches()
    yield
    torch.set_float32_matmul_precision("highest")
    for name, value in zip(PLACES, before, strict=True):
        if value is not None:
            place(name).fp32_precision = value  # type: ignore[attr-defined]


def _newer(name: str, value: str) -> Callable[[], None]:
    return lambda: setattr(place(name), "fp32_precision", value)


ASKED: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "bfloat16 of oneDNN": _newer("mkldnn.matmul", "bf16"),
    "convolutions of oneDNN": _newer("mkldnn.conv", "bf16"),
    "TF32 of cuBLAS": _newer("cuda.matmul", "tf32"),
    "one switch of cuDNN": _newer("cudnn.conv", "ieee"),
}


def wide() -> Batch:
    """Wide enough for oneDNN to take its short numbers."""
    draw = Draw(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 200), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(200, 5))
    initialise(model, draw)
    return Batch(
        model.float(), draw.normal(40, 3, 8, 8).float(), draw.integers(5, 40), "categorical"
    )


@newer
@pytest.mark.parametrize("asked", ASKED)
def test_scores_and_products_do_not_change(asked: str) -> None:
    batch = wide()
    table = evalkit.score(*batch, damping=1e-3)
    lin = evalkit.linearize(*batch)
    v = Draw(1).normal(lin.num_params).float()
    product, gram, unit = lin.fvp(v), lin.gram, lin.logit_gradients.unsqueeze(0)
    ASKED[asked]()
    told = switches()
    found = evalkit.score(*batch, damping=1e-3)
    assert found["gamma"].tolist() == pytest.approx(table["gamma"].tolist(), rel=1e-6)
    again = evalkit.linearize(*batch)
    for one, other in ((again.fvp(v), product), (lin.fvp(v), product), (again.gram, gram)):
        assert float((one - other).norm() / other.norm()) < 1e-6
    assert float((again.gram_of(unit) - gram).norm() / gram.norm()) < 1e-6
    assert switches() == told


@newer
@pytest.mark.parametrize("asked", ASKED)
def test_the_switches_are_off_inside_and_as_before_after_an_exception(asked: str) -> None:
    ASKED[asked]()
    told = switches()

    def failing() -> None:
        with full_precision():
            assert not {*switches()} - {"ieee", "none"}
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert switches() == told


def test_older_names_stay_as_they_were() -> None:
    torch.set_float32_matmul_precision("medium")
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cudnn.allow_tf32


def test_products_under_autocast() -> None:
    batch = wide()
    lin = evalkit.linearize(*batch)
    v = Draw(1).normal(lin.num_params).float()
    expected = lin.fvp(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lin.fvp(v)
    assert torch.equal(found, expected)


@newer
def test_a_recurrence_where_switches_of_cudnn_differ() -> None:
    """Torch then refuses to read the older name of both."""
    draw = Draw(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    cell = nn.LSTM(4, 4, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = cell, model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cell(x)[0])

    _newer("cudnn.conv", "ieee")()
    table = evalkit.score(Net(), draw.normal(5, 3, 4).float(), draw.integers(3, 5), methods="sgd")
    assert float(table["gamma"][0]) > 0

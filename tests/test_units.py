"""Units: what memory, numbers that are none and methods that fail cost, and what they do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.errors import EvalkitError, TooLittleMemoryError, memory_sentence
from evalkit.scoring.metrics import imbalance
from evalkit.settings import Settings
from evalkit.storage.rows import Cell
from evalkit.study.execute import Rows, execute
from evalkit.study.plan import Unit

INPUTS = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 3
METHODS = ("sgd", "ef", "ief")


class Small(nn.Module):
    """A linear model whose forward may refuse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.layer(x)


class Limited(Small):
    """Has memory for so many samples."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error
        return super().forward(x)


def executed(model: nn.Module, methods: tuple[str, ...] = METHODS, **settings: Any) -> Rows:
    asked = Settings(methods, batch_size=len(INPUTS), **settings)
    pairs = frozenset((name, damping) for name in methods for damping in asked.dampings)
    unit = Unit(Cell("one", 0, 0.0, 0), pairs)
    return execute(model.eval(), (INPUTS, LABELS), "categorical", asked, unit, "small")


LACKS = {
    "of torch on the CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    "of torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "of a driver": RuntimeError("CUDA error: out of memory"),
    "of a library": RuntimeError("cuda error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    "of numpy": np._core._exceptions._ArrayMemoryError((9,), np.dtype(float)),
    "of Python": MemoryError(),
}


@pytest.mark.parametrize("kind", LACKS)
def test_every_lack_of_memory_is_known(kind: str) -> None:
    assert "fits into memory" in str(memory_sentence(LACKS[kind]))


@pytest.mark.parametrize(("most", "size"), [(8, 5), (4, 3), (2, 2)])
def test_a_batch_that_does_not_fit_is_evaluated_in_parts(most: int, size: int) -> None:
    whole = executed(Small())
    parts = executed(Limited(most, LACKS["of torch on the CPU"]))
    assert (whole.micro_batch_size, parts.micro_batch_size) == (None, size)
    assert whole.batches["micro_batch_size"] == [9]
    assert parts.batches["micro_batch_size"] == [size]
    for name in ("gamma", "ratio", "slope"):
        assert parts.scores[name] == pytest.approx(whole.scores[name], rel=1e-5)
    assert parts.batches["data_sha256"] == whole.batches["data_sha256"]


def test_parts_that_were_asked_for_are_halved_too() -> None:
    model = Limited(2, LACKS["of Python"])
    assert executed(model, micro_batch_size=4).micro_batch_size == 2
    assert max(model.seen) == 2


def test_a_batch_of_which_no_sample_fits_tells_so() -> None:
    with pytest.raises(TooLittleMemoryError, match=r"fits into memory.*micro_batch_size"):
        executed(Limited(0, LACKS["of torch on a GPU"]))


class Dependent(Limited):
    """Samples influence each other, so that no part can be run by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


def test_a_batch_without_parts_tells_that_memory_ran_out() -> None:
    with pytest.raises(TooLittleMemoryError, match="fits into memory"):
        executed(Dependent(8, LACKS["of torch on the CPU"]))


def test_float64_without_memory_takes_parts_not_fewer_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that need float64 are found in it."""
    monkeypatch.setattr("evalkit.scoring.rows.MARKED", 0.0)
    expected = executed(Small())
    assert set(expected.scores["dtype"]) == {"float64"}

    class InDouble(Small):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64 and len(x) > 4:
                raise LACKS["of torch on a GPU"]
            return super().forward(x)

    found = executed(InDouble())
    assert found.micro_batch_size == 3
    assert set(found.scores["dtype"]) == {"float64"}
    assert found.scores["gamma"] == pytest.approx(expected.scores["gamma"], rel=1e-9)


class Root(Small):
    """Has a gradient that is no number, though its logits are finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 * self.layer.weight).sum().abs().sqrt()


def test_a_gradient_that_is_no_number_is_refused_not_scored() -> None:
    """Otherwise EF and iEF have an infinite gamma, and the imbalance is infinite."""
    with pytest.raises(EvalkitError, match=r"finite gradient, .*layer\.weight"):
        executed(Root())
    with pytest.raises(EvalkitError, match="finite gradient"):
        evalkit.score(Root(), INPUTS, LABELS)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ((1.0, 4.0), 4.0),
        ((0.0, 2.0), math.inf),
        ((1.0, math.nan), math.nan),
        ((0.0, 0.0), math.inf),
    ],
)
def test_an_imbalance_is_infinite_for_no_gradient_alone(
    norms: tuple[float, ...], expected: float
) -> None:
    assert imbalance(torch.tensor(norms, dtype=torch.float64)) == pytest.approx(
        expected, nan_ok=True
    )


def test_a_method_that_fails_costs_its_own_rows_alone() -> None:
    @evalkit.method("infinite")
    def infinite(lin: evalkit.Linearization, damping: float) -> Tensor:
        return lin.gradient / 0.0 if damping < 1 else lin.gradient

    @evalkit.method("raising")
    def raising(lin: evalkit.Linearization, damping: float) -> Tensor:
        raise torch.linalg.LinAlgError("singular")

    dampings = (1e-3, 2.0)
    whole = executed(Small(), dampings=dampings)
    found = executed(Small(), ("sgd", "infinite", "ef", "raising", "ief"), dampings=dampings)
    assert set(found.failed) == {("infinite", 1e-3), ("raising", 1e-3), ("raising", 2.0)}
    assert found.scores["method"] == ["sgd", "sgd", "infinite", "ef", "ef", "ief", "ief"]
    kept = [place for place, name in enumerate(found.scores["method"]) if name != "infinite"]
    for name in ("gamma", "slope"):
        assert [found.scores[name][place] for place in kept] == whole.scores[name]
    assert found.reason.startswith("infinite: expected method 'infinite' to return finite numbers")
    assert " / raising: expected the scoring of task 'small' to run, found" in found.reason
    assert "singular" in found.reason


def test_a_score_that_cannot_be_is_none() -> None:
    """Products of a direction that is finite may overflow."""

    @evalkit.method("vast")
    def vast(lin: evalkit.Linearization, damping: float) -> Tensor:
        return lin.gradient * 3e37

    found = executed(Small(), ("sgd", "vast"), dtype="float32")
    assert found.scores["method"] == ["sgd"]
    assert "expected finite scores, found Fisher norm" in found.failed["vast", 1e-12]

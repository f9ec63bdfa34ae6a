"""One small problem, its scores by the dense reference, and models written around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from tests.support import dense

DAMPING = 1e-3
METHODS = ("sgd", "ief")


def inputs() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def plain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The model that the others wrap."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model.to(dtype)


class Around(nn.Module):
    """A forward given as a function of the plain model and what it is called with."""

    def __init__(self, rule: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.inner = plain() if inner is None else inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.rule(self.inner, *args, **kwargs)


class Two(Around):
    """Takes the two halves of the inputs."""

    def __init__(self) -> None:
        super().__init__(lambda m, a, b: m(torch.cat((a, b), -1)))

    def forward(self, a: Any, b: Any) -> Any:
        return self.rule(self.inner, a, b)


def halves() -> tuple[Tensor, Tensor]:
    return inputs()[:, :2], inputs()[:, 2:]


def expected(
    model: nn.Module | None = None, targets: Tensor = TARGETS, likelihood: str = "categorical"
) -> list[float]:
    """The gammas of ``METHODS`` for a plainly written model."""
    found = dense.dense(plain() if model is None else model, inputs(), targets, likelihood)
    return [found.gamma(d) for d in (dense.sgd(found), dense.ief(found, DAMPING))]


def found(model: Any, batch: Any, targets: Any = TARGETS, **options: Any) -> list[float]:
    options = {"methods": METHODS, "damping": DAMPING, **options}
    return list(evalkit.score(model, batch, targets, **options)["gamma"])


def scores_right(
    model: Any, batch: Any, targets: Any = TARGETS, known: list[float] | None = None, **options: Any
) -> None:
    """A model and batch give the scores of the plain ones, in one micro-batch and in several."""
    known = expected() if known is None else known
    for size in (None, 2):
        assert found(model, batch, targets, micro_batch_size=size, **options) == pytest.approx(
            known, rel=1e-4
        )


def sentence(model: Any, batch: Any, targets: Any = TARGETS, **options: Any) -> str:
    """The one sentence that refuses a model and batch, in one micro-batch and in several."""
    told = []
    for size in (None, 2):
        with pytest.raises(evalkit.EvalkitError) as caught:
            found(model, batch, targets, micro_batch_size=size, **options)
        told.append(str(caught.value))
        assert told[-1].startswith("expected ")
        assert "\n" not in told[-1]
    return told[0]

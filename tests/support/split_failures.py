"""What cannot be scored by processes that split a batch, and what is said of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import evalkit
from evalkit.errors import EvalkitError
from evalkit.linearization.split import Split
from tests.support.split_scores import Scored, scored


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


class InARow(nn.Module):
    """Samples that see the one before them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 0) * torch.arange(4)


def refused(split: Split, method: str) -> str:
    """What is said of a method that is refused."""
    try:
        scored(Scored("mlp_categorical", methods=(method,)), split)
    except EvalkitError as error:
        return str(error)
    return ""

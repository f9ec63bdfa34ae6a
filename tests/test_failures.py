"""What a forward or a backward raises: one sentence that names the layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evalkit
from evalkit.evaluation.failures import forward_failures
from tests.support.given import (
    Around,
    Two,
    found,
    inputs,
    plain,
    sentence,
)

# --- what a forward raises ------------------------------------------------------------------------


class Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def test_an_exception_of_a_forward_is_a_sentence_that_names_the_layer() -> None:
    error = KeyError("no such row\nat all")
    model = nn.Sequential(plain(), nn.Sequential(Raises(error)))
    message = sentence(model, inputs())
    assert "KeyError" in message
    assert "module '1.0' (Raises)" in message
    with pytest.raises(evalkit.EvalkitError) as caught:
        found(model, inputs())
    assert caught.value.__cause__ is error


def test_arguments_that_a_forward_does_not_take() -> None:
    assert "'b'" in sentence(Two(), inputs())
    message = sentence(plain(), {"x": inputs()})
    assert "unexpected keyword argument 'x'" in message
    assert "'x': float32 (6, 4)" in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error: BaseException) -> None:
    assert "micro_batch_size" in sentence(nn.Sequential(plain(), Raises(error)), inputs())


def test_a_lack_of_memory_in_a_method_says_what_to_lower() -> None:
    @evalkit.method("large")
    def large(lin: evalkit.Linearization, damping: float) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert "micro_batch_size" in sentence(plain(), inputs(), methods=("sgd", "large"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_program_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        found(nn.Sequential(plain(), Raises(error)), inputs())


def test_a_sentence_of_the_model_passes() -> None:
    own = evalkit.EvalkitError("expected one thing, found another; do this")
    assert sentence(nn.Sequential(plain(), Raises(own)), inputs()) == str(own)


def test_logits_that_are_not_finite_are_called_so_in_parts_of_a_batch_too() -> None:
    assert "18 that are NaN" in sentence(plain(), inputs() * math.nan)


def test_inputs_on_another_device_are_to_be_moved() -> None:
    with (
        pytest.raises(evalkit.EvalkitError, match="move the inputs from meta to cpu"),
        forward_failures(plain(), (inputs().to("meta"),)),
    ):
        raise RuntimeError("Expected all tensors to be on the same device")


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("no way back")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (lambda m, x: torch.igamma(m(x).exp(), torch.ones(3)), "NotImplementedError"),
        (lambda m, x: FailsBackward.apply(m(x)), "ValueError: no way back"),
    ],
    ids=["no derivative", "an error of its own"],
)
def test_an_exception_of_a_backward_is_a_sentence(rule: Any, told: str) -> None:
    assert told in sentence(Around(rule), inputs())


def test_checkpointing_that_would_run_again_in_half_precision() -> None:
    def rule(model: Any, x: Tensor) -> Any:
        return checkpoint(lambda y: model(y.half().float()), x, use_reentrant=False)

    assert "activation checkpointing" in sentence(Around(rule), inputs())

"""What a model's own code or the arithmetic of its numbers raises, as one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from evalkit.errors import EvalkitError, TooLittleMemoryError, memory_sentence, reason
from evalkit.evaluation.modules import described
from evalkit.evaluation.wrapped import plain_name


@contextmanager
def forward_failures(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Turn an exception of a forward into one sentence; the exception stays its cause.

    What ends a program, such as an interrupt, passes.

    Args:
        model: whose forward runs.
        inputs: that it gets.

    Raises:
        EvalkitError: naming the exception and the module that it was raised in.
    """

    def sentence(error: Exception) -> str:
        return (
            f"expected a forward that runs on these inputs, found {reason(error)}, in "
            f"{_raised_in(model, error)}; {_advice(model, inputs)}"
        )

    with _told(sentence):
        yield


@contextmanager
def backward_failures() -> Iterator[None]:
    """Turn an exception of a backward into one sentence; the exception stays its cause.

    Raises:
        EvalkitError: naming the exception.
    """
    with _told(
        lambda error: (
            f"expected a forward whose gradients can be taken, found {reason(error)}, in its "
            "backward; use operations with a derivative, or correct the model's autograd functions"
        )
    ):
        yield


@contextmanager
def _told(sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Turn what is raised, but for sentences and a lack of memory, into a sentence of it."""
    try:
        with memory_failures():
            yield
    except EvalkitError:
        raise
    except Exception as error:
        raise EvalkitError(sentence(error)) from error


@contextmanager
def memory_failures() -> Iterator[None]:
    """Turn a lack of memory into one sentence; anything else passes.

    Raises:
        TooLittleMemoryError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if (sentence := memory_sentence(error)) is not None:
            raise TooLittleMemoryError(sentence) from error
        raise


_LIBRARIES = ("torch", "numpy", "scipy")
"""Called with numbers by whoever stands above them in a traceback."""


@contextmanager
def range_failures() -> Iterator[None]:
    """Turn numbers that leave the range of float64 into one sentence; anything else passes.

    So does what the code of others raises, a method's or a model's: it knows why.

    Raises:
        EvalkitError: a square overflowed, or a decomposition met what is not finite.
    """
    try:
        yield
    except (OverflowError, torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
        if not _raised_here(error):
            raise
        raise EvalkitError(out_of_range(f"{type(error).__name__} in theirs")) from error


def _raised_here(error: BaseException) -> bool:
    """Return whether evalkit's own code, or a library that it called, raised an error."""
    modules = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    packages = [name.partition(".")[0] for name in modules]
    return next((one for one in reversed(packages) if one not in _LIBRARIES), "") == "evalkit"


def out_of_range(found: str) -> str:
    """Return the sentence for finite input whose squares or products are not finite.

    Args:
        found: what says so.
    """
    return (
        f"expected gradients and outputs whose squares stay within the range of float64, found "
        f"{found}; bring inputs, targets and outputs nearer to order one, or leave out the samples "
        "that are far from it"
    )


def _raised_in(model: nn.Module, error: BaseException) -> str:
    """Return what a sentence calls the innermost module whose code was running."""
    names = {id(module): plain_name(name) for name, module in model.named_modules()}
    running = [
        frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if id(frame.f_locals.get("self")) in names
    ]
    found = running[-1] if running else model
    return described(names[id(found)], found)


def _advice(model: nn.Module, inputs: Any) -> str:
    """Return what to do about it, from what is plainly unusual in the inputs."""
    places = {value.device for value in model.parameters()}
    given = {leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(places) == 1 and given - places:
        others = " and ".join(sorted(map(str, given - places)))
        return f"move the inputs from {others} to {next(iter(places))}, where the model is"
    return f"pass inputs that it takes (found {_summary(inputs)}), or correct the model's code"


def _summary(inputs: Any) -> str:
    """Return the tensors among inputs in words, a few of them."""
    if isinstance(inputs, dict):
        parts = [f"'{name}': {_kind(value)}" for name, value in inputs.items()]
    elif isinstance(inputs, tuple):
        parts = list(map(_kind, inputs))
    else:
        parts = [_kind(inputs)]
    return ", ".join(parts[:4]) + (", ..." if len(parts) > 4 else "")


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{_plain(value.dtype)} {tuple(value.shape)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

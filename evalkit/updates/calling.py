"""Methods called by name, and what they return checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evalkit.curvature import PastTask
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import out_of_range, range_failures
from evalkit.linearization import ByParameter, Linearization
from evalkit.reductions import is_finite
from evalkit.rounding import overflows
from evalkit.settings import DEFAULT_DAMPING, Others, check_damping, check_others, check_seed
from evalkit.updates.parser import checked_settings, parse
from evalkit.updates.registry import (
    check_dampings,
    no_past,
    registered,
    takes_optimizer,
    takes_past,
)
from evalkit.updates.types import CotangentUpdate, Update, VectorUpdate


def compute(
    text: str,
    lin: Linearization,
    damping: float = DEFAULT_DAMPING,
    seed: int = 0,
    on_iteration: Callable[[int, float], None] | None = None,
    others: Others = "block",
    past: PastTask | Sequence[PastTask] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **settings: Any,
) -> Update:
    """Return the update of a method, with the report of its solver.

    Args:
        text: the method's name, with settings if wanted: ``"ngd:max_iterations=50"``.
        lin: the model and batch.
        damping: lambda >= 0, absolute.
        seed: for methods that draw samples.
        on_iteration: called by iterative methods with the iteration and its gamma.
        others: what methods by layers make of parameters without factors: ``"block"``, a block for
            each, ``"gradient"``, the gradient itself, or ``"leave"``, which refuses them.
        past: past tasks, for methods that have them as an input; see
            :func:`evalkit.past_task`.
        optimizer: of the training, for methods that have it as an input; it is left as it is.
        settings: the method's settings, by name.

    Raises:
        EvalkitError: the method or a setting is unknown or out of range, there is no past task for
            a method that needs one, or the method returned something that is not a finite vector of
            length P.
    """
    damping, seed, others = check_damping(damping), check_seed(seed), check_others(others)
    name, written = parse(text)
    settings = checked_settings(name, {**written, **settings})
    check_dampings(name, [damping])
    function = registered(name)
    given: dict[str, Any] = {"seed": seed, "on_iteration": on_iteration, "others": others}
    if takes_past(name):
        if past is None:
            raise no_past(name)
        given["past"] = PastTask.joined(past)
    if takes_optimizer(name):
        given["optimizer"] = optimizer
    settings |= {
        name: value
        for name, value in given.items()
        if name in inspect.signature(function).parameters
    }
    with range_failures():
        found = function(lin, damping, **settings)
    return accept(name, found, lin)


def update(
    name: str,
    lin: Linearization,
    damping: float = DEFAULT_DAMPING,
    seed: int = 0,
    others: Others = "block",
    past: PastTask | Sequence[PastTask] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **settings: Any,
) -> Tensor:
    """Return the direction d of a method: (P,); arguments and errors as :func:`compute`."""
    return compute(name, lin, damping, seed, None, others, past, optimizer, **settings).direction(
        lin
    )


def accept(name: str, result: Any, lin: Linearization) -> Update:
    """Return what a method returned as an update.

    Args:
        name: the name of the method, for errors.
        result: d, (P,), or an update.
        lin: the model and batch.

    Raises:
        EvalkitError: it is not a finite vector of length P, or the method changed what others see,
            or its numbers leave the range of float64.
    """
    changed = lin.changed()
    if changed is not None:
        raise EvalkitError(
            f"expected method '{name}' to leave the linearization as it is, found lin.{changed} "
            "changed in place; work on a clone"
        )
    answer: Tensor | ByParameter
    if isinstance(result, CotangentUpdate):
        answer = result.cotangents
    else:
        if not isinstance(result, VectorUpdate):
            result = VectorUpdate(result)
        if isinstance(result.vector, ByParameter):
            answer = result.vector.to(lin.logits.dtype)
        else:
            answer = _checked(name, result.vector, lin)
        result = replace(result, vector=answer)
    if not (answer.finite if isinstance(answer, ByParameter) else is_finite(answer)):
        if overflows(lin):
            raise EvalkitError(out_of_range(f"NaN or infinity in method '{name}'"))
        raise EvalkitError(
            f"expected method '{name}' to return finite numbers, found NaN or infinity; raise the "
            "damping or check the method"
        )
    return result


def _checked(name: str, direction: Any, lin: Linearization) -> Tensor:
    if not isinstance(direction, Tensor) or direction.shape != (lin.num_params,):
        kind = type(direction).__name__
        found = tuple(direction.shape) if isinstance(direction, Tensor) else kind
        raise EvalkitError(
            f"expected method '{name}' to return a vector of length {lin.num_params}, found "
            f"{found}; return one number per trainable parameter"
        )
    if direction.is_complex():
        raise EvalkitError(
            f"expected method '{name}' to return real numbers, found {direction.dtype}; return the "
            "real part if that is what is meant"
        )
    return direction.detach().to(lin.logits)

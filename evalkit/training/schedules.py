"""Schedules of the learning rate by name: each gives the factor of a step by the share done before.

A schedule is a function of the progress, the share of all steps taken before the step: 0 at the
first one, below 1 at the last. Its further parameters are its settings and need defaults; they are
written as those of methods are: ``"step:at=0.5:factor=0.1"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from evalkit.errors import EvalkitError
from evalkit.given_settings import defaults_of, fitted
from evalkit.names import split_method
from evalkit.registry import Registry

Schedule = Callable[..., float]
"""(progress, settings) -> factor of the learning rate."""

_REGISTRY: Registry[Schedule] = Registry("schedule", extended=True)

names = _REGISTRY.names


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Register the decorated function as the schedule called ``name``."""

    def add(function: Schedule) -> Schedule:
        _REGISTRY.add(name, function)
        return function

    return add


def find(text: str) -> Callable[[float], float]:
    """Return the factor of the learning rate as a function of progress.

    Args:
        text: a name, with settings if wanted.

    Raises:
        EvalkitError: there is no such schedule or setting, or a value does not fit.
    """
    name, written = split_method(str(text))
    function = _REGISTRY.get(name)
    for key, value in written.items():
        if value is None:
            raise EvalkitError(
                f"expected settings as name=value in schedule '{text}', found '{key}'; write "
                f"'{name}:setting=value'"
            )
    defaults = dict(list(defaults_of(function).items())[1:])
    settings = fitted(f"schedule '{name}'", written, defaults)

    def factor(progress: float) -> float:
        return function(progress, **settings)

    factor(0.0)  # settings out of range are told before anything is trained
    return factor


@schedule("constant")
def constant(progress: float) -> float:
    """The same learning rate at every step."""
    return 1.0


@schedule("linear")
def linear(progress: float) -> float:
    """From the learning rate down to 0, in a straight line, as the paper has it for EF and SF."""
    return 1.0 - progress


@schedule("cosine")
def cosine(progress: float) -> float:
    """From the learning rate down to 0, as half a cosine (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


@schedule("step")
def step(progress: float, at: float = 0.25, factor: float = 0.1) -> float:
    """Times factor=0.1 from the share at=0.25 of the steps on, as epoch 15 of 60 in the paper.

    Raises:
        EvalkitError: ``at`` is no share, or ``factor`` is negative.
    """
    if not 0 <= at <= 1:
        raise EvalkitError(
            f"expected a share from 0 to 1 as the setting 'at' of schedule 'step', found {at:g}; "
            "15 of 60 epochs are at=0.25"
        )
    if factor < 0:
        raise EvalkitError(
            f"expected a factor of at least 0 in schedule 'step', found {factor:g}; pass one such "
            "as factor=0.1"
        )
    return factor if progress >= at else 1.0

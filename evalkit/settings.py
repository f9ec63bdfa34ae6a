"""What a run of scores is asked for: methods, dampings, batches, seed, and their defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from evalkit.errors import EvalkitError, shortened

DEFAULT_METHODS = ("sgd", "ef", "ief", "sf")
DEFAULT_DAMPING = 1e-12
"""Near zero and absolute, as in the paper."""
DEFAULT_TOLERANCE = 0.05
"""Of the gate: five percent of a ratio, and of the efficiency that is possible."""
MAX_ITERATIONS = 200
"""Of conjugate gradients."""
PROBES = 32
"""Random probes of a block whose matrix errors are not found exactly."""
PAST_BATCHES = 10
"""Batches of each past task, for methods that have past tasks as an input."""
PRECISIONS = ("float32", "float64")
OnFailure = Literal["raise", "skip"]
"""What an optimizer does with a step that it cannot take: raise an error, or leave it out."""
Others = Literal["block", "gradient", "leave"]
"""What is made of parameters without factors: a block for each in methods by layers, the gradient
itself there, or nothing, as if they were frozen, in every row of every method."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        methods: names, with settings of their own if wanted (``"sf:labels_per_sample=4"``).
        dampings: each method is scored at each; several make a sweep.
        batches: batches per checkpoint, the same ones at every checkpoint.
        batch_size: samples per batch, drawn without replacement from the training samples.
        seed: the seed of the batches and of methods that draw samples.
        dtype: that of the evaluation, ``"float32"`` or ``"float64"``; None for the model's own.
        micro_batch_size: samples whose graph is held at a time; None for the whole batch.
        device: where the model is evaluated, as torch names it.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: a value is out of range or given twice.
    """

    methods: tuple[str, ...] = DEFAULT_METHODS
    dampings: tuple[float, ...] = (DEFAULT_DAMPING,)
    batches: int = 100
    batch_size: int = 160
    seed: int = 0
    dtype: str | None = None
    micro_batch_size: int | None = None
    device: str = "cpu"
    others: Others = "block"

    def __post_init__(self) -> None:
        check_each_once("method", self.methods)
        check_each_once("damping", self.dampings)
        for damping in self.dampings:
            check_damping(damping)
        check_dtype(self.dtype)
        check_others(self.others)
        for name in ("batches", "batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**63:
                words = name.replace("_", " ")
                bound = "at least 1" if value < 1 else "at most 2^63 - 1"
                advice = "1 or more" if value < 1 else "less"
                raise EvalkitError(
                    f"expected {words} of {bound}, found {shortened(str(value))}; "
                    f"set `{name}` to {advice}"
                )
        check_seed(self.seed)


def check_damping(damping: Any) -> float:
    """Return a damping as a float.

    Raises:
        EvalkitError: it is not a finite number of at least 0.
    """
    try:
        value = float(damping)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise EvalkitError(
            f"expected a damping that is a finite number of at least 0, found "
            f"{shortened(repr(damping))}; the paper's near-zero damping is {DEFAULT_DAMPING:g}"
        )
    return value


def check_dtype(dtype: Any) -> str | None:
    """Return the name of the dtype of an evaluation, None for the model's own.

    Raises:
        EvalkitError: it is neither float32 nor float64.
    """
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name not in (None, *PRECISIONS):
        raise EvalkitError(
            f"expected dtype {' or '.join(PRECISIONS)}, found {name}; half precision loses the "
            "digits that scores need"
        )
    return name


def check_others(others: Any) -> Others:
    """Return what is made of parameters without factors.

    Raises:
        EvalkitError: it is none of the three.
    """
    known: tuple[Others, ...] = get_args(Others)
    for one in known:
        if others == one:
            return one
    raise EvalkitError(
        f"expected `others` to be one of {', '.join(known)}, found {shortened(repr(others))}; "
        f"its default is '{known[0]}'"
    )


def check_seed(seed: Any) -> int:
    """Return a seed as an int.

    Raises:
        EvalkitError: it is not a whole number from 0 to 2^63 - 1.
    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= int(seed) < 2**63:
        raise EvalkitError(
            "expected a seed that is a whole number from 0 to 2^63 - 1, found "
            f"{shortened(repr(seed))}; choose one"
        )
    return int(seed)


def check_each_once(kind: str, values: Sequence[object]) -> None:
    """Refuse an empty request and one that repeats itself.

    Raises:
        EvalkitError: there are no values, or one is given twice.
    """
    if not values:
        raise EvalkitError(f"expected at least one {kind}, found none; name one")
    if len(set(values)) < len(values):
        found = ", ".join(map(str, values))
        raise EvalkitError(f"expected each {kind} once, found {found}; drop the repeats")


def check_momentum(value: float) -> float:
    """Return the momentum of an optimizer.

    Raises:
        EvalkitError: it is no number from 0 to below 1.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise EvalkitError(
            f"expected `momentum` from 0 to below 1, found {value!r}; pass one such as 0.9"
        )
    return float(value)


def check_normalise(value: bool) -> bool:
    """Return whether steps are as long as the learning rate.

    Raises:
        EvalkitError: it is neither True nor False; a text would count as True.
    """
    if not isinstance(value, bool):
        raise EvalkitError(
            f"expected `normalise` to be True or False, found {value!r}; pass one of them"
        )
    return value


def check_on_failure(value: OnFailure) -> OnFailure:
    """Return what is done with a step that cannot be taken.

    Raises:
        EvalkitError: it is none of :data:`OnFailure`.
    """
    if value not in get_args(OnFailure):
        raise EvalkitError(
            f"expected `on_failure` to be {' or '.join(get_args(OnFailure))}, found {value!r}; "
            "choose one of them"
        )
    return value

"""Where methods are registered, and how one is called by name with its settings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.reductions import is_finite
from evalkit.registry import Registry, suggest
from evalkit.settings import DEFAULT_DAMPING, check_damping, check_seed

Method = Callable[..., "Tensor | Update"]
_METHODS: Registry[Method] = Registry("method")
GIVEN = ("seed", "on_iteration")
"""Parameters that a method receives rather than being set."""


@dataclass(frozen=True, eq=False)
class Term:
    """A sum of one-sample gradients, sum_n w_n J_n^T c_n.

    Attributes:
        cotangents: c, like logits; the same object for every damping.
        weights: w, (N,).
    """

    cotangents: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Rounding:
    """How far rounding is expected to have moved an update.

    Attributes:
        moved: |delta d|, an estimate.
        slope: of d^T g.
    """

    moved: float
    slope: float


@dataclass(frozen=True, eq=False)
class Update:
    """A direction and, for iterative methods, the state of the solver.

    The direction d is given as a vector or, by methods that combine gradients of the logits, as
    cotangents c with d = sum_n J_n^T c_n. Then d is not formed unless somebody asks for it.

    Attributes:
        vector: d, (P,); the parameters move along -d.
        cotangents: c, like logits.
        terms: where c is a sum of a few fixed cotangents with weights, these; scores at several
            dampings then share their products.
        slope: d^T g, where the method knows it with more digits than J d gives: r^T J d of a
            direction that is dominated by samples with small gradients cancels.
        rounding: how far rounding has moved d, where the method knows; None for a direction whose
            entries are as exact as its precision.
        error: relative error of gamma that a solver leaves, None for methods without one.
        curable: more digits may lower that error; more iterations would otherwise.
        iterations: of the solver, None for methods without one.
        relative_residual: recomputed, None for methods without a solver.
        converged: None for methods without a solver.
        solver: its name, None for methods without one.
    """

    vector: Tensor | None = None
    cotangents: Tensor | None = None
    terms: tuple[Term, ...] = ()
    slope: float | None = None
    rounding: Rounding | None = None
    error: float | None = None
    curable: bool = True
    iterations: int | None = None
    relative_residual: float | None = None
    converged: bool | None = None
    solver: str | None = None

    def direction(self, lin: Linearization) -> Tensor:
        """Return d: (P,)."""
        if self.cotangents is not None:
            return lin.vjp(self.cotangents)
        assert self.vector is not None
        return self.vector


def method(name: str) -> Callable[[Method], Method]:
    """Register a method: a function of (linearization, damping) that returns a direction.

    The function returns d, (P,), with the sign of the gradient, or an :class:`Update`. Its further
    parameters are its settings and need defaults; one called ``seed`` receives the seed, and one
    called ``on_iteration`` a function to call with each iteration and its gamma.

    Args:
        name: how it is called from then on.

    Raises:
        EvalkitError: the name is taken, or holds a character that separates names or settings.
    """
    if not name or set(name) & set(":,= "):
        raise EvalkitError(
            f"expected a method name without ':', ',', '=' and spaces, found '{name}'; rename it"
        )

    def register(function: Method) -> Method:
        _METHODS.add(name, function)
        return function

    return register


def methods() -> tuple[str, ...]:
    """Return the names of all registered methods."""
    return _METHODS.names()


def describe(name: str) -> str:
    """Return the first sentence of a method's docstring."""
    return (inspect.getdoc(_METHODS.get(name)) or "").split("\n")[0]


def function_of(text: str) -> Method:
    """Return the function of a method, settings left aside."""
    return _METHODS.get(parse(text)[0])


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``"sf:labels_per_sample=4"`` into a method's name and its settings.

    Raises:
        EvalkitError: the method or a setting is unknown, or a setting is not name=value.
    """
    if not isinstance(text, str):
        raise EvalkitError(f"expected the name of a method, found {text!r}; pass a string")
    name, *parts = text.split(":")
    _METHODS.get(name)
    settings: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise EvalkitError(
                f"expected settings as name=value in method '{text}', found '{part}'; write "
                f"'{name}:setting=value'"
            )
        try:
            settings[key] = json.loads(value)
        except (ValueError, RecursionError):
            settings[key] = value  # a word; whether the setting takes one is checked below
    _check_settings(name, settings)
    return name, settings


def _check_settings(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings that the method does not have, and values of another type than its own."""
    parameters = list(inspect.signature(_METHODS.get(name)).parameters.values())[2:]
    defaults = {item.name: item.default for item in parameters if item.name not in GIVEN}
    for key, value in settings.items():
        if key not in defaults:
            hint = suggest(key, defaults) if defaults else "it has no settings"
            raise EvalkitError(f"unknown setting '{key}' of method '{name}'; {hint}")
        wanted = type(defaults[key])
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            raise EvalkitError(
                f"expected setting '{key}' of method '{name}' to be of type {wanted.__name__}, "
                f"found {value!r}; its default is {defaults[key]!r}"
            )
        choices = _choices(name, key)
        if choices and value not in choices:
            raise EvalkitError(
                f"expected setting '{key}' of method '{name}' to be one of "
                f"{', '.join(map(str, choices))}, found {value!r}; its default is {defaults[key]!r}"
            )


def _choices(name: str, key: str) -> tuple[Any, ...]:
    """Return the values that a method's type hint gives a setting, none where it names a type."""
    try:
        hint = get_type_hints(_METHODS.get(name)).get(key)
    except (NameError, TypeError):  # of a user's method, which need not hold up
        return ()
    parts = get_args(hint) if get_origin(hint) is Union else (hint,)
    return tuple(v for part in parts if get_origin(part) is Literal for v in get_args(part))


def compute(
    text: str,
    lin: Linearization,
    damping: float = DEFAULT_DAMPING,
    seed: int = 0,
    on_iteration: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> Update:
    """Return the update of a method, with the state of its solver.

    Args:
        text: the method's name, with settings if wanted: ``"ngd:max_iterations=50"``.
        lin: the model and batch.
        damping: lambda >= 0, absolute.
        seed: for methods that draw samples.
        on_iteration: called by iterative methods with the iteration and its gamma.
        settings: the method's settings, by name.

    Raises:
        EvalkitError: the method or a setting is unknown or out of range, or the method returned
            something that is not a finite vector of length P.
    """
    damping, seed = check_damping(damping), check_seed(seed)
    name, written = parse(text)
    _check_settings(name, settings)
    function = _METHODS.get(name)
    settings = {**written, **settings}
    given = {"seed": seed, "on_iteration": on_iteration}
    settings |= {
        name: given[name] for name in GIVEN if name in inspect.signature(function).parameters
    }
    return accept(name, function(lin, damping, **settings), lin)


def accept(name: str, result: Any, lin: Linearization) -> Update:
    """Return what a method returned as an update.

    Args:
        name: of the method, for errors.
        result: d, (P,), or an :class:`Update`.
        lin: the model and batch.

    Raises:
        EvalkitError: it is not a finite vector of length P, or the method changed what others see.
    """
    changed = lin.changed()
    if changed is not None:
        raise EvalkitError(
            f"expected method '{name}' to leave the linearization as it is, found lin.{changed} "
            "changed in place; work on a clone"
        )
    if not isinstance(result, Update):
        result = Update(vector=result)
    if result.cotangents is None:
        result = replace(result, vector=_checked(name, result.vector, lin))
    answer = result.vector if result.cotangents is None else result.cotangents
    if answer is None or not is_finite(answer):
        raise EvalkitError(
            f"expected method '{name}' to return finite numbers, found NaN or infinity; raise the "
            "damping or check the method"
        )
    return result


def update(
    name: str,
    lin: Linearization,
    damping: float = DEFAULT_DAMPING,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Return the direction d of a method: (P,); arguments and errors as :func:`compute`."""
    return compute(name, lin, damping, seed, None, **settings).direction(lin)


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

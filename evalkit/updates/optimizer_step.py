"""The step that an optimizer of torch takes next from its own state, without taking it.

A copy of the optimizer has copies of the parameters; a gradient goes into their ``.grad``, the
optimizer's own ``step()`` moves them, and d is the difference. So d is what the optimizer does,
whatever it does; its own parameters, state, gradients and hooks are left as they are.

All of it is float64, parameters and state cast up: a step is often so much smaller than the
parameters that theta - theta' of float32 has lost most of its digits.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalkit.errors import EvalkitError, reason
from evalkit.evaluation.determinism import preserved_random_state

_OWN = "evalkit.optim"
_WRAPPERS = ("Accelerated", "Lightning")
_KNOWN = ("torch.", "transformers.", "evalkit.")
_BETAS, _BETA, _MOMENTUM = "betas", "beta1", "momentum"
# Parts of the names of attributes that a copy has its own of: hooks of the caller are not run, nor
# what a schedule has put in the place of `step`.
_BOOKKEEPING = ("hook", "profile", "step", "_opt_called", "_warned")


@dataclass(frozen=True)
class Shares:
    """What of a step is meant.

    Attributes:
        momentum: whether gradients of earlier batches have their part in its direction. Without,
            momentum and beta1 are 0: second moments stay as they are.
        decay: whether weight decay has its part.
    """

    momentum: bool = True
    decay: bool = True


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer of torch inside what wraps it, as Accelerate and Lightning do.

    Raises:
        EvalkitError: there is none, or its step needs more than gradients.
    """
    while (
        not isinstance(optimizer, torch.optim.Optimizer)
        or type(optimizer).__name__.startswith(_WRAPPERS)
    ) and isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    kind = type(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise EvalkitError(
            f"expected a torch.optim.Optimizer as `optimizer`, found {kind.__name__}; pass the "
            "optimizer that the training steps with"
        )
    closure = inspect.signature(kind.step).parameters.get("closure")
    own = kind.__module__.startswith(_OWN)
    if own or (closure is not None and closure.default is inspect.Parameter.empty):
        name = str(getattr(optimizer, "method", kind.__name__.lower()))
        advice = f"score the method '{name}' itself" if own else "leave the method out"
        raise EvalkitError(
            f"expected an optimizer that steps on the gradients in `.grad` for method "
            f"'optimizer', found {kind.__name__}, whose step runs the forward; {advice}"
        )
    return optimizer


def next_step(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    parameters: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    shares: Shares,
) -> dict[str, Tensor]:
    """Return d = theta - theta' of the step that an optimizer takes next.

    Where every learning rate is 0, as at the end of a schedule, they are taken to be what they were
    at its beginning: the direction of a smaller and smaller step.

    Args:
        optimizer: left as it is.
        names: of its parameters, by id; those without a name have no gradient.
        parameters: theta, by name.
        gradient: that the step is taken on, by name.
        shares: what of the step is meant.

    Returns:
        In float64 and the shapes of the parameters, by name, for those of the optimizer alone.

    Raises:
        EvalkitError: the optimizer cannot be copied, or its step fails.
    """
    places: dict[str, Tensor] = {}
    memo: dict[int, Any] = {}
    for value in (value for group in optimizer.param_groups for value in group["params"]):
        memo[id(value)] = value  # without a gradient it is left as it is, and need not be copied
        if (name := names.get(id(value))) in parameters:
            assert name is not None
            places[name] = parameters[name].detach().to(torch.float64, copy=True)
            places[name].requires_grad_().grad = gradient[name].to(torch.float64, copy=True)
            memo[id(value)] = places[name]
    before = {name: value.detach().clone() for name, value in places.items()}
    try:
        made = _copy(optimizer, memo, list(places.values()))
        _take_shares(made, shares)
        with preserved_random_state(), torch.no_grad():
            made.step()
    except EvalkitError:
        raise
    except Exception as error:  # whatever the optimizer's code raises
        raise EvalkitError(
            f"expected {type(optimizer).__name__} to take a step from its state on the gradient of "
            f"the batch, found {reason(error)}; pass model and optimizer of one training"
        ) from error
    return {name: before[name] - value.detach() for name, value in places.items()}


def _copy(
    optimizer: torch.optim.Optimizer, memo: dict[int, Any], moved: list[Tensor]
) -> torch.optim.Optimizer:
    """Return a copy of an optimizer on the copies of parameters that ``memo`` maps to.

    Args:
        optimizer: left as it is.
        memo: the copies by id of the parameter, as :func:`copy.deepcopy` takes them.
        moved: the parameters that are to move; others are left out of its groups.
    """
    kept = {id(value) for value in moved}
    try:
        made: torch.optim.Optimizer = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():
            if name not in vars(made) and not any(part in name for part in _BOOKKEEPING):
                setattr(made, name, copy.deepcopy(value, memo))
    except Exception as error:
        raise EvalkitError(
            f"expected an optimizer that can be copied, found that {type(optimizer).__name__} "
            f"cannot ({reason(error)}); leave method 'optimizer' out"
        ) from error
    for group in made.param_groups:
        group["params"] = [value for value in group["params"] if id(value) in kept]
    for state in made.state.values():
        for key, value in state.items() if isinstance(state, dict) else ():
            # Steps are counted in numbers without axes, whatever the precision of the moments.
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                state[key] = value.double()
    if not any(float(group.get("lr") or 0.0) for group in made.param_groups):
        for group in made.param_groups:
            if "lr" in group and group["lr"] is not None:  # None: Adafactor finds its own
                group["lr"] = float(group.get("initial_lr", 0.0)) or 1.0
    return made


def _take_shares(made: torch.optim.Optimizer, shares: Shares) -> None:
    """Set what has no part to zero.

    Raises:
        EvalkitError: nobody says where the optimizer keeps its momentum.
    """
    for group in made.param_groups:
        if not shares.decay and "weight_decay" in group:
            group["weight_decay"] = 0.0
        if not shares.momentum:
            if _BETAS in group:
                group[_BETAS] = (0.0 * group[_BETAS][0], *group[_BETAS][1:])
            if _MOMENTUM in group:
                group[_MOMENTUM] = 0.0
                group.update({"nesterov": False} if "nesterov" in group else {})
            if _BETA in group:
                group[_BETA] = None
    kind, known = type(made), {_BETAS, _BETA, _MOMENTUM}
    told = any(known & group.keys() for group in made.param_groups)
    if not shares.momentum and not told and made.state and not kind.__module__.startswith(_KNOWN):
        raise EvalkitError(
            f"expected {', '.join(sorted(known))} among the settings of {kind.__name__}, found "
            "none that says what momentum it has; leave `momentum` at true"
        )

"""Models as users have them, compiled, wrapped or not yet whole, and the module that is evaluated.

A compiled model is evaluated eagerly: what a compiler makes of a forward can be differentiated
once, and hides its layers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from evalkit.errors import EvalkitError
from evalkit.evaluation.modules import described

COMPILED = "_orig_mod"
"""What a compiled module calls the module inside."""


def evaluated_module(model: Any) -> nn.Module:
    """Return the module to evaluate: of one that is compiled or data parallel, the one inside.

    Raises:
        EvalkitError: it is no module, or lacks parameters that it will have.
    """
    if not isinstance(model, nn.Module):
        raise EvalkitError(
            f"expected a torch.nn.Module to score, found {type(model).__name__}; pass the module"
        )
    while (inner := _inside(model)) is not None:
        model = inner
    refuse_missing_values(model)
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    inner = getattr(model, COMPILED, None)
    return inner if isinstance(inner, nn.Module) else None


def plain_name(name: str) -> str:
    """Return the name of a parameter or module as it is without compilation."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


@contextmanager
def eagerly() -> Iterator[None]:
    """Run what is compiled, whole models, layers and functions, as it is written."""
    # Whoever compiled something has imported the compiler, which takes seconds.
    compiler: Any = sys.modules.get("torch._dynamo")
    stance = getattr(torch.compiler, "set_stance", None)
    with nullcontext() if compiler is None or stance is None else stance("force_eager"):
        yield


def refuse_missing_values(model: nn.Module) -> None:
    """Refuse a model whose parameters or buffers have a shape or values only later.

    Raises:
        EvalkitError: naming the first.
    """
    for path, module in model.named_modules():
        values: Any = (*module._parameters.items(), *module._buffers.items())
        for name, value in values:
            shapeless = isinstance(value, UninitializedParameter | UninitializedBuffer)
            if value is None or not (shapeless or value.is_meta):
                continue
            where = f"'{name}' of {described(plain_name(path), module)}"
            if shapeless:
                raise EvalkitError(
                    f"expected a model with all its parameters, found {where} without a shape "
                    "until the first batch; run one batch through the model first"
                )
            raise EvalkitError(
                f"expected a model with values, found {where} on the meta device, which has none; "
                "load the weights first"
            )


def own_values(model: nn.Module) -> nn.Module:
    """Let a model that was made under inference mode be trained and loaded; return it.

    Args:
        model: the model of the caller's own; its parameters and buffers are replaced.
    """
    replaced: dict[int, Any] = {}
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is None or not value.is_inference():
                    continue
                if id(value) not in replaced:
                    copy = value.detach().clone()
                    parameter = isinstance(value, nn.Parameter)
                    replaced[id(value)] = (
                        nn.Parameter(copy, value.requires_grad) if parameter else copy
                    )
                values[name] = replaced[id(value)]
    return model

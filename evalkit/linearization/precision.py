"""An evaluation in float64 of models that ask for float32 by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AllDouble(TorchFunctionMode):
    """Takes float64 wherever a call asks for float32, and where float32 meets float64.

    Norms and softmaxes of some models ask for float32, to gain digits over half precision; in an
    evaluation in float64 they would lose eight of them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call in float64."""
        kwargs = {name: _asked(value) for name, value in (kwargs or {}).items()}
        args = tuple(map(_asked, args))
        if func is Tensor.float:
            return args[0].double()
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if not in_place and name != "__setitem__":
            values = (*args, *kwargs.values())
            if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values):
                args = tuple(map(_met, args))
                kwargs = {name: _met(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _asked(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _met(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.double() if single else value

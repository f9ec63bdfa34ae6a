"""Float64 throughout: what a model computes in float32 by itself is computed in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AllDouble(TorchFunctionMode):
    """Takes float64 wherever a call on float64 values asks for float32.

    Norms and softmaxes of some models do, to gain digits over half precision; in an evaluation in
    float64 they would lose eight of them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call in float64."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(map(_double, args))
            kwargs = {name: _double(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value

"""An evaluation in float64 of models that ask for float32 by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AllDouble(TorchFunctionMode):
    """Takes float64 wherever a call asks for float32 or for nothing, and where the two meet.

    Norms and softmaxes of some models ask for float32, to gain digits over half precision; in an
    evaluation in float64 they would lose eight of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._default = torch.get_default_dtype()

    def __enter__(self) -> AllDouble:
        """Let new tensors be float64."""
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Let new tensors be what they were before."""
        super().__exit__(*raised)
        torch.set_default_dtype(self._default)

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

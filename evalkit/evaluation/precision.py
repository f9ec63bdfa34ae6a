"""Forwards kept in the precision of the evaluation where they ask for a lower one by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evalkit.errors import EvalkitError

HALF = frozenset({torch.float16, torch.bfloat16})
"""Precisions that are evaluated in float32."""

_NAMED = {Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16, Tensor.float: torch.float32}


KINDS = ("cpu", "cuda", "mps", "xpu")
"""Devices that torch multiplies on in half precision within ``torch.autocast``."""


def autocasting() -> tuple[str, ...]:
    """Return the kinds of devices for which autocast is on."""
    return tuple(kind for kind in KINDS if torch.is_autocast_enabled(kind))


def refuse_modes() -> None:
    """Refuse to start where torch takes no gradients, or multiplies in half precision.

    Raises:
        EvalkitError: torch is in inference mode, or under autocast.
    """
    if torch.is_inference_mode_enabled():
        raise EvalkitError(
            "expected to be called outside of torch.inference_mode(), whose tensors have no "
            "gradients; leave it for the evaluation"
        )
    if autocasting():
        raise EvalkitError(
            "expected to be called outside of torch.autocast, under which products have three "
            "digits; leave it for the evaluation (torch.autocast(..., enabled=False))"
        )


class AtLeast(TorchFunctionMode):
    """Takes the precision of the evaluation wherever a call asks for a lower one, or has one.

    In an evaluation in float32 that is half precision, by a cast or by autocast, which a model in
    half precision asks for since its weights are so. In float64 it is float32 too: norms and
    softmaxes of some models ask for it, to gain digits over half precision; they would lose eight.

    Args:
        dtype: the dtype of the evaluation, float32 or float64.
        device: the kind of device that the model is on.

    Attributes:
        changed: some call was run in another precision than the one that it asked for.
    """

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.changed = False
        self._dtype, self._device = dtype, device
        self._lower = HALF if dtype == torch.float32 else HALF | {torch.float32}
        self._default = torch.get_default_dtype()

    def __enter__(self) -> AtLeast:
        """Let new tensors be in no lower precision."""
        self._default = torch.get_default_dtype()
        if self._default in self._lower:
            torch.set_default_dtype(self._dtype)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Let new tensors be what they were before."""
        super().__exit__(*raised)
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call in the precision of the evaluation."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute, such as a shape
            return func(*args, **kwargs)
        if torch.is_autocast_enabled(self._device):
            self.changed = True
            with torch.autocast(self._device, enabled=False):
                return self._run(func, name, args, kwargs)
        return self._run(func, name, args, kwargs)

    def _run(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if _NAMED.get(func) in self._lower:
            self.changed = True
            return args[0].to(self._dtype, **kwargs)
        if func is Tensor.view and not isinstance(args[-1], int):  # of bits, not of numbers
            return func(*args, **kwargs)
        if func is Tensor.type:
            args = tuple(map(_of_type, args))
            kwargs = {key: _of_type(value) for key, value in kwargs.items()}
        asked, lower, met = False, False, False
        with torch._C.DisableTorchFunction():  # what is looked at here is none of other modes
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    lower = lower or value.dtype in self._lower
                    met = met or value.dtype == self._dtype
                elif isinstance(value, torch.dtype):
                    asked = asked or value in self._lower
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if asked or (lower and met and not in_place):
            self.changed, met = True, met and not in_place
            args = tuple(self._raised(value, met) for value in args)
            kwargs = {key: self._raised(value, met) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _raised(self, value: Any, met: bool) -> Any:
        """Return a precision that is asked for, or a tensor that meets others, as it is taken."""
        if isinstance(value, torch.dtype):
            return self._dtype if value in self._lower else value
        lower = met and isinstance(value, Tensor) and value.dtype in self._lower
        return value.to(self._dtype) if lower else value


def _of_type(value: Any) -> Any:
    """Return the precision that a type of tensors or its name stands for, such as HalfTensor."""
    if isinstance(value, str):
        value = getattr(torch, value.rpartition(".")[2], value)
    return value.dtype if isinstance(value, type(torch.HalfTensor)) else value

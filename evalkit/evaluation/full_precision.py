"""Products of float32 numbers with all their digits, whatever torch was told before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from evalkit.evaluation.precision import autocasting


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in the precision of the factors, whatever is around.

    Three digits are what autocast leaves, and what float32 products have in TF32 (torch's default
    for convolutions on NVIDIA's cards) or in bfloat16 (on CPUs, as
    ``torch.set_float32_matmul_precision("medium")`` asks for).
    """
    with ExitStack() as stack:
        for kind in autocasting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        if any(one.reduced() for one in _SWITCHES):
            stack.enter_context(_switched())
        yield


@dataclass(frozen=True)
class _Switch:
    """What torch lets some operations of a library multiply float32 in.

    Attributes:
        library: as it stands in ``torch.backends``.
        operation: as it stands there, where this version of torch tells operations apart.
    """

    library: str
    operation: str

    @property
    def _place(self) -> Any:
        return getattr(getattr(torch.backends, self.library), self.operation, None)

    def read(self) -> str | None:
        """Return what is set, None where this version of torch has no such switch."""
        return getattr(self._place, "fp32_precision", None)

    def write(self, value: str | None) -> None:
        """Set what :meth:`read` returned, or another of its values."""
        if self.read() != value:
            self._place.fp32_precision = value

    def reduced(self) -> bool:
        """Return whether products may have fewer digits than their factors."""
        return self.read() not in _FULL


_SWITCHES = (
    _Switch("cuda", "matmul"),
    _Switch("cudnn", "conv"),
    _Switch("cudnn", "rnn"),
    _Switch("mkldnn", "matmul"),
    _Switch("mkldnn", "conv"),
    _Switch("mkldnn", "rnn"),
)
_FULL = ("ieee", "none")


@contextmanager
def _switched() -> Iterator[None]:
    """Turn every switch off for a while, by its older name too, which torch keeps beside it.

    Torch refuses to read an older switch whose newer ones were set one by one; that one stays.
    """
    before = [(one, one.read()) for one in _SWITCHES]
    older: list[Callable[[], None]] = []
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
        older.append(partial(torch.set_float32_matmul_precision, products))
        torch.set_float32_matmul_precision("highest")
    with suppress(RuntimeError):
        allowed = torch.backends.cudnn.allow_tf32
        older.append(partial(setattr, torch.backends.cudnn, "allow_tf32", allowed))
        torch.backends.cudnn.allow_tf32 = False
    for one, value in before:
        if one.reduced():
            one.write(None if value is None else "ieee")
    try:
        yield
    finally:
        for restore in older:
            restore()
        for one, value in before:
            one.write(value)

"""The device that a model is evaluated on, and batches brought there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from evalkit.errors import EvalkitError, reason


def check_device(name: str) -> torch.device:
    """Return a device that can be used.

    Raises:
        EvalkitError: torch does not know it, or finds none of its kind.
    """
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64, device=device).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise EvalkitError(
            f"expected a device that torch can use with float64, found '{name}' ({reason(error)}); "
            "use `device=cpu`"
        ) from error
    return device


def on_device(values: Any, device: str | torch.device) -> Any:
    """Return tensors of any nesting on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, values)

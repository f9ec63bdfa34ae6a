"""Refuses forwards whose logits are not a function of parameters and sample alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evalkit.errors import EvalkitError


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model whose samples influence each other through batch statistics.

    Raises:
        EvalkitError: naming the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise EvalkitError(
                "expected samples that do not influence each other, found batch statistics in "
                f"module '{name}' ({type(module).__name__}"
                f"{' in train mode' if module.training else ' without running statistics'}); "
                "call model.eval() first, or use GroupNorm"
            )


def random_state() -> list[Tensor]:
    """Return the global random state of each device."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave torch's global random state as it was found."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def refuse_random_forward(model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Run the forward again, watching the random state, and name the module that draws numbers."""
    states: dict[str, list[Tensor]] = {}
    random: list[tuple[str, nn.Module]] = []

    def watch(name: str, module: nn.Module) -> list[Any]:
        def before(*_: Any) -> None:
            states[name] = random_state()

        def after(*_: Any) -> None:
            pairs = zip(states[name], random_state(), strict=True)
            if any(not torch.equal(a, b) for a, b in pairs):
                random.append((name, module))

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    handles = [handle for name, module in model.named_modules() for handle in watch(name, module)]
    try:
        with torch.no_grad(), preserved_random_state():
            run()
    finally:
        for handle in handles:
            handle.remove()
    # Inner modules end first, so the first one seen is the smallest that draws.
    name, module = random[0] if random else ("", model)
    mode = "in train mode" if module.training else "in eval mode"
    raise EvalkitError(
        f"expected a deterministic forward, found random numbers drawn in module '{name}' "
        f"({type(module).__name__}, {mode}); call model.eval() first, or remove the noise"
    )

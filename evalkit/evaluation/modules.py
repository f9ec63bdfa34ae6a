"""The modules of a model as a forward calls them: how a refusal finds the layer at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        name: the name of the module in the model, empty for the model itself.
        module: what is called.
        inputs: the tensors among its arguments.
        outputs: the tensors among what it returns; empty before it has returned.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        """Return what a sentence calls the module."""
        return described(self.name, self.module)


Watcher = Callable[[ModuleCall], None]


def described(name: str, module: nn.Module) -> str:
    """Return what a sentence calls a module: its name in the model, and its class."""
    kind = type(module).__name__
    return f"module '{name}' ({kind})" if name else f"the model itself ({kind})"


@contextmanager
def watched(
    model: nn.Module, after: Watcher, before: Watcher = lambda call: None
) -> Iterator[None]:
    """Tell every call of a module; inner modules end first, so the smallest one is told first.

    Scripted modules take no hooks: calls of them are not told, those of what calls them are.

    Args:
        model: whose modules are watched.
        after: called with each call as it ends.
        before: called with each call as it starts.
    """

    def watch(name: str, module: nn.Module) -> list[Any]:
        def started(_: Any, args: Any, kwargs: Any) -> None:
            before(ModuleCall(name, module, tensors((args, kwargs)), ()))

        def ended(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            after(ModuleCall(name, module, tensors((args, kwargs)), tensors(output)))

        return [
            module.register_forward_pre_hook(started, with_kwargs=True),
            module.register_forward_hook(ended, with_kwargs=True),
        ]

    modules = [
        (name, module)
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    handles = [handle for name, module in modules for handle in watch(name, module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(value: Any) -> tuple[Tensor, ...]:
    """Return the tensors in a nested value; an output object's fields count too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(getattr(leaf, "logits", None), Tensor):
            found.append(leaf.logits)
    return tuple(found)


def first(calls: Sequence[ModuleCall], model: nn.Module) -> str:
    """Return what a sentence calls the first of some calls; the model itself where there is none.

    Args:
        calls: the calls of modules at fault.
        model: they belong to.
    """
    return str(calls[0]) if calls else described("", model)

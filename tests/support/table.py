"""What a case is: a tiny model with inputs and targets, built from the case's own seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.support.dense import to_dtype


class Net(nn.Module):
    """Named parts and a rule that says how they are put together."""

    def __init__(self, rule: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.rule = rule
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.rule(self, *args, **kwargs)


class Custom(nn.Module):
    """A layer made of one function."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, h: Tensor) -> Tensor:
        return self.rule(h)


class Counter(nn.Module):
    """Adds one to a buffer at every forward, which changes no output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Batch(NamedTuple):
    model: nn.Module
    inputs: Any
    targets: Tensor
    likelihood: str

    def on(self, device: str) -> Batch:
        """The same on a device, the model a copy."""
        inputs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, self.inputs)
        model = copy.deepcopy(self.model).to(device)
        return Batch(model, inputs, self.targets.to(device), self.likelihood)


class Draw:
    """Random data from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def bits(self, *shape: int) -> Tensor:
        return self.integers(2, *shape).double()


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[Draw], tuple[nn.Module, Any, Tensor]]
    likelihood: str

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
        draw = Draw(seed)
        model, inputs, targets = self.build(draw)
        initialise(model, draw)
        model.to(dtype)
        return Batch(model, to_dtype(inputs, dtype), to_dtype(targets, dtype), self.likelihood)


def initialise(model: nn.Module, draw: Draw) -> None:
    """Fill every parameter from the generator: matrices by fan-in, vectors around one half."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = draw.normal(*parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 + 0.3 * noise)


CASES: dict[str, Case] = {}


def case(likelihood: str = "categorical") -> Callable[[Callable], Callable]:
    """Add the function as a case under its own name."""

    def add(build: Callable) -> Callable:
        CASES[build.__name__] = Case(build.__name__, build, likelihood)
        return build

    return add


def with_ignored(targets: Tensor) -> Tensor:
    """Ignore every second position, and all but one of the last sample's."""
    masked = targets.clone()
    masked[:, 1::2] = -100
    masked[-1] = -100
    masked[-1, 1] = targets[-1, 1]
    return masked

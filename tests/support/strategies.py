"""Random small models with batches, as hypothesis draws them.

A :class:`Plan` says in words what is built, so that a failing example can be read and pasted.
Numbers are multiples of a quarter: models of :data:`EXACT` blocks then compute logits and Jacobian
in float64 without any rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.table import Batch, Draw, Net

IGNORED = -100

# --- blocks: h, (N, ..., width), to the same shape ---------------------------------------------


def _linear(net: Any, h: Tensor) -> Tensor:
    return net.linear(h)


def _rule(function: Callable[[Any, Tensor], Tensor], **parts: Callable[[int, int], Any]) -> Any:
    return function, parts


def _dense(width: int, _: int) -> nn.Module:
    return nn.Linear(width, width)


def _bare(width: int, _: int) -> nn.Module:
    return nn.Linear(width, width, bias=False)


def _parameter(*axes: str) -> Callable[[int, int], nn.Parameter]:
    def make(width: int, positions: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros([{"w": width, "t": positions}[axis] for axis in axes]))

    return make


def _frozen(width: int, _: int) -> nn.Module:
    return nn.Linear(width, width).requires_grad_(False)


def _attended(net: Any, h: Tensor) -> Tensor:
    x = h if h.dim() > 2 else h.unsqueeze(1)
    found, _ = net.attention(x, x, x, need_weights=False)
    return h + found.reshape(h.shape)


def _in_double(net: Any, h: Tensor) -> Tensor:
    return net.linear(h.to(net.linear.weight.dtype)).to(h.dtype)


EXACT: dict[str, Any] = {
    "linear": _rule(_linear, linear=_dense),
    "linear relu": _rule(lambda net, h: net.linear(h).relu(), linear=_dense),
    "without bias": _rule(lambda net, h: F.leaky_relu(net.linear(h), 0.5), linear=_bare),
    "residual": _rule(lambda net, h: h + net.linear(h).relu(), linear=_dense),
    "concatenated": _rule(
        lambda net, h: net.out(torch.cat([h, net.linear(h).abs()], -1)),
        linear=_dense,
        out=lambda width, _: nn.Linear(2 * width, width),
    ),
    "used twice": _rule(lambda net, h: net.linear(net.linear(h).relu()), linear=_dense),
    "tied": _rule(
        lambda net, h: F.linear(net.linear(h).relu(), net.linear.weight.T), linear=_dense
    ),
    "scalar": _rule(lambda net, h: net.scale * h, scale=_parameter()),
    "scales": _rule(lambda net, h: net.scale * h, scale=_parameter("w")),
    "shift": _rule(lambda net, h: h + net.shift, shift=_parameter("w")),
    "matrix": _rule(
        lambda net, h: torch.einsum("...i,ij->...j", h, net.matrix).relu(),
        matrix=_parameter("w", "w"),
    ),
    "frozen": _rule(lambda net, h: net.linear(h).relu(), linear=_frozen),
    "unused": _rule(lambda net, h: h.clone(), spare=_parameter("w"), linear=_dense),
    "detached": _rule(lambda net, h: h + net.linear(h.detach()), linear=_dense),
    "square": _rule(lambda net, h: net.linear(h).square(), linear=_dense),
}
"""Blocks whose numbers stay multiples of a power of two."""

SMOOTH: dict[str, Any] = {
    "tanh": _rule(lambda net, h: net.linear(h).tanh(), linear=_dense),
    "gelu": _rule(lambda net, h: F.gelu(net.linear(h)), linear=_dense),
    "layer norm": _rule(lambda net, h: net.norm(h), norm=lambda width, _: nn.LayerNorm(width)),
    "gate": _rule(lambda net, h: net.linear(h) * net.gate(h).sigmoid(), linear=_dense, gate=_bare),
    "attention": _rule(
        _attended, attention=lambda width, _: nn.MultiheadAttention(width, 1, batch_first=True)
    ),
    "in double": _rule(_in_double, linear=lambda width, _: nn.Linear(width, width).double()),
    "softmax": _rule(lambda net, h: (net.linear(h)).softmax(-1), linear=_dense),
}
"""Blocks that round."""

WITH_POSITIONS: dict[str, Any] = {
    "position table": _rule(lambda net, h: h + net.table, table=_parameter("t", "w")),
    "convolution": _rule(
        lambda net, h: net.conv(h.mT).mT,
        conv=lambda width, _: nn.Conv1d(width, width, 3, padding=1),
    ),
    "prompt": _rule(
        lambda net, h: net.mix(torch.cat([net.prompt.expand(len(h), -1, -1), h], 1).mT).mT.relu(),
        prompt=lambda width, _: nn.Parameter(torch.zeros(1, 1, width)),
        mix=lambda width, positions: nn.Linear(positions + 1, positions),
    ),
}
"""Exact blocks of inputs with an axis of positions."""


class Scaled(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return z * self.factor


# --- plans -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a random batch is made of.

    Attributes:
        inputs: ``"features"`` (N, D), ``"images"`` (N, 1, 3, 3), ``"positions"`` (N, T, D) or
            ``"tokens"`` (N, T).
        blocks: names of blocks, in order.
        outputs: ``"pooled"``, (N, C), or ``"positions"``, (N, T, C).
        power: logits are multiplied by 2 to this power.
        same: which samples repeat: ``"all"``, ``"two"``, or ``"nearly two"`` where the inputs are
            real; ``""`` for none.
        fitted: samples whose targets are what the model says: ``""``, ``"one"`` or ``"all"``.
        ignored: whether some positions have no label.
        soft: whether targets of the bernoulli likelihood are halves.
        head_bias: whether the head has one.
    """

    inputs: str = "features"
    blocks: tuple[str, ...] = ("linear relu",)
    outputs: str = "pooled"
    likelihood: str = "categorical"
    samples: int = 3
    positions: int = 2
    width: int = 3
    classes: int = 3
    power: int = 0
    same: str = ""
    fitted: str = ""
    ignored: bool = False
    soft: bool = False
    head_bias: bool = True
    dtype: str = "float64"
    seed: int = 0

    @property
    def exact(self) -> bool:
        """Whether float64 computes logits and Jacobian without rounding."""
        return not any(name in SMOOTH for name in self.blocks)

    def make(self) -> Batch:
        """Build it."""
        draw = Draw(self.seed)
        model = _Built(self)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(quarters(draw, parameter.shape, 4))
        inputs = self._inputs(draw)
        model = model.double()
        with torch.no_grad():
            logits = model(inputs)
        targets = self._targets(draw, logits)
        dtype = getattr(torch, self.dtype)
        model.to(dtype)
        for block, name in zip(model.blocks, self.blocks, strict=True):
            if name == "in double":
                block.double()
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        targets = targets.to(dtype) if targets.is_floating_point() else targets
        return Batch(model.eval(), inputs, targets, self.likelihood)

    def _inputs(self, draw: Draw) -> Tensor:
        shape = {
            "features": (self.samples, self.width),
            "images": (self.samples, 1, 3, 3),
            "positions": (self.samples, self.positions, self.width),
            "tokens": (self.samples, self.positions),
        }[self.inputs]
        values = draw.integers(4, *shape) if self.inputs == "tokens" else quarters(draw, shape, 8)
        if self.same == "all":
            values[:] = values[:1].clone()
        elif self.same and self.samples > 1:
            values[1] = values[0]
            if self.same == "nearly two" and self.inputs != "tokens":
                values[1].view(-1)[0] += 2.0**-12
        return values

    def _targets(self, draw: Draw, logits: Tensor) -> Tensor:
        fitted = torch.zeros(self.samples, dtype=torch.bool)
        fitted[: {"": 0, "one": 1, "all": self.samples}[self.fitted]] = True
        if self.likelihood == "categorical":
            targets = draw.integers(logits.shape[-1], *logits.shape[:-1])
            targets[fitted] = logits[fitted].argmax(-1)
        elif self.likelihood == "bernoulli":
            targets = draw.bits(*logits.shape)
            targets[fitted] = (logits[fitted] > 0).double()
            targets = targets / 2 if self.soft else targets
        else:
            targets = logits + quarters(draw, logits.shape, 4) * 2.0**self.power
            targets[fitted] = logits[fitted]
        if self.same == "all" or (self.same == "two" and self.samples > 1):
            targets[1:2] = targets[:1]
        if self.ignored and self.likelihood != "gaussian" and targets[0].numel() > 1:
            # The first label of every sample stays.
            targets.view(self.samples, -1)[:, 1::2] = IGNORED
        return targets


def quarters(draw: Draw, shape: tuple[int, ...], most: int) -> Tensor:
    """Random multiples of a quarter, none zero, up to ``most`` quarters."""
    sizes = 1 + draw.integers(most, *shape)
    return (sizes * (2 * draw.integers(2, *shape) - 1)).double() / 4


class _Built(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width = plan.width
        self.pooled = plan.outputs == "pooled"
        self.first: nn.Module = nn.Identity()
        if plan.inputs == "tokens":
            self.first = nn.Embedding(4, width)
        elif plan.inputs == "images":
            self.first = nn.Sequential(nn.Conv2d(1, width, 2), nn.ReLU(), nn.Flatten(2), Mixed())
        blocks = {**EXACT, **SMOOTH, **WITH_POSITIONS}
        built = []
        for name in plan.blocks:
            rule, parts = blocks[name]
            made = {part: make(width, plan.positions) for part, make in parts.items()}
            built.append(Net(rule, **made))
        self.blocks = nn.ModuleList(built)
        self.head = nn.Linear(width, plan.classes, bias=plan.head_bias)
        self.scaled = Scaled(2.0**plan.power)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        z = self.head(h)
        if self.pooled and z.dim() > 2:
            z = z.sum(1)
        return self.scaled(z)


class Mixed(nn.Module):
    """Sums pixels, with the channels left."""

    def forward(self, h: Tensor) -> Tensor:
        return h.sum(-1)


@st.composite
def plans(
    draw: st.DrawFn, exact: bool = False, powers: tuple[int, ...] = (0,), ties: bool = True
) -> Plan:
    """Random plans.

    Args:
        draw: of hypothesis.
        exact: only blocks that do not round.
        powers: of two, that logits may be multiplied by.
        ties: whether samples may repeat or be fitted.
    """
    inputs = draw(st.sampled_from(("features", "positions", "tokens", "images")))
    positions = inputs in ("positions", "tokens")
    names = [*EXACT, *(WITH_POSITIONS if positions else ()), *(() if exact else SMOOTH)]
    blocks = draw(st.lists(st.sampled_from(names), max_size=3))
    if "square" in blocks:  # bits double: once is enough
        blocks = [name for place, name in enumerate(blocks) if name != "square" or not place]
    likelihood = draw(st.sampled_from(("categorical", "bernoulli", "gaussian")))
    least = 2 if likelihood == "categorical" else 1
    same = ("", "", "two", "all", "nearly two") if ties else ("",)
    fitted = ("", "", "one", "all") if ties else ("",)
    return Plan(
        inputs=inputs,
        blocks=tuple(blocks),
        outputs=draw(st.sampled_from(("pooled", "positions"))) if positions else "pooled",
        likelihood=likelihood,
        samples=draw(st.integers(1, 5)),
        positions=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 3)),
        classes=draw(st.integers(least, 4)),
        power=draw(st.sampled_from(powers)),
        same=draw(st.sampled_from(same)),
        fitted=draw(st.sampled_from(fitted)),
        ignored=draw(st.booleans()),
        soft=draw(st.booleans()) if likelihood == "bernoulli" else False,
        head_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(("float64", "float32"))),
        seed=draw(st.integers(0, 2**20)),
    )

"""Layers whose backward can be differentiated in its cotangent at the cost of the layer itself.

J v is a derivative of u -> J^T u in u. Torch's double-backward of convolutions and normalisations
also computes, or splits into many steps, what only derivatives in the inputs need. Here the
backward u -> B^T u is a function of u with derivative v -> B v, one native kernel each, while the
inputs and the parameters are constants; the graph of a linearization is built that way.

A derivative taken inside a forward may depend on the inputs: then torch's own formula is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from evalkit.layers import ParameterGradients, ReplacedLayer

Change = tuple[Tensor | None, Tensor | None]
"""Of a layer's weight and bias, None where there is none."""


class Backward:
    """How backwards through replaced layers are run, as the linearization of one batch asks.

    Attributes:
        linear: the backward is to be a function of its cotangent alone.
        collected: where a dict, layers put their parameters' gradients there by the layer's id:
            with those of the inputs they take less than by themselves.
        changes: of weights and biases by the layer's id, each taken by the layer that pushes next:
            added to what it pushes they take less than by themselves.
    """

    def __init__(self) -> None:
        self.linear = False
        self.collected: dict[int, ParameterGradients] | None = None
        self.changes: dict[int, Change] = {}

    @contextmanager
    def linearizing(self) -> Iterator[None]:
        """Build the graph of u -> J^T u."""
        self.linear = True
        try:
            yield
        finally:
            self.linear = False

    @contextmanager
    def collecting(self) -> Iterator[dict[int, ParameterGradients]]:
        """Take the gradients of parameters along."""
        self.collected = {}
        try:
            yield self.collected
        finally:
            self.collected = None

    @contextmanager
    def changing(self, changes: dict[int, Change]) -> Iterator[None]:
        """Add changes of parameters where their layers push; those not taken are left in it."""
        self.changes = changes
        try:
            yield
        finally:
            self.changes = {}

    def push(self, layer: ReplacedLayer, v: Tensor) -> Tensor:
        """Return B v, and what a change of the layer's parameters adds."""
        change = self.changes.pop(id(layer), None)
        return layer.push(v) if change is None else layer.push_changed(v, *change)

    def pull(self, layer: ReplacedLayer, u: Tensor) -> Tensor:
        """Return B^T u, outside of graphs."""
        trained = any(p is not None and p.requires_grad for p in (layer.weight, layer.bias))
        if self.collected is None or not trained:
            return layer.pull(u)
        pulled, self.collected[id(layer)] = layer.pull_all(u)
        return pulled


def replaced(layer: ReplacedLayer, inputs: Tensor, backward: Backward) -> Tensor:
    """Return the outputs of a layer, with a backward that can be differentiated cheaply.

    Args:
        layer: the call.
        inputs: its inputs with their graph.
        backward: how its backward is run.
    """
    outputs = layer.call(inputs.detach(), *layer.constants)
    anchor = None
    if any(value is not None and value.requires_grad for value in (layer.weight, layer.bias)):
        anchor = _Parameters.apply(layer, (inputs,), outputs.shape, layer.weight, layer.bias)
    # In tuples, so that torch draws no edge to these tensors.
    return _Call.apply(layer, backward, inputs, anchor, (outputs,))


def _native(
    layer: ReplacedLayer, inputs: Tensor, wanted: Sequence[bool], u: Tensor
) -> tuple[Tensor, ...]:
    """Return torch's own gradients; under grad mode, differentiable in everything.

    Args:
        layer: the call.
        inputs: its inputs with their graph.
        wanted: which of inputs, weight and bias.
        u: like the outputs.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        values = (inputs if graph else inputs.detach(), layer.weight, layer.bias)
        # Aliases: inputs that depend on the weight, or a bias that is another's, count apart.
        aliases = [None if value is None else value.view_as(value) for value in values]
        assert aliases[0] is not None
        outputs = layer.call(aliases[0], *aliases[1:])
    places = [
        alias for alias, one in zip(aliases, wanted, strict=True) if one and alias is not None
    ]
    return torch.autograd.grad(outputs, places, u, create_graph=graph)


class _Call(Function):
    """The layer as a function of its inputs; ``anchor`` stands for its parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: ReplacedLayer,
        backward: Backward,
        inputs: Tensor,
        anchor: Tensor | None,
        outputs: Sequence[Tensor],
    ) -> Tensor:
        ctx.layer, ctx.how = layer, backward
        ctx.save_for_backward(inputs)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        pulled = None
        if ctx.needs_input_grad[2]:
            if not torch.is_grad_enabled():
                pulled = ctx.how.pull(ctx.layer, u)
            elif ctx.how.linear:
                pulled = _Pull.apply(ctx.layer, ctx.how, u)
            else:
                (pulled,) = _native(ctx.layer, inputs, [True, False, False], u)
        return None, None, pulled, u if ctx.needs_input_grad[3] else None, None


class _Pull(Function):
    """u -> B^T u, whose derivative is v -> B v."""

    @staticmethod
    def forward(ctx: Any, layer: ReplacedLayer, backward: Backward, u: Tensor) -> Tensor:
        ctx.layer, ctx.how = layer, backward
        return layer.pull(u)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, ctx.how.push(ctx.layer, v)


class _Parameters(Function):
    """The layer as a function of its parameters: a node of its own, run only where they count."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: ReplacedLayer,
        inputs: Sequence[Tensor],
        shape: torch.Size,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.layer, ctx.inputs = layer, inputs
        parameter = weight if weight is not None else bias
        assert parameter is not None
        return parameter.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.inputs
        gradients = iter(_native(ctx.layer, inputs, [False, *ctx.needs_input_grad[3:]], u))
        found = (next(gradients) if needed else None for needed in ctx.needs_input_grad[3:])
        return None, None, None, *found

"""Layers whose backward can be differentiated in its cotangent at the cost of the layer itself.

J v is a derivative of u -> J^T u in u. Torch's double-backward of convolutions and normalisations
also computes, or splits into many steps, what only derivatives in the inputs need. Here the
backward u -> (B^T u, D_W u, D_b u), with B, W and b's transposed maps, is a function of its own,
whose derivative in u is (v, v_W, v_b) -> B v + (what v_W and v_b add to the outputs): a native
kernel each, and all that a linearization asks for.

A derivative taken inside a forward may depend on the inputs and the parameters. Which one is wanted
autograd's engine knows: it runs a node only on the way to what was asked for. So torch's own
formula is computed where somebody differentiates in inputs or parameters, and nowhere else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from evalkit.layers.base import Layer

Gradients = Sequence[Tensor | None]
"""In inputs, weight and bias, None where not wanted."""


@dataclass(frozen=True, eq=False)
class ReplacedLayer(Layer):
    """A layer whose double-backward torch computes with more work than it takes.

    With B the Jacobian of the outputs in the inputs, ``pull`` is u -> B^T u with the gradients of
    the parameters, and ``push`` v -> B v.
    """

    @cached_property
    def constants(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias without their graph."""
        weight, bias = (None if p is None else p.detach() for p in (self.weight, self.bias))
        return weight, bias

    def replaced(self, inputs: Tensor) -> Tensor:
        """Return the outputs, with a backward that can be differentiated cheaply."""
        outputs = self.call(inputs.detach(), *self.constants)
        # In a tuple, so that torch draws no edge to it.
        return _Call.apply(self, (outputs,), *map(_node, (inputs, self.weight, self.bias)))

    @abstractmethod
    def call(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the outputs by torch's own layer."""

    @abstractmethod
    def pull(self, u: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Return B^T u and the gradients in weight and bias, which together take less than each.

        Args:
            u: like the outputs.
            wanted: which of the three.
        """

    def parameter_gradients(
        self, d: Tensor, weight: bool, bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients in weight and bias, together, without those in the inputs."""
        _, by_weight, by_bias = self.pull(d, [False, weight, bias])
        return by_weight, by_bias

    @abstractmethod
    def push(self, v: Tensor) -> Tensor:
        """Return B v: like the outputs."""

    @abstractmethod
    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return how far a change of weight and bias moves the outputs: of their shape or less.

        Args:
            weight: v_W, None for no change.
            bias: v_b, None for no change.
        """

    def push_changed(self, v: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return B v and how far a change of weight and bias moves the outputs, added up.

        Args:
            v: like the inputs, None for no change.
            weight: v_W, None for no change.
            bias: v_b, None for no change.
        """
        if v is None:
            return self.moved(weight, bias)
        pushed = self.push(v)
        return pushed if weight is None and bias is None else self.add_moved(pushed, weight, bias)

    def add_moved(self, pushed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Add, in place, how far a change of weight and bias moves the outputs."""
        return pushed.add_(self.moved(weight, bias))


def _node(value: Tensor | None) -> Tensor | None:
    """Return a value with a node of the graph behind it, which the engine can be asked about."""
    if value is None or value.grad_fn is not None or not value.requires_grad:
        return value
    return value.view_as(value)


def _wanted(values: Sequence[Tensor | None]) -> list[bool]:
    """Return which values the backward that runs is to bring gradients to."""
    # Private, and the only way to ask: `needs_input_grad` says what could be wanted, not what is.
    will_run = torch._C._will_engine_execute_node
    return [x is not None and x.grad_fn is not None and will_run(x.grad_fn) for x in values]


class _Call(Function):
    """(x, W, b) -> y, with :class:`_Pull` as its backward."""

    @staticmethod
    def forward(
        ctx: Any, layer: ReplacedLayer, outputs: Sequence[Tensor], *values: Tensor | None
    ) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*values)
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        values = ctx.saved_tensors
        wanted = _wanted(values)
        if torch.is_grad_enabled():
            # Someone will differentiate this backward again (create_graph).
            return None, None, *_Pull.apply(ctx.layer, wanted, u, *values[:2])
        return None, None, *ctx.layer.pull(u, wanted)


class _Pull(Function):
    """(u, x, W) -> (B^T u, D_W u, D_b u); along u, (v, v_W, v_b) -> B v + what v_W and v_b add."""

    @staticmethod
    def forward(
        ctx: Any, layer: ReplacedLayer, wanted: Sequence[bool], u: Tensor, *values: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.layer, ctx.pulled = layer, wanted
        ctx.set_materialize_grads(False)  # what has not changed comes as None
        ctx.save_for_backward(u, *values)
        return tuple(layer.pull(u, wanted))

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
        u, *values = ctx.saved_tensors
        if all(change is None for change in v):
            return (None,) * 5
        wanted = _wanted(values)
        # Derivatives in inputs or weight are wanted as well: by torch's own formula.
        if torch.is_grad_enabled() or any(wanted):
            return None, None, *_derivatives(ctx.layer, ctx.pulled, u, values, v)
        return None, None, ctx.layer.push_changed(*v).expand_as(u), None, None


def _derivatives(
    layer: ReplacedLayer,
    pulled: Sequence[bool],
    u: Tensor,
    values: Sequence[Tensor | None],
    v: Gradients,
) -> tuple[Tensor | None, ...]:
    """Return the derivatives of a backward in u, inputs and weight by torch's own formula.

    Args:
        layer: the call.
        pulled: what the backward brought.
        u: the cotangent that it started from.
        values: inputs and weight.
        v: changes of what it brought.
    """
    graph = torch.is_grad_enabled()

    def own(value: Tensor) -> Tensor:
        # Inputs that depend on the weight count apart.
        kept = graph and value.requires_grad
        return value.view_as(value) if kept else value.detach().requires_grad_()

    # The layer runs again as torch has it, on values whose derivatives can be told apart.
    with torch.enable_grad():
        u = own(u)
        inputs, weight = owned = [None if x is None else own(x) for x in values]
        assert inputs is not None
        bias = None if layer.bias is None else own(layer.bias.detach())
        outputs = layer.call(inputs, weight, bias)
        places = [x for x, one in zip((*owned, bias), pulled, strict=True) if one and x is not None]
        found = iter(torch.autograd.grad(outputs, places, u, create_graph=True))
    pairs = [
        (root, change)
        for root, change in zip([next(found) if one else None for one in pulled], v, strict=True)
        if root is not None and change is not None
    ]
    roots, changes = zip(*pairs, strict=True)
    sources = [x for x in (u, *owned) if x is not None]
    derivatives = iter(
        torch.autograd.grad(roots, sources, changes, create_graph=graph, allow_unused=True)
    )
    return tuple(None if x is None else next(derivatives) for x in (u, *owned))

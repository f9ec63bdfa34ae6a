"""What the Jacobian, its transpose and the Gram matrix need to know of a layer.

A layer y = f(x; W, b) that is affine in its parameters acts on them through its outputs alone: a
change (v_W, v_b) moves y by f(x; v_W, v_b) (for a normalisation by v_W x_hat + v_b), and output
gradients d give the parameters' gradients, the transpose of that map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from evalkit.layers.low_rank import LowRank
from evalkit.layers.rows import Formed, GradientRows
from evalkit.layers.work import LayerWork


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """One call of a layer with N samples on axis 0 of its inputs.

    Attributes:
        inputs: x, detached.
        weight: W as the call used it, None where it has none.
        bias: b as the call used it, None where it has none.
    """

    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None

    has_matrix: ClassVar[bool] = False
    """Whether the weight is a matrix at each position, and its rows are outer products, of which
    those of the bias may be a last column."""

    @property
    def kind(self) -> Hashable:
        """What must be equal for the rows of two calls with one weight to be joined."""
        return type(self)

    @property
    def work(self) -> LayerWork:
        """What the call takes: nothing where its weight is no matrix."""
        return LayerWork()

    def replaced(self, inputs: Tensor) -> Tensor | None:
        """Return the outputs with a backward cheaper to differentiate, None where torch's is best.

        Args:
            inputs: of the call, with their graph.
        """
        return None

    @property
    def through_outputs(self) -> MovedLayer | None:
        """The layer itself where its parameters are best reached through its outputs."""
        return None

    @abstractmethod
    def parameter_gradients(
        self, d: Tensor, weight: bool, bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients in weight and bias for output gradients d, as far as wanted."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Return what the rows of all cotangents share: at each position, what d meets there.

        For outer products these are the inputs, (groups, N, T, in).
        """

    @abstractmethod
    def rows_at(self, positions: Tensor, d: Tensor, bias: bool = False) -> GradientRows:
        """Return the weight's per-sample gradients for output gradients d, (K, N, ...).

        Args:
            positions: what :meth:`positions` returned, or a map of it.
            d: output gradients of K cotangents for each sample.
            bias: add those of the bias to the same rows, where ``has_matrix`` says that they can.
        """

    def weight_rows(self, d: Tensor, bias: bool = False) -> GradientRows:
        """Return the rows of :meth:`rows_at` for one set of cotangents, as inner products take."""
        return self.rows_at(self.positions(), d, bias)

    @abstractmethod
    def bias_rows(self, d: Tensor) -> Formed:
        """Return the bias's per-sample gradients for output gradients d, (K, N, ...)."""


@dataclass(frozen=True, eq=False)
class MovedLayer(Layer):
    """A layer whose parameters J and its transpose reach through its outputs.

    A change of them moves the outputs, the outputs' gradients d make theirs: no gradient of a
    weight is a step of a backward, and where it only moves outputs again it need not be formed.
    """

    @property
    def through_outputs(self) -> MovedLayer:
        """Itself."""
        return self

    @classmethod
    def together(cls, layers: Sequence[Any]) -> WeightCalls:
        """Return the calls of such layers that share a weight."""
        return WeightCalls(layers)

    @abstractmethod
    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return how far a change of weight and bias moves the outputs: like the outputs.

        Args:
            weight: v_W, None for no change.
            bias: v_b, None for no change.
        """

    def moved_by(self, weight: LowRank, bias: Tensor | None) -> Tensor:
        """Return :meth:`moved` for a change of the weight of low rank."""
        return self.moved(weight.formed(), bias)

    def moved_along(self, weight: Tensor | LowRank | None, bias: Tensor | None) -> Tensor:
        """Return :meth:`moved` for a change of the weight of any kind."""
        if isinstance(weight, LowRank):
            return self.moved_by(weight, bias)
        return self.moved(weight, bias)

    def parameter_gradients(
        self, d: Tensor, weight: bool, bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients in weight and bias for output gradients d, as far as wanted."""
        return (
            self.weight_gradient(d) if weight else None,
            self.bias_gradient(d) if bias else None,
        )

    @abstractmethod
    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return the gradient in the weight for output gradients d: like the weight."""

    @abstractmethod
    def bias_gradient(self, d: Tensor) -> Tensor:
        """Return the gradient in the bias for output gradients d: like the bias."""


class WeightCalls:
    """The calls that share one weight: its gradient is the sum of theirs.

    Args:
        layers: the calls.
    """

    def __init__(self, layers: Sequence[MovedLayer]) -> None:
        self._layers = layers

    def write_gradient(self, d: Sequence[Tensor], scale: Tensor, out: Tensor) -> None:
        """Write the weight's gradient for output gradients d of each call, times a scale."""
        torch.mul(self._gradient(d), scale, out=out)

    def through(self, d: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return how far the weight's own gradient for d moves the outputs of each call."""
        gradient = self._gradient(d)
        return [layer.moved(gradient, None) for layer in self._layers]

    def _gradient(self, d: Sequence[Tensor]) -> Tensor:
        first, *rest = map(_weight_gradient, self._layers, d)
        return sum(rest, first)


def _weight_gradient(layer: MovedLayer, d: Tensor) -> Tensor:
    return layer.weight_gradient(d)


def weight_calls(layers: Sequence[MovedLayer]) -> WeightCalls:
    """Return the calls that share a weight: of one kind, or of several as for a tied embedding."""
    # A tied table is looked up in one call and multiplied in another: then gradients only add up.
    kinds = {type(layer) for layer in layers}
    return kinds.pop().together(layers) if len(kinds) == 1 else WeightCalls(layers)

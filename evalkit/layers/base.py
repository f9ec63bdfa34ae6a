"""What the Jacobian, its transpose and the Gram matrix need to know of a layer.

A layer y = f(x; W, b) that is affine in its parameters acts on them through its outputs alone: a
change (v_W, v_b) moves y by f(x; v_W, v_b) (for a normalisation by v_W x_hat + v_b), and output
gradients d give the parameters' gradients, the transpose of that map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from evalkit.layers.rows import Formed, GradientRows


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """One call of a layer with N samples on axis 0 of its inputs.

    Attributes:
        inputs: x, detached.
        weight: W as the call used it, None where it has none.
        bias: b, likewise.
    """

    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @property
    def kind(self) -> Hashable:
        """What must be equal for the rows of two calls with one weight to be joined."""
        return type(self)

    @property
    def matrix_shape(self) -> tuple[int, int, int, int]:
        """Groups, positions, in and out of the weight as a matrix; zeros where it is none."""
        return 0, 0, 0, 0

    @abstractmethod
    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return how far a change of weight and bias moves the outputs: like the outputs.

        Args:
            weight: v_W, None for no change.
            bias: v_b, likewise.
        """

    @abstractmethod
    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return the gradient in the weight for output gradients d: like the weight."""

    @abstractmethod
    def bias_gradient(self, d: Tensor) -> Tensor:
        """Return the gradient in the bias for output gradients d: like the bias."""

    def through_weight(self, d: Tensor) -> Tensor:
        """Return how far the weight's own gradient for d moves the outputs: like the outputs."""
        return self.moved(self.weight_gradient(d), None)

    def positions(self) -> Tensor | None:
        """Return what the rows of all cotangents share: at each position, what d is multiplied by.

        For outer products these are the inputs, (groups, N, T, in); None where there is nothing.
        """
        return None

    @abstractmethod
    def weight_rows(
        self, d: Tensor, bias: bool = False, positions: Tensor | None = None
    ) -> GradientRows:
        """Return the weight's per-sample gradients for output gradients d, (K, N, ...).

        Args:
            d: output gradients of K cotangents for each sample.
            bias: add those of the bias to the same rows, which only outer products can.
            positions: what :meth:`positions` returned, if it has been asked before.
        """

    @abstractmethod
    def bias_rows(self, d: Tensor) -> Formed:
        """Return the bias's per-sample gradients for output gradients d, (K, N, ...)."""


@dataclass(frozen=True, eq=False)
class ParameterGradients:
    """The gradients of a layer's parameters for one backward, None where not computed.

    Attributes:
        weight: like the weight.
        bias: like the bias.
    """

    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class ReplacedLayer(Layer):
    """A layer whose double-backward torch computes with more work than it takes.

    With B the Jacobian of the outputs in the inputs, ``pull`` is u -> B^T u and ``push`` v -> B v.
    """

    @cached_property
    def constants(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias without their graph."""
        weight, bias = (None if p is None else p.detach() for p in (self.weight, self.bias))
        return weight, bias

    @abstractmethod
    def call(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the outputs by torch's own layer."""

    @abstractmethod
    def native(self, d: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        """Return torch's gradients in inputs, weight and bias for output gradients d.

        Args:
            d: like the outputs.
            wanted: which of the three; the others come as None or undefined.
        """

    def pull(self, u: Tensor) -> Tensor:
        """Return B^T u: like the inputs."""
        return self.native(u, [True, False, False])[0]

    def pull_all(self, u: Tensor) -> tuple[Tensor, ParameterGradients]:
        """Return B^T u and the gradients of trained parameters for output gradients u."""
        trained = self._trained()
        pulled, *found = self.native(u, [True, *trained])
        return pulled, _chosen(found, trained)

    def parameter_gradients(self, d: Tensor) -> ParameterGradients:
        """Return the gradients of trained parameters alone: together they take less than each."""
        trained = self._trained()
        return _chosen(self.native(d, [False, *trained])[1:], trained)

    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return the gradient in the weight for output gradients d: like the weight."""
        return self.native(d, [False, True, False])[1]

    def _trained(self) -> list[bool]:
        """Return whether torch's backward is to find the gradients in weight and bias."""
        weight, bias = (p is not None and p.requires_grad for p in (self.weight, self.bias))
        return [weight, bias and self.weight is not None]

    @abstractmethod
    def push(self, v: Tensor) -> Tensor:
        """Return B v: like the outputs."""

    def push_changed(self, v: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return B v and how far a change of weight and bias moves the outputs, added up.

        Args:
            v: like the inputs.
            weight: v_W, None for no change.
            bias: v_b, likewise.
        """
        return self.push(v).add_(self.moved(weight, bias))


def _chosen(found: Sequence[Tensor], trained: Sequence[bool]) -> ParameterGradients:
    return ParameterGradients(*(g if one else None for g, one in zip(found, trained, strict=True)))

"""What a backward of the logits brought to the calls of layers with a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from evalkit.layers import ParameterGradients, ReplacedLayer
from evalkit.linearization.recorder import LayerUse


class Pulled:
    """What a backward brought to the calls of ruled parameters.

    Args:
        uses: the calls.
        d: the gradients in their outputs, None where the logits do not depend on them.
        collected: gradients of parameters that the backward took along, by the layer's id.

    Attributes:
        reached: the calls that the logits depend on.
    """

    def __init__(
        self,
        uses: Sequence[LayerUse],
        d: Sequence[Tensor | None],
        collected: dict[int, ParameterGradients],
    ) -> None:
        self._uses, self.d, self._collected = uses, d, collected
        self.reached = [index for index, value in enumerate(d) if value is not None]

    def weight_gradient(self, indices: Sequence[int]) -> Tensor:
        """Return the gradient of a weight that these calls share."""
        parts = [self._one(index, "weight") for index in indices]
        return sum(parts[1:], parts[0])

    def bias_gradient(self, indices: Sequence[int]) -> Tensor:
        """Return the gradient of a bias that these calls share."""
        parts = [self._one(index, "bias") for index in indices]
        return sum(parts[1:], parts[0])

    def through_weight(self, index: int) -> Tensor:
        """Return how far the weight's own gradient moves the outputs of its only call."""
        d = self.d[index]
        assert d is not None
        return self._uses[index].layer.through_weight(d)

    def _one(self, index: int, role: Literal["weight", "bias"]) -> Tensor:
        layer, d = self._uses[index].layer, self.d[index]
        assert d is not None
        found = self._collected.get(id(layer))
        if found is None and isinstance(layer, ReplacedLayer):  # its inputs need no gradient
            found = self._collected[id(layer)] = layer.parameter_gradients(d)
        known = None if found is None else getattr(found, role)
        if known is not None:
            return known
        return layer.weight_gradient(d) if role == "weight" else layer.bias_gradient(d)

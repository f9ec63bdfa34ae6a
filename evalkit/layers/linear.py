"""Linear layers: y = x W^T + b."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from evalkit.layers.base import Layer
from evalkit.layers.rows import Formed, OuterProducts


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """One call of ``F.linear`` with inputs (N, ..., in)."""

    @property
    def matrix_shape(self) -> tuple[int, int, int, int]:
        """One group, the positions, in and out."""
        assert self.weight is not None
        outside, inside = self.weight.shape
        return 1, self.inputs[0].numel() // inside, inside, outside

    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return x v_W^T + v_b."""
        if weight is not None:
            return functional.linear(self.inputs, weight, bias)
        assert bias is not None
        return bias.expand(*self.inputs.shape[:-1], len(bias))

    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return D^T A over all positions."""
        return d.flatten(0, -2).T @ self.inputs.flatten(0, -2)

    def bias_gradient(self, d: Tensor) -> Tensor:
        """Return the column sums of D."""
        return d.flatten(0, -2).sum(0)

    def positions(self) -> Tensor:
        """Return the inputs of each sample."""
        return self.inputs.reshape(1, len(self.inputs), -1, self.inputs.shape[-1])

    def weight_rows(
        self, d: Tensor, bias: bool = False, positions: Tensor | None = None
    ) -> OuterProducts:
        """Return rows D_n^T A_n."""
        a = self.positions() if positions is None else positions
        return OuterProducts(a, d.reshape(*d.shape[:2], -1, d.shape[-1])[None], bias)

    def bias_rows(self, d: Tensor) -> Formed:
        """Return the column sums of D_n."""
        return Formed(d.double().reshape(*d.shape[:2], -1, d.shape[-1]).sum(2))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Linear | None:
    """Return the layer of a call of ``F.linear``, whose argument names these are, or None."""
    if input.dim() < 2 or weight.dim() != 2:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return Linear(input.detach(), weight, bias)

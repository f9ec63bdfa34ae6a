"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.base import ParameterGradients, ReplacedLayer
from evalkit.layers.rows import Formed, OuterProducts


@dataclass(frozen=True, eq=False)
class Convolution(ReplacedLayer):
    """One call of ``F.conv1d``, ``F.conv2d`` or ``F.conv3d``: inputs (N, in, *spatial).

    Torch's double-backward of a convolution also forms the weight's gradient, which nothing needs
    here; B^T u is a transposed convolution and B v the convolution itself.

    Attributes:
        stride: per spatial axis.
        padding: zeros on each side, per spatial axis.
        dilation: per spatial axis.
        groups: input channels are split among so many groups of output channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kind(self) -> Hashable:
        """Convolutions with one weight differ in nothing but the number of groups."""
        return type(self), self.groups

    @property
    def matrix_shape(self) -> tuple[int, int, int, int]:
        """Groups, output positions, in * kernel and out, both in one group."""
        assert self.weight is not None
        positions = 1
        for axis, size in enumerate(self.weight.shape[2:]):
            room = self.inputs.shape[2 + axis] + 2 * self.padding[axis]
            reach = self.dilation[axis] * (size - 1) + 1
            positions *= (room - reach) // self.stride[axis] + 1
        outside = len(self.weight) // self.groups
        return self.groups, positions, self.weight[0].numel(), outside

    def call(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the convolution."""
        assert weight is not None
        layout = (self.stride, self.padding, self.dilation, False, [0] * len(self.stride))
        return torch.convolution(inputs, weight, bias, *layout, self.groups)

    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the convolution of x with v_W, and v_b added."""
        if weight is not None:
            return self.call(self.inputs, weight, bias)
        assert bias is not None
        return bias.view(1, -1, *[1] * len(self.stride))

    def _backward(self, d: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        """Return torch's gradients in inputs, weight and bias, as far as wanted."""
        layout = (self.stride, self.padding, self.dilation, False, [0] * len(self.stride))
        assert self.weight is not None
        return torch.ops.aten.convolution_backward(
            d, self.inputs, self.weight.detach(), [len(self.weight)], *layout, self.groups, wanted
        )

    def pull(self, u: Tensor) -> Tensor:
        """Return the transposed convolution of u."""
        return self._backward(u, [True, False, False])[0]

    def pull_all(self, u: Tensor) -> tuple[Tensor, ParameterGradients]:
        """Return the transposed convolution, the correlation with x and the sums of u."""
        pulled, weight, bias = self._backward(u, [True, True, self.bias is not None])
        return pulled, ParameterGradients(weight, bias if self.bias is not None else None)

    def push(self, v: Tensor) -> Tensor:
        """Return the convolution of v, without the bias."""
        assert self.weight is not None
        return self.call(v, self.weight.detach(), None)

    def weight_gradient(self, d: Tensor) -> Tensor:
        """Return the correlation of x with d."""
        return self._backward(d, [False, True, False])[1]

    def bias_gradient(self, d: Tensor) -> Tensor:
        """Return the sums of d over samples and positions."""
        return d.sum((0, *range(2, d.dim())))

    def positions(self) -> Tensor:
        """Return the patch of inputs that each position of the outputs sees, in each group."""
        return self._patches().unflatten(1, (self.groups, -1)).movedim(1, 0).transpose(-1, -2)

    def weight_rows(
        self, d: Tensor, bias: bool = False, positions: Tensor | None = None
    ) -> OuterProducts:
        """Return rows D_n^T A_n in each group, A_n holding the patches."""
        a = self.positions() if positions is None else positions
        d = d.flatten(3).unflatten(2, (self.groups, -1)).movedim(2, 0)
        return OuterProducts(a, d.transpose(-1, -2), bias)

    def _patches(self) -> Tensor:
        """Return the inputs that each output position sees: (N, in * kernel, positions)."""
        assert self.weight is not None
        x = functional.pad(self.inputs, [p for p in reversed(self.padding) for _ in range(2)])
        kernel = self.weight.shape[2:]
        for axis, size in enumerate(kernel):
            reach = (size - 1) * self.dilation[axis] + 1
            x = x.unfold(2 + axis, reach, self.stride[axis])[..., :: self.dilation[axis]]
        # Now (N, in, *positions, *kernel).
        dims = len(kernel)
        order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
        return x.permute(order).reshape(*x.shape[:1], x.shape[1] * kernel.numel(), -1)

    def bias_rows(self, d: Tensor) -> Formed:
        """Return the sums of d_n over positions."""
        return Formed(d.double().flatten(3).sum(3))


def _convolution(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Convolution | None:
    """Return the layer of a call (its argument names are torch's), or None if it has no rule."""

    def each_axis(value: int | Sequence[int]) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * dims if len(values) == 1 else values

    if input.dim() != dims + 2:
        return None
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (
            padding == "same" and set(each_axis(stride)) != {1}
        ):
            return None  # torch refuses the call
        spans = [
            step * (size - 1)
            for step, size in zip(each_axis(dilation), weight.shape[2:], strict=True)
        ]
        if padding != "valid" and any(span % 2 for span in spans):
            return None  # padded more on one side than on the other
        padding = 0 if padding == "valid" else [span // 2 for span in spans]
    layout = each_axis(stride), each_axis(padding), each_axis(dilation)
    return Convolution(input.detach(), weight, bias, *layout, groups)


CONVOLUTIONS: dict[Callable[..., Tensor], Callable[..., Convolution | None]] = {
    functional.conv1d: partial(_convolution, 1),
    functional.conv2d: partial(_convolution, 2),
    functional.conv3d: partial(_convolution, 3),
}

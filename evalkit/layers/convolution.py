"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.budget import Budget
from evalkit.layers.products import add_products
from evalkit.layers.replaced import Gradients, ReplacedLayer
from evalkit.layers.rows import (
    Formed,
    GradientRows,
    OuterProducts,
)
from evalkit.layers.work import LayerWork, by_pairs

FEWEST_CHANNELS = 8
"""Input channels from which on a convolution forms per-sample gradients faster than patches: 1 to
10 times faster on two cores, with three channels 1.5 times slower."""


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

    has_matrix = True

    @property
    def work(self) -> LayerWork:
        """Groups, output positions, in * kernel and out, both in one group."""
        assert self.weight is not None
        positions = 1
        for axis, size in enumerate(self.weight.shape[2:]):
            room = self.inputs.shape[2 + axis] + 2 * self.padding[axis]
            reach = self.dilation[axis] * (size - 1) + 1
            positions *= (room - reach) // self.stride[axis] + 1
        outside = len(self.weight) // self.groups
        return LayerWork(self.groups, positions, self.weight[0].numel(), outside)

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

    def pull(self, u: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Return the transposed convolution of u, the correlation with x and the sums of u."""
        weight = self.constants[0]
        assert weight is not None
        return self.gradients(u, self.inputs, weight, self.groups, wanted)

    def gradients(
        self, d: Tensor, inputs: Tensor, weight: Tensor, groups: int, wanted: Sequence[bool]
    ) -> Gradients:
        """Return the gradients of a convolution with this one's layout in what is wanted."""
        layout = (self.stride, self.padding, self.dilation, False, [0] * len(self.stride))
        return torch.ops.aten.convolution_backward(
            d, inputs, weight, [len(weight)], *layout, groups, wanted
        )

    def push(self, v: Tensor) -> Tensor:
        """Return the convolution of v, without the bias."""
        return self.call(v, self.constants[0], None)

    def positions(self) -> Tensor:
        """Return the patch of inputs that each position of the outputs sees, in each group."""
        return self._patches().unflatten(1, (self.groups, -1)).movedim(1, 0).transpose(-1, -2)

    def rows_at(self, positions: Tensor, d: Tensor, bias: bool = False) -> OuterProducts:
        """Return rows D_n^T A_n in each group, A_n holding the patches."""
        d = d.flatten(3).unflatten(2, (self.groups, -1)).movedim(2, 0)
        return OuterProducts(positions, d.transpose(-1, -2), bias)

    def weight_rows(self, d: Tensor, bias: bool = False) -> OuterProducts | ConvolutionRows:
        """Return these rows without their patches where that is faster."""
        # As a convolution with a group for each sample; patches are as many times larger than the
        # inputs as the kernel has places.
        if self.inputs.device.type == "cpu" and self.inputs.shape[1] >= FEWEST_CHANNELS:
            return ConvolutionRows(self, d, bias)
        return self.rows_at(self.positions(), d, bias)

    def _patches(self) -> Tensor:
        """Return the inputs that each output position sees: (N, in * kernel, positions)."""
        assert self.weight is not None
        x = functional.pad(self.inputs, [p for p in reversed(self.padding) for _ in range(2)])
        kernel = self.weight.shape[2:]
        # Views, so that patches are written once, by the reshape at the end.
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


@dataclass(frozen=True, eq=False)
class ConvolutionRows(GradientRows):
    """Rows of the weight of a convolution, formed without its patches.

    They are the weight's gradient in one convolution whose groups are the samples (Rochette et
    al., 2019, arXiv 1912.06015). Where pairs of positions cost less, or no more positions than
    output channels make the patches small, these are taken: 1 to 4 times faster there.

    Attributes:
        layer: the call.
        d: (K, N, out, *spatial), the output gradients.
        bias: whether the rows of the bias belong to these.
    """

    layer: Convolution
    d: Tensor
    bias: bool

    @classmethod
    def joined(cls, parts: Sequence[ConvolutionRows]) -> ConvolutionRows | OuterProducts:
        """Return rows over the positions of all parts."""
        return parts[0] if len(parts) == 1 else OuterProducts.joined([p.outer for p in parts])

    @cached_property
    def outer(self) -> OuterProducts:
        """The same rows with their patches."""
        return self.layer.rows_at(self.layer.positions(), self.d, self.bias)

    @property
    def bare(self) -> ConvolutionRows:
        """The same rows without their patches."""
        return replace(self, layer=replace(self.layer, bias=None))

    def formed(self, samples: slice) -> Tensor:
        """Return the rows of some samples, as outer products have them."""
        return self.outer.formed(samples)

    def add_inner(
        self, total: Tensor, other: ConvolutionRows | OuterProducts, budget: Budget
    ) -> None:
        """Add the inner products by the cheaper of two routes."""
        work = self.layer.work
        few = work.positions <= work.outside  # patches are then fewer numbers than the gradients
        if (
            few
            or not isinstance(other, ConvolutionRows)
            or by_pairs(self._shape, other._shape, work.inside)
        ):
            self.outer.add_inner(total, other, budget)
            return
        same = other is self
        most = max(self.d.shape[:2].numel(), other.d.shape[:2].numel())
        for channels in self._slices(most, budget):
            rows = self._formed(channels)
            add_products(total, rows, rows if same else other._formed(channels), budget)
        if self.bias:
            sums = self._sums()
            add_products(total, sums, sums if same else other._sums(), budget)

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape of d as outer products have it."""
        work = self.layer.work
        return work.groups, *self.d.shape[:2], work.positions, work.outside

    def _slices(self, rows: int, budget: Budget) -> Iterator[slice]:
        """Return which output channels are formed at once: of whole groups, where there are some.

        Args:
            rows: of the larger side.
            budget: how much is formed at a time.
        """
        groups, outside = self.layer.groups, self.layer.work.outside
        step = max(1, budget.formed // (rows * self.layer.work.inside))
        unit = outside if groups > 1 else min(outside, budget.channels)
        # A kernel that works on some channels together takes as long for a part of them.
        step = max(1, step // unit) * unit
        for start in range(0, groups * outside, step):
            yield slice(start, min(start + step, groups * outside))

    def _formed(self, channels: slice) -> Tensor:
        """Return the gradients of some output channels, flat: (K N, size)."""
        layer, groups, outside = self.layer, self.layer.groups, self.layer.work.outside
        assert layer.weight is not None
        x, width = layer.inputs, layer.weight.shape[1]
        if groups > 1:
            within = slice(channels.start // outside * width, channels.stop // outside * width)
            x, groups = x[:, within], (channels.stop - channels.start) // outside
        samples = len(x)
        # Samples become groups of channels of a single one: a weight's gradient for each is that
        # sample's.
        x = x.reshape(1, -1, *x.shape[2:])
        rows = []
        for d in self.d[:, :, channels]:
            one = d.reshape(1, -1, *d.shape[2:])
            # Of a weight its gradient needs the shape alone, which takes no memory.
            like = x.new_empty(()).expand(one.shape[1], *layer.weight.shape[1:])
            found = layer.gradients(one, x, like, samples * groups, [False, True, False])[1]
            assert found is not None
            rows.append(found.view(samples, -1))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _sums(self) -> Tensor:
        return self.d.double().flatten(3).sum(3).flatten(0, 1)


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

    # Torch takes a single sample without its axis too.
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

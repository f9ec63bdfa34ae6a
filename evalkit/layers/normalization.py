"""Layer and group normalisation: y = w x_hat + b, x_hat with mean 0 and variance 1."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.layers.replaced import Gradients, ReplacedLayer
from evalkit.layers.rows import Formed

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Normalization(ReplacedLayer):
    """A normalisation over parts of a sample, then weight and bias for each channel.

    With M the derivative of x_hat in x, which is symmetric, B = diag(w) M and B^T = M diag(w):
    B^T u is torch's backward, and B v is w times its backward without a weight.

    Attributes:
        eps: added to the variance.
        mean: the mean of each part, as torch's layer returns it.
        rstd: 1 / standard deviation of each part.
    """

    eps: float
    mean: Tensor
    rstd: Tensor

    @abstractmethod
    def _backward(self, d: Tensor, weight: Tensor | None, wanted: list[bool]) -> Gradients:
        """Return torch's gradients in inputs, weight and bias, as far as wanted."""

    @abstractmethod
    def _per_channel(self, values: Tensor) -> Tensor:
        """Return a value of each channel so that it multiplies the outputs."""

    @abstractmethod
    def _channel_sums(self, values: Tensor) -> Tensor:
        """Sum (K, N, ...) over everything but draws, samples and channels: (K, N, size)."""

    def moved(self, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return v_w x_hat + v_b."""
        if weight is not None:
            return self.call(self.inputs, weight, bias)
        assert bias is not None
        return self._per_channel(bias)

    def pull(self, u: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Return M diag(w) u, the sums of u x_hat and those of u."""
        inside, weighted, shifted = wanted
        alone = shifted and self.weight is None  # which torch's kernels have no sums for
        pulled, scale, shift = self._backward(
            u, self.constants[0], [inside, weighted, shifted and not alone]
        )
        if alone:
            assert self.bias is not None
            shift = self._channel_sums(u[None]).sum((0, 1)).view_as(self.bias)
        return pulled, scale, shift

    def push(self, v: Tensor) -> Tensor:
        """Return diag(w) M v."""
        pushed = self._backward(v, None, [True, False, False])[0]
        assert pushed is not None
        weight = self.constants[0]
        return pushed if weight is None else pushed.mul_(self._per_channel(weight))

    def positions(self) -> Tensor:
        """Return x_hat."""
        return self.call(self.inputs, None, None)

    def rows_at(self, positions: Tensor, d: Tensor, bias: bool = False) -> Formed:
        """Return the sums of d_n x_hat_n, in the precision of the model's own backward."""
        return Formed(self._channel_sums(d * positions))

    def bias_rows(self, d: Tensor) -> Formed:
        """Return the sums of d_n, in the precision of the model's own backward."""
        return Formed(self._channel_sums(d))


@dataclass(frozen=True, eq=False)
class LayerNorm(Normalization):
    """One call of ``F.layer_norm``: the last axes of (N, ..., *shape) are one part.

    Attributes:
        shape: the shape of the last axes, and of weight and bias.
    """

    shape: tuple[int, ...]

    def call(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the normalised inputs."""
        return functional.layer_norm(inputs, self.shape, weight, bias, self.eps)

    def _backward(self, d: Tensor, weight: Tensor | None, wanted: list[bool]) -> Gradients:
        return aten.native_layer_norm_backward(
            d.contiguous(),
            self.inputs,
            self.shape,
            self.mean,
            self.rstd,
            weight,
            self.constants[1],
            wanted,
        )

    def _per_channel(self, values: Tensor) -> Tensor:
        return values

    def _channel_sums(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], -1, math.prod(self.shape)).sum(2)


@dataclass(frozen=True, eq=False)
class GroupNorm(Normalization):
    """One call of ``F.group_norm``: groups of channels of (N, channels, ...) are the parts.

    Attributes:
        groups: number of groups.
    """

    groups: int

    def call(self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the normalised inputs."""
        # With channels last, torch's backward crashes where the inputs need no gradient.
        outputs = functional.group_norm(inputs.contiguous(), self.groups, weight, bias, self.eps)
        return outputs.contiguous(memory_format=_memory_format(inputs))

    def _backward(self, d: Tensor, weight: Tensor | None, wanted: list[bool]) -> Gradients:
        samples, channels, *rest = self.inputs.shape
        sizes = (samples, channels, math.prod(rest), self.groups)
        return aten.native_group_norm_backward(
            d.contiguous(), self.inputs, self.mean, self.rstd, weight, *sizes, wanted
        )

    def add_moved(self, pushed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Add v_w x_hat + v_b, x_hat as scaled and shifted inputs."""
        if weight is None:
            return super().add_moved(pushed, weight, bias)
        # In one pass over the inputs, where normalising them anew would take several.
        scale, shift = self._standardization
        weight = self._per_channel(weight)
        moved = weight * shift
        pushed.addcmul_(self.inputs, weight * scale)
        return pushed.add_(moved if bias is None else moved.add_(self._per_channel(bias)))

    @cached_property
    def _standardization(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel with x_hat = scale x + shift: (N, channels, 1, ...)."""
        shape = *self.inputs.shape[:2], *[1] * (self.inputs.dim() - 2)
        size = shape[1] // self.groups
        rstd, mean = (one.repeat_interleave(size).view(shape) for one in (self.rstd, self.mean))
        return rstd, -rstd * mean

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (self.inputs.dim() - 2))

    def _channel_sums(self, values: Tensor) -> Tensor:
        return values.flatten(3).sum(3) if values.dim() > 3 else values


def _memory_format(inputs: Tensor) -> torch.memory_format:
    """Return the memory format that torch's group norm keeps."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(inputs.dim())
    if channels_last is None or inputs.is_contiguous():
        return torch.contiguous_format
    kept = inputs.is_contiguous(memory_format=channels_last)
    return channels_last if kept else torch.contiguous_format


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> LayerNorm | None:
    """Return the layer of a call of ``F.layer_norm``, whose argument names these are, or None."""
    shape = tuple(normalized_shape)
    if input.dim() <= len(shape):
        return None
    x = input.detach().contiguous()
    _, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    return LayerNorm(x, weight, bias, eps, mean, rstd, shape)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> GroupNorm | None:
    """Return the layer of a call of ``F.group_norm``, whose argument names these are, or None."""
    if input.dim() < 2 or input.shape[1] % num_groups:
        return None
    x = input.detach().contiguous()
    samples, channels, *rest = x.shape
    sizes = (samples, channels, math.prod(rest), num_groups)
    _, mean, rstd = torch.native_group_norm(x, None, None, *sizes, eps)
    return GroupNorm(x, weight, bias, eps, mean, rstd, num_groups)

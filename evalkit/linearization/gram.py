"""Gram matrices of per-sample gradients, K_nm = G_n . G_m, without the (N, P) matrix G.

G_n = J_n^T c_n for one-sample cotangents c_n. The matrix is a sum over parameters: layers with a
rule add theirs without gradients formed, what acts on every sample alike adds its own from the same
backward, all others fall back to per-sample gradients of those parameters only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from evalkit.layers.rows import Formed, GradientRows, mirror
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.per_sample import (
    CannotVectorizeError,
    PerSample,
    defining_gradients,
    inner_products,
    vectorized_gradients,
)
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import (
    OutputGradients,
    joined_biases,
    output_gradients,
    row_kinds,
    rows_of,
)
from evalkit.reductions import power_of_two

ROUTES: tuple[PerSample | None, ...] = (None, vectorized_gradients, defining_gradients)
"""From fast to slow: rules where there are some, all vectorised, all by definition. The first two
take axis 0 of every tensor to be the sample axis and samples not to influence each other."""

SMALL = 1e-140
"""Size of cotangents below which the squares of gradients come near the smallest number."""


def gram_matrix(
    batches: MicroBatches,
    cotangents: Tensor,
    route: PerSample | None,
    others: Tensor | None = None,
    kept: Side | None = None,
) -> Tensor:
    """Return the inner products of J_n^T c_kn by one route.

    Each cotangent is scaled to order one by a power of two before it is pulled back, and K scaled
    back in float64, so that a saturated sample keeps its digits where its gradient would underflow.

    Args:
        batches: the forward passes. With several, each pair of them gives a block of the matrix.
        cotangents: c, (K, N, ..., C) float64: K cotangents per sample.
        route: one of :data:`ROUTES`.
        others: (K', N, ..., C) float64, of the columns; None for c itself.
        kept: :func:`side` of the columns, so that others can have it too.

    Returns:
        (K N, K' N) float64; row k N + n belongs to cotangent k of sample n.

    Raises:
        CannotVectorizeError: the route is ``vectorized_gradients`` and the model cannot be.
    """
    scaled, rows = scaled_cotangents(cotangents, batches.dtype)
    if others is None:
        scaled_, columns = scaled, rows
    else:
        scaled_, columns = scaled_cotangents(others, batches.dtype)
    if len(batches.slices) == 1:
        left = (others is None and kept) or Side(batches[0].recording, scaled, route)
        right = left if others is None else kept or Side(left.recording, scaled_, route)
        return left.inner(right).mul_(rows[:, None]).mul_(columns)
    draws, samples = scaled.shape[:2]
    shape = (draws, samples, len(scaled_), samples)
    gram = torch.empty(shape, dtype=torch.float64, device=scaled.device)
    for i, here in enumerate(batches.slices):
        left = Side(batches[i].recording, scaled[:, here], route)
        first = i if others is None else 0
        for j, there in enumerate(batches.slices[first:], start=first):
            other = left.recording if j == i else batches[j].recording
            same = others is None and j == i
            right = left if same else Side(other, scaled_[:, there], route)
            block = left.inner(right).view(draws, here.stop - here.start, len(scaled_), -1)
            gram[:, here, :, there] = block
            if others is None:
                gram[:, there, :, here] = block.permute(2, 3, 0, 1)
    return gram.view(len(rows), len(columns)).mul_(rows[:, None]).mul_(columns)


def gram_blocks(
    batches: MicroBatches, cotangents: Tensor, route: PerSample | None
) -> dict[tuple[str, ...], Tensor]:
    """Return the part of each layer, or other parameter, in the matrix of :func:`gram_matrix`.

    Args:
        batches: the forward passes.
        cotangents: c, (K, N, ..., C) float64.
        route: one of :data:`ROUTES`.

    Returns:
        (K N, K N) float64 by the names of the parameters: a weight with the bias that always goes
        with it, or one parameter. Their sum is the matrix.
    """
    scaled, scales = scaled_cotangents(cotangents, batches.dtype)
    draws, samples = scaled.shape[:2]
    blocks: dict[tuple[str, ...], Tensor] = {}
    for i, here in enumerate(batches.slices):
        left = Side(batches[i].recording, scaled[:, here], route)
        for j, there in enumerate(batches.slices[i:], start=i):
            right = left if j == i else Side(batches[j].recording, scaled[:, there], route)
            for names, part in left.blocks(right).items():
                whole = blocks.get(names)
                if whole is None:
                    shape = (draws, samples, draws, samples)
                    whole = blocks[names] = scales.new_zeros(shape)
                part = part.view(draws, here.stop - here.start, draws, -1)
                whole[:, here, :, there] = part
                whole[:, there, :, here] = part.permute(2, 3, 0, 1)
    for names in [names for names in blocks if len(names) > 1]:
        for name in names:  # apart in some micro-batch, whose calls are others
            blocks[names] += blocks.pop((name,), torch.zeros(()))
    size = len(scales)
    return {n: scales[:, None] * one.view(size, size) * scales for n, one in blocks.items()}


def side(batches: MicroBatches, cotangents: Tensor, route: PerSample | None) -> Side | None:
    """Return per-sample gradients that several matrices have as columns.

    Args:
        batches: the forward passes.
        cotangents: c, (K, N, ..., C) float64.
        route: one of :data:`ROUTES`.

    Returns:
        What :func:`gram_matrix` keeps; None with several micro-batches, which are held in turns.
    """
    if len(batches.slices) > 1:
        return None
    return Side(batches[0].recording, scaled_cotangents(cotangents, batches.dtype)[0], route)


def scaled_cotangents(cotangents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return one-sample cotangents of order one, and the scales taken out, (K N,)."""
    # Each by its own: beside others, those of a saturated sample would underflow.
    scales = power_of_two(cotangents.flatten(2), dim=2)
    shape = (*scales.shape, *([1] * (cotangents.dim() - 2)))
    return (cotangents / scales.view(shape)).to(dtype), scales.flatten()


def row_norms(gram: Tensor, cotangents: Tensor, gram_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the norms of J_n^T c_n, whose squares may be below the smallest number: (N,).

    Args:
        gram: their inner products, (N, N).
        cotangents: c, like logits, float64.
        gram_of: makes inner products of other cotangents, (1, N, ..., C).
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    scaled, sizes = scaled_cotangents(cotangents.unsqueeze(0), cotangents.dtype)
    small = sizes < SMALL
    if not small.any():
        return norms
    return (gram_of(scaled).diagonal().clamp_min(0).sqrt() * sizes).where(small, norms)


class Side:
    """The per-sample gradients of one micro-batch by one route."""

    def __init__(self, recording: Recording, cotangents: Tensor, route: PerSample | None) -> None:
        self.recording = recording
        self.cotangents = cotangents
        self._route = route

    @property
    def by_rules(self) -> bool:
        """Whether the rules of layers make them, as far as there are some."""
        return self._route is None

    @cached_property
    def pulled(self) -> OutputGradients:
        """The output gradients that the rules of layers make rows of."""
        return output_gradients(self.recording, self.cotangents)

    @cached_property
    def rows(self) -> dict[str, GradientRows]:
        """The per-sample gradients that rules make, without those that are zero for all samples."""
        if self._route is not None:
            return {}
        shape, names = self.cotangents.shape[:2], self.pulled.names
        return rows_of(self.recording, self.pulled, shape, names)

    @cached_property
    def kinds(self) -> dict[str, Hashable]:
        """How the rows of each parameter are had, as far as rules make them."""
        return {} if self._route is not None else row_kinds(self.recording)

    def all_rows(self) -> dict[str, GradientRows]:
        """Return the per-sample gradients of every parameter, formed where no rule makes them."""
        return self.rows_with(
            [name for name in self.recording.parameters if name not in self.kinds]
        )

    def rows_with(self, names: Sequence[str]) -> dict[str, GradientRows]:
        """Return the rows that rules make, and those of some parameters formed."""
        if not names:
            return self.rows
        shape = self.cotangents.shape[:2]
        found = self.formed_rows(names, slice(0, shape.numel()))
        formed = (Formed(values.view(*shape, -1)) for values in found)
        return self.rows | dict(zip(names, formed, strict=True))

    def formed_rows(self, names: Sequence[str], some: slice) -> list[Tensor]:
        """Return per-sample gradients of some parameters, formed, each (rows, size).

        Args:
            names: the parameters.
            some: which of the K N rows; row k N + n belongs to cotangent k of sample n.
        """
        rows = torch.arange(some.start, some.stop, device=self.cotangents.device)
        arguments = (self.recording, self.cotangents, list(names), rows)
        if self._route is not None:
            return self._route(*arguments)
        try:
            return vectorized_gradients(*arguments)
        except CannotVectorizeError:
            return defining_gradients(*arguments)

    def _covered(self, other: Side) -> set[str]:
        """Return the parameters whose rows go together with those of another side."""
        # Micro-batches may reach a parameter in other ways: then its gradients are formed.
        return {n for n, kind in self.kinds.items() if other.kinds.get(n) == kind}

    def _shape(self, other: Side) -> tuple[int, ...]:
        return (*self.cotangents.shape[:2], *other.cotangents.shape[:2])

    def inner(self, other: Side) -> Tensor:
        """Return the inner products with the gradients of another micro-batch."""
        covered = self._covered(other)
        total = self.cotangents.new_zeros(self._shape(other), dtype=torch.float64)
        for name, rows in self.rows.items():  # in this order: sums depend on it in the last digit
            if name in covered and name in other.rows:
                rows.add_inner(total, other.rows[name], self.recording.budget)
        if other is self:
            mirror(total)
        total = total.flatten(2).flatten(0, 1)
        names = [name for name in self.recording.parameters if name not in covered]
        return total + self._formed_inner(other, names) if names else total

    def blocks(self, other: Side) -> dict[tuple[str, ...], Tensor]:
        """Return the inner products of each block, as :func:`gram_blocks`."""
        covered = self._covered(other)
        biases = {} if self._route is not None else joined_biases(self.recording)
        within = {bias for weight, bias in biases.items() if weight in covered}
        found: dict[tuple[str, ...], Tensor] = {}
        for name in self.recording.parameters:
            if name in within:
                continue
            if name not in covered:
                found[name,] = self._formed_inner(other, [name])
                continue
            total = self.cotangents.new_zeros(self._shape(other), dtype=torch.float64)
            if name in self.rows and name in other.rows:
                self.rows[name].add_inner(total, other.rows[name], self.recording.budget)
            if other is self:
                mirror(total)
            names = (name, biases[name]) if name in biases else (name,)
            found[names] = total.flatten(2).flatten(0, 1)
        return found

    def _formed_inner(self, other: Side, names: list[str]) -> Tensor:
        """Return the inner products over some parameters, of gradients that are formed."""
        sides = ((self.recording, self.cotangents), (other.recording, other.cotangents))
        if self._route is not None:
            return inner_products(*sides, names, self._route)
        try:
            return inner_products(*sides, names, vectorized_gradients)
        except CannotVectorizeError:
            return inner_products(*sides, names, defining_gradients)

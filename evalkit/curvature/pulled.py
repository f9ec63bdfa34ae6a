"""What a set of cotangents pulls back to, layer by layer, for all structures and dampings.

A block is a layer with a weight matrix, with the bias that always goes with it, or one other
parameter. Layers have factors, inputs a and output gradients d; the others (normalisations,
embeddings, bare parameters, biases without their weight, and weights that several modules share or
that are used with a bias here and without it there) have per-sample gradients alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from evalkit.curvature.labels import Cotangents, Source, cotangents
from evalkit.evaluation.wrapped import plain_name
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import FormedRows, LayerFactors, Linearization
from evalkit.rounding import relative_noise

Names = tuple[str, ...]

PART = 1 << 22
"""Numbers in a part, so that what is brought to float64 at a time stays small."""
DRAWS = 16
"""Cotangents of each sample that are pulled back together."""


@dataclass(frozen=True, eq=False)
class Part:
    """A layer's factors, or another parameter's rows, of some samples and some cotangents.

    Attributes:
        found: as :meth:`Linearization.factors` tells.
        draws: the cotangents, as a slice of the K.
    """

    found: LayerFactors | FormedRows
    draws: slice

    @property
    def names(self) -> Names:
        """The parameters of the block."""
        return self.found.names

    @property
    def filled(self) -> bool:
        """Whether it has factors, or rows that are not all zero."""
        return isinstance(self.found, LayerFactors) or bool(self.found.rows.any())

    def rows(self, most: int = PART) -> Iterator[tuple[slice, Tensor]]:
        """Yield samples of the part, as a slice of the batch, and their rows in float64.

        Rows are (K, n, groups, out, in), those of a parameter without factors (K, n, 1, 1, size).

        Args:
            most: numbers that are formed at a time, unless one sample has more.
        """
        part = self.found
        if isinstance(part, FormedRows):
            yield part.samples, part.rows.double()[:, :, None, None]
            return
        a, d = part.inputs, part.output_gradients
        one = a.shape[0] * d.shape[1] * d.shape[4] * a.shape[3]
        step = max(1, most // max(1, one))
        for i in range(0, a.shape[1], step):
            here = slice(part.samples.start + i, part.samples.start + min(i + step, a.shape[1]))
            yield (
                here,
                torch.einsum(
                    "gknto,gnti->kngoi", d[:, :, i : i + step].double(), a[:, i : i + step].double()
                ),
            )


@dataclass(frozen=True, eq=False)
class Block:
    """A block of the matrix.

    Attributes:
        names: its parameters.
        example: a part of it without its numbers, which brings vectors into the form of matrices.
        shape: (groups, out, in), a bias in the last column; (1, 1, size) without factors.
    """

    names: Names
    example: LayerFactors | None
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """The parameters of one group."""
        return self.shape[1] * self.shape[2]

    def matrix(self, lin: Linearization, vector: Tensor) -> Tensor:
        """Return the block's part of a vector, (P,), as float64 matrices, (groups, out, in)."""
        values = lin.by_name(vector)
        if self.example is None:
            return values[self.names[0]].double().reshape(self.shape)
        return self.example.matrix(values).double()

    @overload
    def tensors(self, lin: Linearization, matrix: Tensor) -> dict[str, Tensor]: ...

    @overload
    def tensors(
        self, lin: Linearization, matrix: Tensor | LowRank
    ) -> Mapping[str, Tensor | LowRank]: ...

    def tensors(
        self, lin: Linearization, matrix: Tensor | LowRank
    ) -> Mapping[str, Tensor | LowRank]:
        """Return matrices, (groups, out, in), as tensors like the parameters, by name."""
        if isinstance(matrix, LowRank):
            if self.example is not None and len(self.example.shape) == 2:
                left, right = matrix.left[0], matrix.right[0]
                if self.example.bias is None:
                    return {self.example.weight: LowRank(left, right)}
                bias = left @ right[-1]
                return {
                    self.example.weight: LowRank(left, right[:-1]),
                    self.example.bias: bias,
                }
            matrix = matrix.formed()
        if self.example is None:
            name = self.names[0]
            return {name: matrix.reshape(lin.parameters[name].shape)}
        return self.example.tensors(matrix.reshape(self.shape))


class Pulled:
    """The layers and other parameters of a model as a set of cotangents sees them.

    One pull serves all structures and dampings, where its numbers can be held; otherwise each pass
    over the parts pulls again.

    Attributes:
        lin: the model and batch.
        given: the cotangents.
        blocks: the blocks, by their parameters.
        relative: how far rounding moves each row, as a part of it, (K, N).

    Args:
        lin: the model and batch.
        source: where the cotangents come from.
    """

    def __init__(self, lin: Linearization, source: Source) -> None:
        self.lin = lin
        self.source = source
        self.given: Cotangents = cotangents(lin, source)
        relative = relative_noise(lin).clamp_min(lin.unit)
        self.relative = relative.expand(len(self.given.values), -1)
        apart = several_layers(lin)
        self._apart = apart
        while True:
            blocks: dict[Names, Block] = {}
            filled: set[Names] = set()
            self._held: list[Part] | None = []
            held = 0
            for part in self._pull(apart):
                blocks.setdefault(part.names, _block(part))
                if part.names not in filled and part.filled:
                    filled.add(part.names)
                held += _numbers(part)
                if held > lin.batches.budget.held:
                    self._held = None
                if self._held is not None:
                    self._held.append(part)
            self.blocks = _without_zeros(blocks, filled)
            if not (mixed := _mixed(self.blocks)):
                break
            apart |= mixed  # kept for the other sets of cotangents

    def parts(self) -> Iterator[Part]:
        """Yield the parts of all blocks; a layer's come in several, of samples and cotangents."""
        found = self._pull(self._apart) if self._held is None else iter(self._held)
        return (part for part in found if part.names in self.blocks)

    @cached_property
    def rest(self) -> Tensor | None:
        """g' = J^T c', (P,): what the rows leave of the gradient; None where it is zero."""
        return None if self.given.rest is None else self.lin.vjp(self.given.rest)

    def formed(self, names: Names) -> Tensor:
        """Return the rows of a block, (groups, K N, size) float64."""
        own, shape = self.blocks[names], self.given.targets.shape
        found = self.given.targets.new_zeros(own.shape[0], *shape, own.size)
        for part in self.parts():
            if part.names == names:
                for samples, rows in part.rows():
                    found[:, part.draws, samples] = rows.movedim(2, 0).flatten(3)
        return found.flatten(1, 2)

    def along(self, names: Names, x: Tensor) -> Tensor:
        """Return R X, the rows of a block times matrices: (..., groups, K, N).

        Args:
            names: the parameters of the block.
            x: (..., groups, out, in) float64.
        """
        flat = x.flatten(-2).reshape(-1, x.shape[-3], x.shape[-2] * x.shape[-1])
        found = flat.new_zeros(*flat.shape[:2], *self.given.targets.shape)
        for part in self.parts():
            if part.names == names:
                for samples, rows in part.rows():
                    along = torch.einsum("bgs,kngs->bgkn", flat, rows.flatten(3))
                    found[:, :, part.draws, samples] = along
        return found.view(*x.shape[:-3], *found.shape[1:])

    def across(self, names: Names, weights: Tensor) -> Tensor:
        """Return R^T w of a block: (..., groups, out, in).

        Args:
            names: the parameters of the block.
            weights: w, (..., groups, K, N) float64.
        """
        own, flat = self.blocks[names], weights.reshape(-1, *weights.shape[-3:])
        found = flat.new_zeros(*flat.shape[:2], own.size)
        for part in self.parts():
            if part.names == names:
                for samples, rows in part.rows():
                    w = flat[:, :, part.draws, samples]
                    found += torch.einsum("bgkn,kngs->bgs", w, rows.flatten(3))
        return found.view(*weights.shape[:-3], *own.shape)

    def _pull(self, apart: set[str]) -> Iterator[Part]:
        values = self.given.values
        for start in range(0, len(values), DRAWS):
            draws = slice(start, min(start + DRAWS, len(values)))
            for part in self.lin.factors(values[draws], PART):
                for found in _taken_apart(part, apart):
                    yield Part(found, draws)


def pulled(lin: Linearization, source: Source) -> Pulled:
    """Return what the cotangents of a source pull back to, once for a batch."""
    return lin.shared(("pulled", source.key), lambda: Pulled(lin, source))


def _block(part: Part) -> Block:
    """Return the block that a part is of."""
    found = part.found
    if isinstance(found, FormedRows):
        return Block(part.names, None, (1, 1, found.rows.shape[2]))
    shape = (found.inputs.shape[0], found.output_gradients.shape[4], found.inputs.shape[3])
    bare = replace(
        found,
        samples=slice(0, 0),
        inputs=found.inputs.new_zeros(shape[0], 0, 0, shape[2]),
        output_gradients=found.output_gradients.new_zeros(shape[0], 0, 0, 0, shape[1]),
    )
    return Block(part.names, bare, shape)


def _without_zeros(blocks: dict[Names, Block], filled: set[Names]) -> dict[Names, Block]:
    """Return the blocks but for the zeros of layers that a micro-batch does not call."""
    count = Counter(name for names in blocks for name in names)
    return {
        names: block
        for names, block in blocks.items()
        if block.example is not None or names in filled or count[names[0]] == 1
    }


def _mixed(blocks: dict[Names, Block]) -> set[str]:
    """Return the parameters that are in two blocks, as micro-batches use them in different ways."""
    count = Counter(name for names in blocks for name in names)
    return {name for names in blocks for name in names if any(count[n] > 1 for n in names)}


def _taken_apart(
    part: LayerFactors | FormedRows, apart: set[str]
) -> Iterator[LayerFactors | FormedRows]:
    """Yield a part, or the rows of each of its parameters where one is to have rows alone."""
    if isinstance(part, FormedRows) or not apart.intersection(part.names):
        yield part
        return
    rows = part.rows
    for name, values in _columns(part, rows).items():
        yield FormedRows(name, part.samples, values)


def _columns(part: LayerFactors, rows: Tensor) -> dict[str, Tensor]:
    """Return the rows of a layer, (K, n, groups, out, in), by parameter: (K, n, size)."""
    if part.bias is None:
        return {part.weight: rows.flatten(2)}
    return {part.weight: rows[..., :-1].flatten(2), part.bias: rows[..., -1].flatten(2)}


def _numbers(part: Part) -> int:
    """Return how many numbers a part holds."""
    found = part.found
    held: Sequence[Tensor] = (
        (found.rows,) if isinstance(found, FormedRows) else (found.inputs, found.output_gradients)
    )
    return sum(value.numel() for value in held)


def several_layers(lin: Linearization) -> set[str]:
    """Return the parameters that have no factors for their uses, those known so far.

    Micro-batches that use a parameter in different ways add it.
    """
    return lin.shared("parameters of several layers", lambda: _of_several_layers(lin))


def _of_several_layers(lin: Linearization) -> set[str]:
    """Return the parameters that several modules hold, or whose weight has not always one bias."""
    recording = lin.batches[0].recording
    modules = recording.model.modules()
    holders = Counter(id(p) for module in modules for p in module.parameters(recurse=False))
    found = {
        plain_name(name) for name, p in recording.model.named_parameters() if holders[id(p)] > 1
    }
    biases: dict[str, set[str | None]] = {}
    for use in recording.uses:
        if use.weight is not None:
            biases.setdefault(use.weight, set()).add(use.bias)
    return found | {weight for weight, several in biases.items() if len(several) > 1}

"""Random sketches of per-sample gradients: fewer columns with the same inner products on average.

Rows G are multiplied by a random matrix of signs Omega, E[Omega Omega^T] = I, so that
E[(G Omega) (G Omega)^T] = G G^T. Each sketch draws its signs once and maps the rows of every
cotangent and micro-batch by the same Omega.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalkit.layers.rows import Formed, GradientRows, Lookups, OuterProducts


@dataclass(frozen=True)
class SketchSize:
    """How large a sketch is, and with it how near.

    Attributes:
        inputs: a layer's inputs are mapped to so many before gradients are formed, if there are
            more.
        columns: of the sketch, for each of the N M outputs of a batch. With 48 its inner products
            are off by 0.14, with which each iteration of CG gains about a digit.
    """

    inputs: int = 64
    columns: int = 48


SIZE = SketchSize()
"""The size of the sketch that preconditions CG."""


class Sketch(ABC):
    """A random map of the rows of one parameter.

    Args:
        rows: of the kind that is mapped.
        generator: of the signs.
        inputs: as in :class:`SketchSize`.

    Attributes:
        size: columns that rows have when formed, of which :meth:`write` makes fewer.
    """

    size: int

    def __init__(self, rows: GradientRows, generator: torch.Generator, inputs: int) -> None:
        self._kind = type(rows)
        self._generator = generator
        self._signs: Tensor | None = None

    def takes(self, rows: GradientRows) -> bool:
        """Return whether rows are of the kind that the sketch was drawn for.

        A micro-batch of one sample may reach a parameter in another way than the others.
        """
        return type(rows) is self._kind

    @abstractmethod
    def _formed(self, rows: Any) -> Tensor:
        """Return the rows of one cotangent per sample as numbers: (N, size)."""

    def write(self, rows: GradientRows, out: Tensor) -> None:
        """Write the rows, or sums of groups of their columns with random signs.

        Args:
            rows: of one cotangent per sample.
            out: (N, columns), with as many columns at every call, at most :attr:`size`.
        """
        formed, width = self._formed(rows), out.shape[1]
        if self.size == width:
            out.copy_(formed)
            return
        if self._signs is None:
            self._signs = signs((self.size,), self._generator, formed)
        torch.mul(formed[:, :width], self._signs[:width], out=out)
        # Omega has one sign in each row: column j takes columns j, j + width, ... of the rows.
        for start in range(width, self.size, width):
            here = slice(start, min(start + width, self.size))
            out[:, : here.stop - start].addcmul_(formed[:, here], self._signs[here])


class FormedSketch(Sketch):
    """Of rows given as they are."""

    def __init__(self, rows: Formed, generator: torch.Generator, inputs: int) -> None:
        super().__init__(rows, generator, inputs)
        self.size = rows.values.shape[-1]

    def _formed(self, rows: Formed) -> Tensor:
        return rows.values[0]


class OuterProductsSketch(Sketch):
    """Of rows sum_t d_t a_t^T in each group."""

    def __init__(self, rows: OuterProducts, generator: torch.Generator, inputs: int) -> None:
        super().__init__(rows, generator, inputs)
        groups, _, _, inside = rows.a.shape
        self.size = groups * rows.d.shape[-1] * (inside + rows.bias)
        self._seen: tuple[Tensor, Tensor] | None = None

    def _inputs(self, rows: OuterProducts) -> Tensor:
        """Return a, with ones for a bias beside it; the last one is kept."""
        if not rows.bias:
            return rows.a
        if self._seen is None or self._seen[0] is not rows.a:
            ones = rows.a.new_ones(*rows.a.shape[:-1], 1)
            self._seen = rows.a, torch.cat([rows.a, ones], -1)
        return self._seen[1]

    def _formed(self, rows: OuterProducts) -> Tensor:
        pairs = zip(rows.d[:, 0], self._inputs(rows), strict=True)
        products = [torch.bmm(d.transpose(1, 2), a).flatten(1) for d, a in pairs]
        return products[0] if len(products) == 1 else torch.cat(products, 1)


class LookupsSketch(Sketch):
    """Of rows that add d_t to an entry of a table: outer products with unit vectors as inputs."""

    def __init__(self, rows: Lookups, generator: torch.Generator, inputs: int) -> None:
        super().__init__(rows, generator, inputs)
        self._omega = input_map(rows.entries, inputs, generator, rows.d)
        self.size = rows.d.shape[-1] * self._omega.shape[1]

    def _formed(self, rows: Lookups) -> Tensor:
        return torch.bmm(rows.d[0].transpose(1, 2), self._omega[rows.indices]).flatten(1)


SKETCHES: dict[type[GradientRows], type[Sketch]] = {
    OuterProducts: OuterProductsSketch,
    Lookups: LookupsSketch,
    Formed: FormedSketch,
}
"""The sketch of each kind of rows that a layer's ``rows_at`` returns."""


def input_map(inside: int, most: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return a random Omega, (in, most), with E[Omega Omega^T] = I; the identity for few inputs."""
    if inside <= most:
        return torch.eye(inside).to(like)
    return signs((inside, most), generator, like) / math.sqrt(most)


def signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return random signs, drawn on the CPU so that every device gets the same, 32 at a time."""
    count = math.prod(shape)
    words = torch.randint(0, 1 << 32, (-(-count // 32),), generator=generator).to(like.device)
    bits = words.unsqueeze(1) >> torch.arange(32, device=like.device) & 1
    return (2 * bits - 1).flatten()[:count].view(shape).to(like)


def fair_width(sizes: Iterable[int], total: int) -> int:
    """Return the width w with sum of min(size, w) just within a total: small sizes stay whole."""
    # What the small ones leave of their share goes to those after them.
    rising = sorted(sizes)
    for place, size in enumerate(rising):
        width = total // (len(rising) - place)
        if size > width:
            return max(1, width)
        total -= size
    return max(rising, default=1)


def slices(widths: Iterable[int]) -> Iterator[slice]:
    """Return where columns of these widths lie side by side."""
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width

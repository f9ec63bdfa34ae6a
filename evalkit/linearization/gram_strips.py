"""The rows of a Gram matrix that one process of a split batch makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.layers.budget import BUDGET, Budget
from evalkit.linearization.gram import Side, scaled_cotangents
from evalkit.linearization.per_sample import PerSample
from evalkit.linearization.shares import Share

Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """A matrix of inner products of J_n^T c_kn with J_m^T e_jm.

    Attributes:
        cotangents: c, (K, N, ..., C) float64.
        others: e, (K', N, ..., C) float64; None for c itself, whose matrix is symmetric.
        route: one of :data:`evalkit.linearization.gram.ROUTES`.
        by_block: each block of parameters has a matrix of its own.
        keep: the output gradients of c are kept.
        columns: a key under which the gradients of the columns are kept, None to keep none.
    """

    cotangents: Tensor
    others: Tensor | None
    route: PerSample | None
    by_block: bool = False
    keep: bool = False
    columns: str | None = None

    @property
    def symmetric(self) -> bool:
        """Whether rows and columns are the same."""
        return self.others is None

    @property
    def wide(self) -> Tensor:
        """The cotangents of the columns."""
        return self.cotangents if self.others is None else self.others


class Strips:
    """The rows of the matrix of the samples of a process.

    Args:
        share: the samples.
        asked: the matrix.
        device: where it is made.

    Attributes:
        share: as given.
        asked: as given.
        device: as given.
        failed: the first error of this process; whatever follows it is of no account, and it is
            told to the others the next time that they are asked.
    """

    def __init__(self, share: Share, asked: Asked, device: torch.device) -> None:
        self.share, self.asked, self.device = share, asked, device
        self.failed: Exception | None = None
        self._found: dict[Names, Tensor] = {}

    @property
    def budget(self) -> Budget:
        """How much is formed at a time."""
        return BUDGET if self.share.batches is None else self.share.batches.budget

    def rows(self, number: int) -> Side | None:
        """Return the gradients of a micro-batch of this process, None where it has fewer."""
        return self._side(number, self.asked.cotangents)

    def columns(self, number: int) -> Side | None:
        """Return those that columns have."""
        key, sides = self.asked.columns, self.share.sides
        if key is None or self.share.rounds > 1:
            return self._side(number, self.asked.wide)
        if key not in sides and (side := self._side(number, self.asked.wide)) is not None:
            sides[key] = side
        return sides.get(key)

    def _side(self, number: int, cotangents: Tensor) -> Side | None:
        batches = self.share.batches
        if batches is None or number >= len(batches) or self.failed is not None:
            return None
        try:
            own = cotangents[:, self.share.here][:, batches.slices[number]]
            scaled = scaled_cotangents(own, self.share.dtype)[0]
            return Side(batches[number].recording, scaled, self.asked.route)
        except Exception as error:
            self.failed = error
            return None

    def zeros(self, rows: slice, columns: slice) -> Tensor:
        """Return inner products of some samples with others that are zero: (K, n, K', m)."""
        shape = (
            len(self.asked.cotangents),
            rows.stop - rows.start,
            len(self.asked.wide),
            columns.stop - columns.start,
        )
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add(self, names: Names, rows: slice, columns: slice, part: Tensor) -> None:
        """Add inner products of some of the own samples with some of all.

        Args:
            names: the block of parameters, () for all of them.
            rows: the own samples, as a slice of the batch.
            columns: the others.
            part: (K, n, K', m) float64.
        """
        here = self.share.here
        if names not in self._found:
            whole = slice(0, self.asked.cotangents.shape[1])
            self._found[names] = self.zeros(here, whole)
        inside = slice(rows.start - here.start, rows.stop - here.start)
        self._found[names][:, inside, :, columns] += part

    def result(self) -> dict[Names, Tensor]:
        """Return all of them, by block: (K, n, K', N).

        Raises:
            Exception: the first error of this process.
        """
        if self.failed is not None:
            raise self.failed
        return self._found

"""What the calls of a layer take, in multiplications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerWork:
    """The size of a call whose weight is a matrix at each position; zeros for any other call.

    Attributes:
        groups: each with positions, in and out of its own.
        positions: T, of one sample.
        inside: in, the width of what the matrix multiplies.
        outside: out, the width of what it returns.
    """

    groups: int = 0
    positions: int = 0
    inside: int = 0
    outside: int = 0

    def one_pass(self, samples: int) -> int:
        """Return the multiplications of a forward, or of half of a backward."""
        return samples * self.groups * self.positions * self.inside * self.outside

    def kernel_product(self, samples: int) -> int:
        """Return those of the weight's part of J J^T c, by A (A^T D) or (A A^T) D."""
        # As calls of one weight choose themselves (:class:`evalkit.layers.linear.LinearCalls`).
        spots = samples * self.positions
        return min(2 * self.one_pass(samples), spots**2 * self.groups * self.outside)

    def inner_products(self, samples: int, draws: int, others: int) -> int:
        """Return those of the inner products of per-sample gradients.

        Args:
            samples: N.
            draws: cotangents of each sample.
            others: cotangents of each sample on the other side.
        """
        left = (self.groups, draws, samples, self.positions, self.outside)
        return min(pair_costs(left, (left[0], others, *left[2:]), self.inside))

    def formed(self, rows: int, most: int) -> int:
        """Return those of gradients formed with inputs mapped to fewer, as sketches do.

        Args:
            rows: of the gradients.
            most: inputs that there are after the map.
        """
        # Mapping the inputs itself is left out: it is done once for all outputs.
        inside = min(self.inside, most) if self.mapped(most) else self.inside
        return rows * self.groups * self.positions * inside * self.outside

    def mapped(self, most: int) -> bool:
        """Return whether it saves something to map the inputs to at most so many.

        With a single position gradients are outer products as such.
        """
        return self.positions > 1 and self.inside > most


def by_pairs(left: Sequence[int], right: Sequence[int], inside: int) -> bool:
    """Return whether pairs take no more multiplications; as :func:`pair_costs`."""
    pairs, formed = pair_costs(left, right, inside)
    return pairs <= formed


def pair_costs(left: Sequence[int], right: Sequence[int], inside: int) -> tuple[int, int]:
    """Return the multiplications for inner products of outer products, by pairs and formed.

    In each group: N T M S in + K N T J M S out for pairs of positions; (K N T + J M S) in out +
    K N J M in out with the gradients formed.

    Args:
        left: shape of d, (groups, K, N, T, out).
        right: shape of the other d, (groups, J, M, S, out).
        inside: in, the width of a.
    """
    groups, draws, samples, positions, width = left
    _, draws_, samples_, positions_, _ = right
    rows, rows_ = draws * samples, draws_ * samples_
    spots = samples * positions * samples_ * positions_
    # Pairs cost nothing to make; formed rows are made once on each side, and meet in every pair.
    pairs = spots * (inside + draws * draws_ * width)
    formed = (rows * positions + rows_ * positions_ + rows * rows_) * width * inside
    return groups * pairs, groups * formed

"""The Gram matrix of a batch whose samples are split over processes.

Each pair of shares meets in one of its two processes, layer by layer: a layer's factors, inputs and
output gradients, go over, and never its per-sample gradients where it has a rule. What is sent at a
time is bounded, and of the two directions each takes about half of the numbers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalkit.layers.rows import GradientRows, mirror
from evalkit.linearization.gram import Side
from evalkit.linearization.gram_strips import Asked, Names, Strips
from evalkit.linearization.lost_ranks import lost_ranks
from evalkit.linearization.ruled_rows import joined_biases
from evalkit.linearization.shares import Share
from evalkit.linearization.split import Split
from evalkit.messages import Form, bytes_of, forms_of, put_together, taken_apart

MOST_SENT = 1 << 26
"""Bytes that one process sends another at a time: 64 MiB, unless one layer has more."""

Frames = Mapping[str, tuple[bytes, list[Form]]]
"""Rows without their numbers, by parameter, and the forms of these."""


def inner_products(split: Split, key: int, asked: Asked) -> dict[Names, Tensor]:
    """Return a matrix of inner products in rank 0: (K, N, K', N) float64 by block, all under ().

    Each cotangent counts as scaled to order one
    (:func:`evalkit.linearization.gram.scaled_cotangents`). A call of :class:`Split`.

    Args:
        split: the processes.
        key: of their shares.
        asked: the matrix.
    """
    share: Share = split.kept(key)
    strips = Strips(share, asked, split.device)
    for first in range(share.rounds):
        left = strips.rows(first)
        for second in range(first if asked.symmetric else 0, share.rounds):
            same = asked.symmetric and first == second
            right = left if same else strips.columns(second)
            _Meeting(split, strips, (first, left), (second, right), same).hold()
        if asked.keep and share.rounds == 1:
            share.kept.keep(asked.cotangents[:, share.here], left)
    total: dict[Names, Tensor] = {}
    for here, part in zip(share.slices, split.collected(strips.result), strict=False):
        for names, strip in part.items():
            if names not in total:
                whole = slice(0, strip.shape[3])
                total[names] = strips.zeros(whole, whole)
            total[names][:, here] = strip
    if asked.symmetric:  # each pair of samples has been met from one side
        return {names: one + one.permute(2, 3, 0, 1) for names, one in total.items()}
    return total


@dataclass(frozen=True, eq=False)
class _Told:
    """What all processes are told of a side.

    Attributes:
        kind: how its rows are had.
        form: of its rows; None where they are zero for all samples.
        bias: whose rows are part of them.
    """

    kind: Any
    form: Any
    bias: str | None


class _Meeting:
    """The gradients of one micro-batch of each process, met with those of another.

    Args:
        split: the processes.
        strips: what their inner products are added to.
        left: a micro-batch, and the gradients of its rows; None where this process has fewer.
        right: that of the columns.
        same: they are the same, in all processes.
    """

    def __init__(
        self,
        split: Split,
        strips: Strips,
        left: tuple[int, Side | None],
        right: tuple[int, Side | None],
        same: bool,
    ) -> None:
        self._split, self._strips, self._same = split, strips, same
        (first, self._left), (second, self._right) = left, right
        self._sides = (left[1],) if same else (left[1], right[1])
        share, self._rank, self._size = strips.share, split.ranks.rank, split.ranks.size
        self._here = share.micro_batch(self._rank, first)
        self._columns = [share.micro_batch(rank, second) for rank in range(self._size)]
        self._blocks: dict[str, Names] = {}
        self._rows: list[dict[str, GradientRows]] = []
        self._flat: dict[str, list[Tensor]] = {}

    def hold(self) -> None:
        """Add all inner products."""
        told = self._split.agreed(self._tell, lambda found: found)
        sides = [side for pair in told for side in pair if side is not None]
        if not sides:
            return
        ruled, formed = _agreeing(list(self._strips.share.sizes), sides)
        for name in ruled:
            bias = sides[0][name].bias
            self._blocks[name] = (name,) if bias is None else (name, bias)
        if formed and not self._fits(formed):
            self._meet_in_parts(formed)
            formed = []
        frames = self._split.agreed(lambda: self._prepare(formed), lambda found: found)
        self._meet([*ruled, *formed], frames)

    def _tell(self) -> list[dict[str, _Told] | None]:
        if self._strips.failed is not None:
            raise self._strips.failed
        return [
            _told(side) for side in ((self._left,) if self._same else (self._left, self._right))
        ]

    def _block(self, name: str) -> Names:
        return self._blocks.get(name, (name,)) if self._strips.asked.by_block else ()

    def _numbers(self, names: Sequence[str]) -> int:
        return max(1, sum(self._strips.share.sizes[name] for name in names))

    def _fits(self, names: Sequence[str]) -> bool:
        """Return whether the rows of parameters without a rule can be held in all processes."""
        asked, samples = self._strips.asked, self._strips.share.micro_batch(0, 0).stop
        rows = max(len(asked.cotangents), len(asked.wide)) * samples
        return rows * self._numbers(names) <= self._strips.budget.held

    def _prepare(self, formed: Sequence[str]) -> Frames:
        """Form what has no rule, and return the frames of the right side's rows."""
        self._rows = [
            {} if side is None else {n: one.bare for n, one in side.rows_with(formed).items()}
            for side in self._sides
        ]
        frames = {}
        for name, rows in self._rows[-1].items():
            frame, self._flat[name] = taken_apart(rows)
            frames[name] = frame, forms_of(self._flat[name])
        return frames

    def _meet(self, names: Sequence[str], frames: Sequence[Frames]) -> None:
        """Add the inner products over some parameters."""
        self._add(self._rank, names, self._rows[-1])
        plan = self._plan(names, frames)
        for shift in range(1, self._size):
            to, source = (self._rank + shift) % self._size, (self._rank - shift) % self._size
            sent = _in_parts(plan[to, self._rank], frames[self._rank])
            awaited = _in_parts(plan[self._rank, source], frames[source])
            for number in range(max(len(sent), len(awaited))):
                going = [one for name in _at(sent, number) for one in self._flat[name]]
                coming = _at(awaited, number)
                forms = [form for name in coming for form in frames[source][name][1]]
                found = iter(self._swapped(to, going, source, forms))
                rows = {}
                for name in coming:
                    frame, own = frames[source][name]
                    rows[name] = put_together(frame, [next(found) for _ in own])
                self._add(source, coming, rows)

    def _swapped(
        self, to: int, sent: Sequence[Tensor], source: int, forms: Sequence[Form]
    ) -> list[Tensor]:
        with lost_ranks():
            found = self._split.ranks.swapped({to: sent}, {source: forms}, self._strips.device)
        return found[source]

    def _plan(
        self, names: Sequence[str], frames: Sequence[Frames]
    ) -> dict[tuple[int, int], list[str]]:
        """Return which parameters' rows each process takes from which other: alike in all."""
        plan: dict[tuple[int, int], list[str]] = defaultdict(list)
        ranks = range(self._size)
        if not self._same:
            pairs = ((i, j) for i in ranks for j in ranks if i != j)
            return {(i, j): [name for name in names if name in frames[j]] for i, j in pairs}
        load = [0] * self._size
        for i, j in itertools.combinations(ranks, 2):
            both = [name for name in names if name in frames[i] and name in frames[j]]
            bytes_ = {n: bytes_of(frames[i][n][1]) + bytes_of(frames[j][n][1]) for n in both}
            for name in sorted(both, key=lambda n: -bytes_[n]):
                one, other = (i, j) if load[i] <= load[j] else (j, i)
                load[one] += bytes_[name]
                plan[one, other].append(name)
        return plan

    def _add(self, rank: int, names: Sequence[str], right: Mapping[str, GradientRows]) -> None:
        """Add inner products of this process's rows with those of a process."""
        strips, left, columns = self._strips, self._rows[0], self._columns[rank]
        names = [name for name in names if name in left and name in right]
        if strips.failed is not None or not names:
            return
        totals: dict[Names, Tensor] = {}
        try:
            for name in names:
                block = self._block(name)
                if block not in totals:
                    totals[block] = strips.zeros(self._here, columns)
                left[name].add_inner(totals[block], right[name], strips.budget)
            for block, total in totals.items():
                if self._same and rank == self._rank:
                    mirror(total)
                    total /= 2
                strips.add(block, self._here, columns, total)
        except Exception as error:  # told to all when the strips are collected
            strips.failed = error

    def _meet_in_parts(self, names: Sequence[str]) -> None:
        """Add inner products of formed rows that cannot be held at once.

        Of a symmetric matrix both processes of a pair make them, a half each.
        """
        strips, draws = self._strips, len(self._strips.asked.wide)
        most = max(1, strips.budget.held // self._numbers(names))
        counts = [draws * (one.stop - one.start) for one in self._columns]
        for start in range(0, max(counts), most):
            parts = [slice(min(start, count), min(start + most, count)) for count in counts]
            lengths = [part.stop - part.start for part in parts]
            own = self._formed(names, parts[self._rank])
            self._add_formed(self._rank, names, own, parts[self._rank])
            for shift in range(1, self._size):
                to, source = (self._rank + shift) % self._size, (self._rank - shift) % self._size
                sizes = [strips.share.sizes[name] for name in names if lengths[source]]
                forms = [(strips.share.dtype, (lengths[source], size)) for size in sizes]
                sent = own if lengths[self._rank] else []
                self._add_formed(
                    source, names, self._swapped(to, sent, source, forms), parts[source]
                )

    def _formed(self, names: Sequence[str], part: slice) -> list[Tensor]:
        """Return rows of the right side; zeros where that fails, which is told at the end."""
        strips, count = self._strips, part.stop - part.start
        if self._right is not None and count and strips.failed is None:
            try:
                return self._right.formed_rows(names, part)
            except Exception as error:
                strips.failed = error
        like = torch.zeros((), dtype=strips.share.dtype, device=strips.device)
        return [like.new_zeros(count, strips.share.sizes[name]) for name in names]

    def _add_formed(
        self, rank: int, names: Sequence[str], right: Sequence[Tensor], part: slice
    ) -> None:
        strips, left, columns = self._strips, self._left, self._columns[rank]
        if left is None or strips.failed is not None or part.stop == part.start:
            return
        most = max(1, strips.budget.held // self._numbers(names))
        totals = {self._block(name): strips.zeros(self._here, columns) for name in names}
        rows = left.cotangents.shape[:2].numel()
        try:
            for start in range(0, rows, most):
                here = slice(start, min(start + most, rows))
                formed = left.formed_rows(names, here)
                for name, a, b in zip(names, formed, right, strict=True):
                    flat = totals[self._block(name)].view(rows, -1)
                    flat[here, part] += a.double() @ b.double().T
            for block, total in totals.items():
                strips.add(block, self._here, columns, total / 2 if self._same else total)
        except Exception as error:
            strips.failed = error


def _told(side: Side | None) -> dict[str, _Told] | None:
    if side is None:
        return None
    biases = joined_biases(side.recording) if side.by_rules else {}
    forms = {name: rows.form for name, rows in side.rows.items()}
    return {
        name: _Told(kind, forms.get(name), biases.get(name)) for name, kind in side.kinds.items()
    }


def _agreeing(
    names: Sequence[str], sides: Sequence[Mapping[str, _Told]]
) -> tuple[list[str], list[str]]:
    """Return the parameters whose rows go together everywhere, and those that are to be formed."""
    formed, inside = set(), set()
    for name in names:
        told = [side.get(name) for side in sides]
        known = [one for one in told if one is not None]
        alike = {(one.kind, one.bias) for one in known}
        forms = {one.form for one in known if one.form is not None}
        biases = {one.bias for one in known if one.bias is not None}
        if len(known) == len(sides) and len(alike) == 1 and len(forms) <= 1:
            inside |= biases
        else:  # processes reach it in other ways, or have no rule
            formed |= {name} | biases
    formed -= inside
    return [name for name in names if name not in formed], [n for n in names if n in formed]


def _in_parts(names: Sequence[str], frames: Frames) -> list[list[str]]:
    """Return names in parts of a bounded number of bytes."""
    parts: list[list[str]] = []
    size = 0
    for name in names:
        more = bytes_of(frames[name][1])
        if not parts or size + more > MOST_SENT:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += more
    return parts


def _at(parts: Sequence[list[str]], number: int) -> list[str]:
    return parts[number] if number < len(parts) else []

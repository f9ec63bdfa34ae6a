"""J J^T c of a batch whose samples are split over processes.

J^T c is a sum over the samples of all processes, of which each adds its own before it applies J:
P numbers go over for every product. But the part of a weight whose calls are linear is D^T A over
the positions of all samples, inputs A and output gradients D, and moves the outputs of a process by
A_own (D^T A)^T = (A_own A^T) D. Where these rows together have no more numbers than the weight,
they go over in the place of its gradient: A once, D with every product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.layers.low_rank import LowRank
from evalkit.linearization.kept import summed_terms
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.shares import Share, joined
from evalkit.linearization.split import Split, lost_ranks
from evalkit.reductions import power_of_two

Rows = Mapping[str, Tensor]
"""A or D by weight: a row for each position."""


@dataclass(frozen=True, eq=False)
class Pulled:
    """J^T c of the samples of one process.

    Attributes:
        rows: D of the weights whose rows go over.
        rest: the gradients of the other parameters, one after the other.
    """

    rows: Rows
    rest: Tensor


def kernel(split: Split, key: int, cotangents: Tensor) -> Tensor:
    """Return J J^T c in rank 0: like logits. A call of :class:`Split`."""
    share: Share = split.kept(key)
    inputs = _inputs_of_all(split, share)
    found: list[Pulled] = []

    def compute() -> None:
        own = cotangents[share.here]
        found.append(_pulled(share, inputs, own, torch.ones((), device=own.device)))

    split.agreed(compute)
    return _pushed(split, share, inputs, found[0])


def weighted(split: Split, key: int, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return J d for d = sum_n J_n^T w_n c_n over terms (c, w), in rank 0: like logits.

    Output gradients that are kept make it without a backward. A call of :class:`Split`.
    """
    share: Share = split.kept(key)
    inputs = _inputs_of_all(split, share)
    found: list[Pulled] = []

    def compute() -> None:
        own = [(c[share.here], w[share.here]) for c, w in terms]
        known = _kept(share, inputs, own)
        found.append(_weighted(share, inputs, own) if known is None else known)

    split.agreed(compute)
    return _pushed(split, share, inputs, found[0])


def _inputs_of_all(split: Split, share: Share) -> Rows:
    """Return A of the positions of all processes, of the weights whose rows go over."""
    if not share.inputs:
        own: dict[str, Tensor] = {}

        def compute() -> dict[str, torch.Size] | None:
            if share.batches is None:
                return None
            if len(share.batches) == 1:
                own.update(share.batches[0].tangents.input_rows)
            return {name: rows.shape for name, rows in own.items()}

        told = split.agreed(compute, lambda shapes: shapes)
        counted = [shapes for shapes in told if shapes is not None]
        chosen = [name for name in counted[0] if _are_few(name, counted, share.sizes[name])]
        mine = {name: own[name] for name in chosen if name in own}
        with lost_ranks():
            everyone = split.ranks.gathered(mine, split.device)
        share.inputs.append(_joined_rows(chosen, everyone))
    return share.inputs[0]


def _are_few(name: str, counted: Sequence[Mapping[str, torch.Size]], size: int) -> bool:
    """Return whether the rows of a weight have no more numbers, in and out, than itself.

    Args:
        name: of the weight.
        counted: the shape of A of each process that has samples, by weight.
        size: the weight's numbers.
    """
    if not all(name in shapes for shapes in counted):  # some process has micro-batches
        return False
    inside = counted[0][name][1]
    positions = sum(shapes[name][0] for shapes in counted)
    return positions * (inside + size // inside) <= size


def _joined_rows(names: Iterable[str], everyone: Sequence[Rows]) -> dict[str, Tensor]:
    return {name: torch.cat([rows[name] for rows in everyone if name in rows]) for name in names}


def _pulled(share: Share, inputs: Rows, cotangents: Tensor, scale: Tensor) -> Pulled:
    """Return J^T c times a scale, for c of the samples of this process."""
    if share.batches is None:
        return Pulled({}, _zeros(share, inputs, cotangents.device))
    if not inputs:  # and perhaps several micro-batches
        return Pulled({}, share.batches.vjp(cotangents, scale))
    rest = _zeros(share, inputs, cotangents.device)
    places = _by_name(share.batches, inputs, rest)
    return Pulled(share.batches[0].tangents.pull_into(places, cotangents, scale), rest)


def _weighted(share: Share, inputs: Rows, terms: Sequence[tuple[Tensor, Tensor]]) -> Pulled:
    """Return J^T c for c = the sum of w_n c_n over some terms, by a backward."""
    total = summed_terms(terms)
    scale = power_of_two(total) if share.batches is not None else total.new_ones(())
    return _pulled(share, inputs, (total / scale).to(share.dtype), scale)


def _kept(share: Share, inputs: Rows, terms: Sequence[tuple[Tensor, Tensor]]) -> Pulled | None:
    """Return J^T c for c = the sum of w_n c_n over some terms, from kept output gradients alone.

    Args:
        share: the samples.
        inputs: A of the weights whose rows go over.
        terms: pairs (c, w) of the samples of this process.
    """
    gradients, rows = share.kept.gradients(terms, but=inputs), share.kept.rows(terms, inputs)
    if gradients is None or rows is None or share.batches is None:
        return None
    rest = _zeros(share, inputs, terms[0][0].device)
    for name, place in _by_name(share.batches, inputs, rest).items():
        if name in gradients:
            place.copy_(gradients[name])
    return Pulled({name: one.to(share.dtype) for name, one in rows.items()}, rest)


def _pushed(split: Split, share: Share, inputs: Rows, own: Pulled) -> Tensor:
    """Return J of the sum of what the samples of all processes pull back to, in rank 0."""
    with lost_ranks():
        split.ranks.sum([own.rest])
        everyone = split.ranks.gathered(own.rows, split.device) if inputs else []

    def compute() -> Tensor | None:
        if share.batches is None:
            return None
        values: dict[str, Tensor | LowRank] = {**_by_name(share.batches, inputs, own.rest)}
        for name, rows in _joined_rows(inputs, everyone).items():
            values[name] = LowRank(rows.mT, inputs[name].mT)
        return share.batches.jvp([values[name] for name in share.batches.parameters])

    return joined(split.collected(compute))


def _zeros(share: Share, inputs: Rows, device: torch.device) -> Tensor:
    numbers = sum(size for name, size in share.sizes.items() if name not in inputs)
    return torch.zeros(numbers, dtype=share.dtype, device=device)


def _by_name(batches: MicroBatches, inputs: Rows, rest: Tensor) -> dict[str, Tensor]:
    """Return the parameters' parts of what is one after the other, in their shapes."""
    named = {n: value for n, value in batches.parameters.items() if n not in inputs}
    parts = rest.split([value.numel() for value in named.values()])
    return {n: part.view_as(named[n]) for n, part in zip(named, parts, strict=True)}

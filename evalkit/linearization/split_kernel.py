"""J J^T c and |J^T c| of a batch whose samples are split over processes.

J^T c is a sum over the samples of all processes, of which each adds its own before it applies J:
P numbers go over for every product. But the part of a weight whose calls are linear is D^T A over
the positions of all samples, inputs A and output gradients D, and moves the outputs of a process by
A_own (D^T A)^T = (A_own A^T) D. Where these rows together have no more numbers than the weight,
they go over in the place of its gradient: A once, D with every product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from evalkit.linearization.kept import summed_terms
from evalkit.linearization.lost_ranks import lost_ranks
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.shares import Share, joined
from evalkit.linearization.split import Split
from evalkit.reductions import norm, power_of_two

T = TypeVar("T")

Rows = Mapping[str, Tensor]
"""A or D by weight: a row for each position."""


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What a process knows of the others' inputs, by weight whose rows go over.

    Attributes:
        inputs: A of the positions of all processes.
        products: A_own A^T, of the own positions with all.
    """

    inputs: Rows
    products: Rows


@dataclass(frozen=True, eq=False)
class Pulled:
    """J^T c of the samples of one process.

    Attributes:
        rows: D of the weights whose rows go over.
        rest: the gradients of the other parameters, one after the other.
    """

    rows: Rows
    rest: Tensor


def exchanged(split: Split, key: int, place: int) -> None:
    """Keep under a place what kernel products need of all inputs. A call of :class:`Split`."""
    share: Share = split.kept(key)
    own: dict[str, Tensor] = {}

    def shapes() -> dict[str, torch.Size] | None:
        if share.batches is None:
            return None
        if len(share.batches) == 1:
            own.update(share.batches[0].tangents.input_rows)
        return {name: rows.shape for name, rows in own.items()}

    counted = [one for one in split.agreed(shapes, _as_it_is) if one is not None]
    chosen = [name for name in counted[0] if _are_few(name, counted, share.sizes[name])]
    mine = {name: own[name] for name in chosen if name in own}
    everyone = split.agreed(lambda: mine, _as_it_is) if chosen else []

    def compute() -> None:
        inputs = _joined(chosen, everyone)
        products = {name: a @ inputs[name].T for name, a in mine.items()}
        split.keep(place, Exchanged(inputs, products))

    split.agreed(compute)


def kernel(split: Split, key: int, place: int, cotangents: Tensor) -> Tensor:
    """Return J J^T c in rank 0: like logits. A call of :class:`Split`."""
    share, known = split.kept(key), split.kept(place)
    own = cotangents[share.here]
    return _pushed(split, share, known, lambda: _pulled(share, known, own, _one(own)))


def weighted(split: Split, key: int, place: int, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return J d for d = sum_n J_n^T w_n c_n over terms (c, w), in rank 0: like logits.

    Output gradients that are kept make it without a backward. A call of :class:`Split`.
    """
    share, known = split.kept(key), split.kept(place)
    own = [(c[share.here], w[share.here]) for c, w in terms]

    def compute() -> Pulled:
        kept = _kept(share, known, own)
        return _weighted(share, known, own) if kept is None else kept

    return _pushed(split, share, known, compute)


def length(split: Split, key: int, place: int, cotangents: Tensor) -> float:
    """Return |J^T c| in rank 0. A call of :class:`Split`.

    Of D^T A each process forms the rows of some outputs, for the positions of all.
    """
    share, known = split.kept(key), split.kept(place)
    own = cotangents[share.here]
    everyone, rest = _summed(split, lambda: _pulled(share, known, own, _one(own)))

    def compute() -> list[float]:
        rows = _joined(known.inputs, everyone)
        mine = [d.tensor_split(split.ranks.size, 1)[split.ranks.rank] for d in rows.values()]
        return [norm((d.T @ a).flatten()) for d, a in zip(mine, known.inputs.values(), strict=True)]

    parts = [part for one in split.agreed(compute, _as_it_is) for part in one]
    return math.hypot(norm(rest), *parts)


def _as_it_is(value: T) -> T:
    return value


def _one(cotangents: Tensor) -> Tensor:
    return torch.ones((), device=cotangents.device)


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


def _joined(names: Iterable[str], everyone: Sequence[Rows]) -> dict[str, Tensor]:
    return {name: torch.cat([rows[name] for rows in everyone if name in rows]) for name in names}


def _pulled(share: Share, known: Exchanged, cotangents: Tensor, scale: Tensor) -> Pulled:
    """Return J^T c times a scale, for c of the samples of this process."""
    if share.batches is None:
        return Pulled({}, _zeros(share, known, cotangents.device))
    if not known.inputs:  # and perhaps several micro-batches
        return Pulled({}, share.batches.vjp(cotangents, scale))
    rest = _zeros(share, known, cotangents.device)
    places = _by_name(share.batches, known, rest)
    return Pulled(share.batches[0].tangents.pull_into(places, cotangents, scale), rest)


def _weighted(share: Share, known: Exchanged, terms: Sequence[tuple[Tensor, Tensor]]) -> Pulled:
    """Return J^T c for c = the sum of w_n c_n over some terms, by a backward."""
    total = summed_terms(terms)
    scale = power_of_two(total) if share.batches is not None else total.new_ones(())
    return _pulled(share, known, (total / scale).to(share.dtype), scale)


def _kept(share: Share, known: Exchanged, terms: Sequence[tuple[Tensor, Tensor]]) -> Pulled | None:
    """Return J^T c for c = the sum of w_n c_n over some terms, from kept output gradients alone.

    Args:
        share: the samples.
        known: of all inputs.
        terms: pairs (c, w) of the samples of this process.
    """
    found = share.kept.gradients(terms, known.inputs)
    if found is None or share.batches is None:
        return None
    rest = _zeros(share, known, terms[0][0].device)
    for name, place in _by_name(share.batches, known, rest).items():
        if name in found.formed:
            place.copy_(found.formed[name])
    return Pulled({name: one.to(share.dtype) for name, one in found.rows.items()}, rest)


def _summed(split: Split, compute: Callable[[], Pulled]) -> tuple[list[Rows], Tensor]:
    """Return the rows of each process, and the sum of the other gradients of all."""
    rest: list[Tensor] = []

    def own() -> Rows:
        pulled = compute()
        rest.append(pulled.rest)
        return pulled.rows

    everyone = split.agreed(own, _as_it_is)
    with lost_ranks():
        split.ranks.sum(rest)
    return everyone, rest[0]


def _pushed(split: Split, share: Share, known: Exchanged, compute: Callable[[], Pulled]) -> Tensor:
    """Return J of the sum of what the samples of all processes pull back to, in rank 0."""
    everyone, rest = _summed(split, compute)

    def moved() -> Tensor | None:
        if share.batches is None:
            return None
        parts = _by_name(share.batches, known, rest)
        rows = _joined(known.inputs, everyone)
        if not rows:
            return share.batches.jvp([parts[name] for name in share.batches.parameters])
        moves = {name: known.products[name] @ d for name, d in rows.items()}
        return share.batches[0].tangents.push_parts(parts, moves)

    return joined(split.collected(moved))


def _zeros(share: Share, known: Exchanged, device: torch.device) -> Tensor:
    numbers = sum(size for name, size in share.sizes.items() if name not in known.inputs)
    return torch.zeros(numbers, dtype=share.dtype, device=device)


def _by_name(batches: MicroBatches, known: Exchanged, rest: Tensor) -> dict[str, Tensor]:
    """Return the parameters' parts of what is one after the other, in their shapes."""
    named = {n: value for n, value in batches.parameters.items() if n not in known.inputs}
    parts = rest.split([value.numel() for value in named.values()])
    return {n: part.view_as(named[n]) for n, part in zip(named, parts, strict=True)}

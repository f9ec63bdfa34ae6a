"""Memory that structures take, told from the sizes of layers before anything is formed.

Factors are float64 and are held for all dampings: a factor of size s from m vectors has r
eigenvectors, r = m where vectors are few (:data:`evalkit.curvature.eigen.FEW`) and s otherwise, and
an (r, r) matrix of how rounding moves it. Layers are decomposed one by one, while the sums that the
factors of the others are made of are held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from evalkit.curvature.coarse import one_block
from evalkit.curvature.eigen import FEW
from evalkit.curvature.labels import Source, draws
from evalkit.curvature.others import no_layers
from evalkit.curvature.pulled import several_layers
from evalkit.curvature.rows import FORMED
from evalkit.linearization import Linearization
from evalkit.linearization.ruled_rows import joined_biases, row_kinds

NUMBER = 8
"""Bytes of a float64 number."""
KFAC = ("kfac", "fop", "two-level-kfac")
"""Structures whose factors are those of KFAC."""


@dataclass(frozen=True)
class Size:
    """The size of a block.

    Attributes:
        groups: each with a block of its own.
        out: rows of its matrix.
        inside: columns of its matrix.
        positions: of a sample; 0 for a parameter without factors.
    """

    groups: int
    out: int
    inside: int
    positions: int


@dataclass(frozen=True)
class Asked:
    """A structure that is asked for.

    Attributes:
        structure: its name.
        source: where its cotangents come from.
        sharing: how its factors take positions.
    """

    structure: str
    source: Source
    sharing: str = "expand"


@dataclass(frozen=True)
class Taken:
    """Numbers that something takes.

    Attributes:
        held: for as long as dampings share it.
        summed: while the others of its kind are decomposed.
        worked: while it is decomposed itself.
    """

    held: int
    summed: int = 0
    worked: int = 0


def sizes(lin: Linearization) -> tuple[Size, ...]:
    """Return the sizes of all blocks, from what the forward has recorded."""
    recording = lin.batches[0].recording
    kinds, biases, apart = row_kinds(recording), joined_biases(recording), several_layers(lin)
    positions: dict[str, int] = defaultdict(int)
    works = {}
    for use in recording.uses:
        weight = use.weight
        if weight is not None and weight in kinds and use.layer.has_matrix and weight not in apart:
            positions[weight] += use.layer.work.positions
            works[weight] = use.layer.work
    found, covered = [], set(works)
    for weight, work in works.items():
        bias = biases.get(weight)
        covered |= set() if bias is None else {bias}
        inside = work.inside + (bias is not None)
        found.append(Size(work.groups, work.outside, inside, positions[weight]))
    rest = (value for name, value in lin.parameters.items() if name not in covered)
    return (*found, *(Size(1, 1, value.numel(), 0) for value in rest))


def memory(lin: Linearization, asked: Iterable[Asked], others: str = "block") -> int:
    """Return the bytes that structures are expected to take together, at most.

    Args:
        lin: the model and batch.
        asked: the structures.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: a source takes too many cotangents, no layer has factors, or a structure
            needs several blocks and there is one.
    """
    asked, blocks, most = tuple(asked), sizes(lin), lin.batches.budget.held
    if not any(size.positions for size in blocks):
        raise no_layers()
    several = any(one.structure == "two-level-kfac" for one in asked)
    if several and sum(size.groups for size in blocks) < 2:
        raise one_block()
    total, samples = 0, lin.num_samples
    for source in {one.source.key: one.source for one in asked}.values():
        count = draws(lin, source)
        pulled = sum(_pulled(size, samples, count) for size in blocks)
        total += pulled * lin.logits.element_size() if pulled <= most else 0
    taken: dict[tuple[Hashable, int], Taken] = {}
    for one in asked:
        rows = draws(lin, one.source) * samples
        for place, size in enumerate(blocks):
            for family, part in _parts(one, size, samples, rows, others):
                taken[family, place] = part
    summed: dict[Hashable, int] = defaultdict(int)
    for (family, _), part in taken.items():
        summed[family] += part.summed
    total += NUMBER * sum(part.held for part in taken.values())
    total += NUMBER * max(summed.values(), default=0)
    return total + NUMBER * max((part.worked for part in taken.values()), default=0)


def _pulled(size: Size, samples: int, count: int) -> int:
    """Return the numbers that a block pulls back to."""
    if not size.positions:
        return count * samples * size.inside
    return size.groups * samples * size.positions * (size.inside + count * size.out)


def _parts(
    one: Asked, size: Size, samples: int, rows: int, others: str
) -> Iterator[tuple[Hashable, Taken]]:
    """Yield what a structure takes for a block, by what it shares it with others under."""
    key, numbers = one.source.key, size.groups * size.out * size.inside
    if not size.positions or one.structure == "block":
        if size.positions or others != "gradient":
            yield ("rows", key), _of_rows(size, rows)
        return
    yield ("rotated", one), Taken(numbers)
    if one.structure == "swan":  # an SVD of each layer's gradient
        yield "swan", Taken(numbers, worked=numbers)
        return
    if one.structure == "diagonal":
        yield ("diagonal", key), Taken(numbers, numbers)
        return
    if one.structure == "eva":
        yield ("eva", key), Taken(size.groups * (size.inside + rows // samples * size.out))
        return
    spots = size.positions if one.sharing == "expand" else 1
    inside = _factor(size.groups, size.inside, samples * spots)
    out = _factor(size.groups, size.out, rows * spots)
    yield ("inputs", one.sharing), inside
    yield ("gradients", one.sharing, key), out
    if one.structure == "ekfac":
        ranks = [_rank(size.inside, samples * spots), _rank(size.out, rows * spots)]
        yield ("ekfac", key), Taken(3 * size.groups * (ranks[0] + 1) * (ranks[1] + 1))
    elif one.structure not in KFAC:  # factors of its own, and the rows in these bases
        yield ("in bases", key), Taken(_pulled(size, samples, rows // samples))
        yield (one.structure, key, "inputs"), inside
        yield (one.structure, key, "gradients"), out


def _factor(groups: int, size: int, vectors: int) -> Taken:
    """Return what the decomposition of a factor takes."""
    rank = _rank(size, vectors)
    return Taken(groups * (size + rank) * rank, groups * size * rank, 3 * groups * size * rank)


def _rank(size: int, vectors: int) -> int:
    """Return how many eigenvectors a factor is told by."""
    return vectors if FEW * vectors <= size else size


def _of_rows(size: Size, rows: int) -> Taken:
    """Return what a block as it is takes, by its parameters or by its rows."""
    numbers = size.out * size.inside
    square = size.groups * min(rows, numbers) ** 2
    formed = rows * size.groups * numbers
    passing = formed if rows < numbers and formed <= FORMED else 0
    return Taken(2 * square, square, 3 * square + passing)

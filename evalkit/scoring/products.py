"""J d and |d| of one method's updates, from as few products as a sweep over dampings takes.

The updates of a sweep are sums of the same one-sample gradients, and their weights depend on the
damping smoothly: where it is far from the eigenvalues of the Gram matrix, the weights hardly change
and those at a few dampings make up all others. J d is linear in the weights, so that the products
at these few make up those at all dampings. Where many are needed and the model has few outputs, the
products of all one-sample gradients are formed instead.

Likewise blocks that solve in eigenvectors, along which the parts of d keep their directions: what
is far above the dampings hardly changes, what is far below them goes with 1 / lambda.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evalkit.linearization import ByParameter, Linearization
from evalkit.reductions import norm
from evalkit.solvers.kernel import sample_products
from evalkit.updates import CotangentUpdate, Update, VectorUpdate
from evalkit.work import TYPICAL, kernel_work, product_work

DEAR = 0.01
"""Seconds of a product, by typical rates, from which on the dampings of a sweep share products. The
rows of smaller models are the same to the last digit however many dampings are asked for."""

HIDDEN = 1.0 / 64
"""Part of a unit of rounding that weights on samples may differ by: far below what products of
single precision leave. No weights in float64 are known to less than 32 units of theirs."""

SHARERS = 2
"""Methods that a sweep is taken to have with the same cotangents, so that no row depends on it."""

GROWTH = 2.0
"""How much of the rounding of a few products may come to lie in the sum that is made of them."""


@dataclass(frozen=True, eq=False)
class Combination:
    """Columns of a matrix made up of a few of them.

    Attributes:
        chosen: which ones.
        factors: of the chosen columns in every column: (chosen, columns).
    """

    chosen: tuple[int, ...]
    factors: Tensor


def products(
    lin: Linearization, updates: Sequence[Update], dear: float = DEAR
) -> Iterator[tuple[Tensor, float]]:
    """Return J d and |d| of one method's updates, one by one, without forming d where it can.

    Args:
        lin: the model and batch.
        updates: those of the dampings of a sweep.
        dear: seconds of a product from which on updates share some.
    """
    costly = TYPICAL.seconds(product_work(lin)) >= dear
    made_up = _sweep_products(lin, updates) if costly else None
    for place, update in enumerate(updates):
        if isinstance(update, VectorUpdate):
            product = lin.jvp(update.vector) if made_up is None else made_up[place]
            yield product, _length(update.vector)
        elif update.cotangents is lin.logit_gradients:
            yield lin.gradient_jvp, lin.gradient_norm
        else:
            product = _product(lin, update) if made_up is None else made_up[place]
            yield product, lin.pulled_norm(update.cotangents, product)


def _length(vector: Tensor | ByParameter) -> float:
    return vector.norm if isinstance(vector, ByParameter) else norm(vector)


def _product(lin: Linearization, update: CotangentUpdate) -> Tensor:
    """Return J d of one update."""
    if update.terms:
        return lin.weighted_product([(t.cotangents, t.weights) for t in update.terms])
    return lin.kernel_product(update.cotangents)


def _sweep_products(lin: Linearization, updates: Sequence[Update]) -> Tensor | None:
    """Return J d of all updates from the products of a few; None where each has its own."""
    vectors = [one for one in updates if isinstance(one, VectorUpdate)]
    if len(vectors) == len(updates):
        made_of = vector_combination(vectors, lin.unit)
        if made_of is None:
            return None
        moved = [lin.jvp(vectors[place].vector).double() for place in made_of.chosen]
        return (torch.stack(moved, -1) @ made_of.factors).movedim(-1, 0)
    summed = [one for one in updates if isinstance(one, CotangentUpdate) and one.terms]
    if len(summed) < max(2, len(updates)):
        return None
    cotangents = [term.cotangents for term in summed[0].terms]
    for one in summed[1:]:
        if [id(term.cotangents) for term in one.terms] != [id(c) for c in cotangents]:
            return None
    weights = torch.stack([torch.cat([t.weights.double() for t in u.terms]) for u in summed], 1)
    found = combination(weights, HIDDEN * lin.unit)
    apart = SHARERS * len(found.chosen) * product_work(lin)
    if TYPICAL.seconds(kernel_work(lin, len(set(cotangents)))) < TYPICAL.seconds(apart):
        known = [lin.shared(("products", c), partial(sample_products, lin, c)) for c in cotangents]
        return (weights.T @ torch.cat(known)).view(-1, *lin.logits.shape)
    chosen = torch.stack([_product(lin, summed[place]) for place in found.chosen], -1)
    return (chosen @ found.factors).movedim(-1, 0)


def vector_combination(updates: Sequence[VectorUpdate], unit: float) -> Combination | None:
    """Return a few directions that all others are sums of; None where each has its own product.

    Args:
        updates: those of the dampings of a sweep.
        unit: the rounding of the evaluation; that of float64 hides nothing.
    """
    if len(updates) < 2 or HIDDEN * unit < torch.finfo(torch.float64).eps:
        return None
    lengths, blocks = [], set[int]()
    for one in updates:
        if one.lengths is None or one.matrix is None:
            return None
        lengths.append(one.lengths)
        blocks.add(id(one.matrix.blocks))
    return whole_combination(torch.stack(lengths, 1), HIDDEN * unit) if len(blocks) == 1 else None


def whole_combination(columns: Tensor, tolerance: float) -> Combination:
    """Return a few columns that all others are sums of, each as a whole.

    A sum differs from its column by a part of that column's length that is within the tolerance,
    and the lengths that it adds up are at most :data:`GROWTH` times that of the column. Entries of
    a direction are rounded by as much, as a part of its length, before products see them.

    Args:
        columns: (M, D) float64.
        tolerance: of each column, relative.
    """
    sizes = torch.linalg.vector_norm(columns, dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    corners = torch.linalg.qr(columns / sizes, mode="r").R  # with the lengths of all sums
    chosen = [0]
    while True:
        factors = torch.linalg.lstsq(corners[:, chosen], corners, driver="gelsd").solution
        factors[:, chosen] = torch.eye(len(chosen)).to(factors)
        left = torch.linalg.vector_norm(corners - corners[:, chosen] @ factors, dim=0)
        excess = torch.maximum(left / tolerance, factors.abs().sum(0) / GROWTH)
        excess[chosen] = 0.0
        worst = int(excess.nan_to_num(torch.inf).argmax())
        if excess[worst] <= 1:
            return Combination(tuple(chosen), factors * sizes / sizes[chosen][:, None])
        chosen.append(worst)


def combination(columns: Tensor, tolerance: float) -> Combination:
    """Return a few columns that all others are sums of, entry by entry.

    Each entry of a sum differs from that of the column by a part of it that is within the
    tolerance, and the magnitudes that the sum adds up are at most :data:`GROWTH` times its own: so
    whatever the entries are multiplied by, the sum is as exact as the columns that it is made of.
    The column that is furthest from that is chosen until all are.

    Args:
        columns: (M, D) float64.
        tolerance: of each entry, relative.
    """
    tolerance = max(tolerance, 32 * torch.finfo(columns.dtype).eps)
    sizes = columns.abs().amax(0).clamp_min(torch.finfo(columns.dtype).tiny)
    rows = columns / sizes
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / largest.where(largest > 0, 1.0)  # which changes no factor
    magnitudes = rows.abs()
    chosen = [0]
    while True:
        basis = rows[:, chosen]
        factors = torch.linalg.lstsq(basis, rows, driver="gels").solution
        factors[:, chosen] = torch.eye(len(chosen)).to(factors)
        left = (rows - basis @ factors).abs() / tolerance
        grown = (basis.abs() @ factors.abs()) / GROWTH
        # The larger of the two, where an entry of zero takes part in neither.
        excess = (torch.maximum(left, grown) / magnitudes).where(magnitudes > 0, left).amax(0)
        excess[chosen] = 0.0
        worst = int(excess.nan_to_num(torch.inf).argmax())
        if excess[worst] <= 1:
            return Combination(tuple(chosen), factors * sizes / sizes[chosen][:, None])
        chosen.append(worst)

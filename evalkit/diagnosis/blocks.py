"""The distance of one block from the exact one: formed, by the Gram matrix of rows, or by probes.

With R the exact rows of a block, F = R^T R and H = R R^T,

    |F - F~|_F^2 = |H|_F^2 - 2 sum_rows <P, F~ P> + |F~|_F^2,

and the singular values of F other than 0 are those of H: nothing of the size of F is formed. The
three terms cancel where the distance is small, so that of its square some units of rounding are
left: :class:`Distance` has the interval. Small blocks are formed instead, and nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import t as student
from torch import Tensor

from evalkit.curvature.diagonal import Diagonal
from evalkit.curvature.direction import MatrixBlock
from evalkit.curvature.kronecker import Kronecker
from evalkit.curvature.pulled import PART, Names, Pulled
from evalkit.curvature.rows import FORMED, ParameterBlock, RowBlock
from evalkit.linearization import Linearization
from evalkit.signs import random_signs

Route = Literal["formed", "gram", "probes", "identical", "mixed"]
Solver = MatrixBlock | RowBlock

MOST = 4096
"""Rows or columns of a matrix whose eigenvalues are found: 128 MiB."""
SMALL = 512
"""Parameters up to which a block is formed, however few rows it has."""
COLUMNS, SPECTRUM = 1 << 14, 1024
"""Parameters of a block up to which products with all columns give its norm, and its spectrum."""
ROUNDING = 64.0
"""Units of rounding in the square of a distance, for each of its three terms."""


@dataclass(frozen=True, eq=False)
class Distance:
    """How far a block F~ is from the exact one, F; groups of a convolution are summed over.

    Attributes:
        route: how it was found.
        square: |F - F~|_F^2.
        low: lower end of what that may be.
        high: upper end.
        norm: |F|_F^2.
        exact: the singular values of F, falling, but for zeros; None where they are not found.
        values: those of F~.
    """

    route: Route
    square: float
    low: float
    high: float
    norm: float
    exact: Tensor | None = None
    values: Tensor | None = None


def gram_of(exact: Pulled, names: Names) -> Tensor:
    """Return H of a block, (groups, M, M): of formed rows, or of many by the rules of layers."""
    own, count = exact.blocks[names], exact.given.targets.numel()
    if own.shape[0] == 1 and count * own.size > FORMED:
        lin = exact.lin
        key = ("gram blocks", exact.source.key)
        known = lin.shared(key, lambda: lin.gram_blocks(exact.given.values))
        if names in known:
            return known[names].unsqueeze(0)
    rows = exact.formed(names)
    return rows @ rows.mT


def cheapest(exact: Pulled, names: Names) -> Route:
    """Return how a block is best compared: formed, by its Gram matrix, or by probes."""
    size, count = exact.blocks[names].size, exact.given.targets.numel()
    if size <= min(MOST, max(count, SMALL)):
        return "formed"
    return "gram" if count <= MOST else "probes"


def formed_distances(
    exact: Pulled, names: Names, solvers: dict[str, Solver]
) -> dict[str, Distance]:
    """Return the distances of several approximations of a block, all formed."""
    matrix, own = _exact_matrix(exact, names), exact.blocks[names]
    values, norm = falling(torch.linalg.eigvalsh(matrix)), float(matrix.square().sum())
    found = {}
    for method, solver in solvers.items():
        other = _formed(solver, own.shape, matrix)
        known = spectrum(solver)
        singular = torch.linalg.eigvalsh(other) if known is None else known
        square = float((matrix - other).square().sum())
        rounding = ROUNDING * exact.lin.unit * math.sqrt(norm)
        root = math.sqrt(square)
        low, high = max(0.0, root - rounding) ** 2, (root + rounding) ** 2
        found[method] = Distance("formed", square, low, high, norm, values, falling(singular))
    return found


def gram_distances(
    exact: Pulled, names: Names, solvers: dict[str, Solver], gram: Tensor
) -> dict[str, Distance]:
    """Return the distances of approximations of a block by the Gram matrix of its exact rows.

    Of an approximation whose eigenvalues its factors do not tell, as one of two terms, the norm is
    found column by column, and the spectrum where it is small; a large one is left out.

    Args:
        exact: the rows.
        names: the parameters of the block.
        solvers: by method.
        gram: H, (groups, M, M).
    """
    values, norm = falling(torch.linalg.eigvalsh(gram)), float(gram.square().sum())
    found = {}
    for method, solver in solvers.items():
        if isinstance(solver, RowBlock) and solver.pulled is exact:
            found[method] = Distance("identical", 0.0, 0.0, 0.0, norm, values, values)
            continue
        singular, shape = spectrum(solver), exact.blocks[names].shape
        if singular is None:
            size = shape[1] * shape[2]
            if size > COLUMNS:
                continue
            own = sum(float(c.square().sum()) for c in _columns(solver, shape, gram))
            if size <= SPECTRUM:
                singular = torch.linalg.eigvalsh(_formed(solver, shape, gram))
        else:
            own = float(singular.square().sum())
        inner = _inner(exact, names, solver)
        square = norm - 2 * inner + own
        rounding = ROUNDING * exact.lin.unit * (norm + 2 * abs(inner) + own)
        low, high = max(0.0, square - rounding), max(0.0, square) + rounding
        square = max(0.0, square)
        others = None if singular is None else falling(singular)
        found[method] = Distance("gram", square, low, high, norm, values, others)
    return found


def probed_distances(
    lin: Linearization,
    pulled: Pulled,
    names: Names,
    solvers: dict[str, Solver],
    probes: int,
    seed: int,
) -> dict[str, Distance]:
    """Return estimates of the distances: E |A z|^2 = |A|_F^2 for z of random signs.

    The interval is that of the ratio |F - F~|^2 / |F|^2, 95% by Student's t.

    Args:
        lin: the model and batch.
        pulled: of the exact rows, or of any others, where products with F have to do.
        names: the parameters of the block.
        solvers: by method.
        probes: how many z, at least 2.
        seed: of the signs.
    """
    own = pulled.blocks[names]
    generator = torch.Generator().manual_seed(seed)
    step = max(1, PART // (own.shape[0] * own.size))
    norms: list[Tensor] = []
    squares: dict[str, list[Tensor]] = {method: [] for method in solvers}
    for start in range(0, probes, step):
        shape = (min(step, probes - start), *own.shape)
        z = random_signs(shape, generator, pulled.given.targets)
        image = _image(lin, pulled, names, z)
        norms.append(image.square().sum((1, 2, 3)))
        for method, solver in solvers.items():
            squares[method].append((image - solver.product(z)).square().sum((1, 2, 3)))
    y = torch.cat(norms)
    return {method: _estimate(torch.cat(found), y) for method, found in squares.items()}


def _estimate(x: Tensor, y: Tensor) -> Distance:
    """Return a distance from the squares |F z - F~ z|^2 and |F z|^2 of each probe."""
    count, norm, square = len(x), float(y.mean()), float(x.mean())
    ratio = square / max(norm, 1e-300)
    spread = float((x - ratio * y).square().sum()) / (count * (count - 1))
    far = float(student.ppf(0.975, count - 1)) * math.sqrt(spread)
    return Distance("probes", square, max(0.0, square - far), square + far, norm)


def spectrum(solver: Solver) -> Tensor | None:
    """Return the singular values of a block by its factors; None for a structure without."""
    if isinstance(solver, ParameterBlock):
        solver = solver.matrix
    if isinstance(solver, Kronecker):
        b, a = solver.out.values[:, :-1], solver.inside.values[:, :-1]
        return (b[:, :, None] * a[:, None, :]).flatten()
    if isinstance(solver, Diagonal):
        values = solver.values if solver.bases is None else solver.values[:, :-1, :-1]
        return values.flatten()
    if isinstance(solver, RowBlock):
        return torch.cat([factor.eigenvalues for factor in solver.factors])
    return None


def falling(values: Tensor) -> Tensor:
    """Return singular values in falling order, (m,), of all groups together."""
    return values.flatten().abs().sort(descending=True).values


def _exact_matrix(exact: Pulled, names: Names) -> Tensor:
    """Return F of a block, (groups, size, size)."""
    own = exact.blocks[names]
    total = exact.given.targets.new_zeros(own.shape[0], own.size, own.size)
    for rows in _rows(exact, names):
        flat = rows.flatten(2).movedim(1, 0)
        total += flat.mT @ flat
    return total


def _formed(solver: Solver, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return F~ of a block, (groups, size, size), on the device of another matrix."""
    matrix = torch.cat(list(_columns(solver, shape, like))).movedim(0, 2)
    return (matrix + matrix.mT) / 2


def _columns(solver: Solver, shape: tuple[int, int, int], like: Tensor) -> Iterator[Tensor]:
    """Yield columns of F~ in parts, (columns, groups, size)."""
    groups, out, inside = shape
    size = out * inside
    step = max(1, PART // (groups * size))
    for start in range(0, size, step):
        count = min(step, size - start)
        x = torch.zeros(count, size).to(like)
        x[torch.arange(count), start + torch.arange(count)] = 1.0
        x = x.view(count, 1, out, inside).expand(-1, groups, -1, -1)
        yield solver.product(x).flatten(2)


def _inner(exact: Pulled, names: Names, solver: Solver) -> float:
    """Return <F, F~> = sum_rows <P, F~ P>."""
    total = 0.0
    for rows in _rows(exact, names):
        if isinstance(solver, RowBlock):
            total += float(solver.pulled.along(names, rows).square().sum())
        else:
            total += float((rows * solver.product(rows)).sum())
    return total


def _rows(exact: Pulled, names: Names) -> Iterator[Tensor]:
    """Yield the rows of a block in parts, (rows, groups, out, in)."""
    shape = exact.blocks[names].shape
    for part in exact.parts():
        if part.names == names:
            for _, rows in part.rows():
                yield rows.flatten(0, 1).view(-1, *shape)


def _image(lin: Linearization, pulled: Pulled, names: Names, z: Tensor) -> Tensor:
    """Return F z of a block, (probes, groups, out, in)."""
    if pulled.source.labels == "exact":
        return pulled.across(names, pulled.along(names, z))
    own = pulled.blocks[names]
    zero = {name: torch.zeros_like(value) for name, value in lin.parameters.items()}
    image = torch.zeros_like(z)
    for probe in range(len(z)):
        for group in range(own.shape[0]):  # what F has between groups is none of the blocks'
            one = torch.zeros_like(z[probe])
            one[group] = z[probe, group]
            vector = lin.flattened({**zero, **own.tensors(lin, one.to(lin.logits.dtype))})
            image[probe, group] = own.matrix(lin, lin.fvp(vector))[group]
    return image

"""Matrix errors of structures on one batch: every block, all blocks together, the whole matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evalkit.curvature import BlockMatrix, MatrixBlock, Source
from evalkit.curvature.labels import check_known
from evalkit.curvature.pulled import Names, Pulled, pulled
from evalkit.curvature.rows import RowBlock
from evalkit.diagnosis.blocks import (
    MOST,
    ROUNDING,
    Distance,
    Solver,
    cheapest,
    falling,
    formed_distances,
    gram_distances,
    gram_of,
    probed_distances,
)
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization, linearize
from evalkit.settings import PROBES, Others
from evalkit.storage.rows import MatrixError
from evalkit.updates import VectorUpdate, compute, methods

ALL, WHOLE = "all blocks", "whole matrix"
DAMPING = 1.0
"""With which a method is called for its matrix, which has none."""


@dataclass(frozen=True, eq=False)
class _Whole:
    """The exact Fisher matrix by the Gram matrix of its rows.

    Attributes:
        norm: |F|_F^2.
        values: its singular values.
        between: |F - blockdiag(F)|_F^2.
        rounding: how far rounding moves that.
    """

    norm: float
    values: Tensor
    between: float
    rounding: float


def matrix_errors(
    lin: Linearization,
    names: Sequence[str],
    probes: int = PROBES,
    seed: int = 0,
    others: Others = "block",
) -> list[MatrixError]:
    """Return how far the undamped matrices of methods are from the exact Fisher matrix.

    Args:
        lin: the model and batch.
        names: methods that take the matrix layer by layer, with their settings.
        probes: for a block that is too large for its Gram matrix and to be formed.
        seed: of labels that methods draw, and of the probes.
        others: what methods make of parameters without factors.

    Returns:
        A row for each method and block, in the order of the model's parameters, with
        :data:`ALL` and, where it is found, :data:`WHOLE` behind them.

    Raises:
        EvalkitError: a method has no blocks, or its cotangents are not known, or there are fewer
            than two probes.
    """
    check_probes(probes)
    exact = _exact(lin)
    matrices = {name: _matrix(lin, name, seed, others) for name in names}
    reference = exact or next(iter(matrices.values())).pulled
    total: Tensor | None = None
    several = exact is not None and exact.given.targets.numel() <= MOST
    found: dict[str, dict[Names, Distance]] = {name: {} for name in names}
    for block in _in_order(lin, reference):
        solvers = {name: _solver(one, block) for name, one in matrices.items()}
        route = "probes" if exact is None else cheapest(exact, block)
        gram = gram_of(exact, block) if exact is not None and several else None
        distances: dict[str, Distance] = {}
        if exact is not None and route == "formed":
            distances = formed_distances(exact, block, solvers)
        elif exact is not None and gram is not None and route == "gram":
            distances = gram_distances(exact, block, solvers, gram)
        left = {name: one for name, one in solvers.items() if name not in distances}
        if left:
            distances |= probed_distances(lin, reference, block, left, probes, seed)
        if gram is not None:
            total = gram.sum(0) if total is None else total + gram.sum(0)
        for name in names:
            found[name][block] = distances[name]
    rows = []
    for name in names:
        rows += _rows(lin, name, reference, found[name], total)
    return rows


def check_probes(probes: int) -> None:
    """Refuse fewer probes than a spread takes.

    Raises:
        EvalkitError: there are fewer than 2.
    """
    if probes < 2:
        raise EvalkitError(f"expected at least 2 probes, found {probes}; set `probes` to 2 or more")


def check_have_blocks(names: Sequence[str]) -> None:
    """Refuse methods on the whole matrix, by their updates on a model of two tiny layers.

    What fails on it alone, as a method of a user's may, passes.

    Args:
        names: methods with settings.

    Raises:
        EvalkitError: one has no blocks; the sentence names those that have.
    """
    lin = _tiny()
    for name in names:
        if _has_blocks(lin, name) is False:
            raise _without_blocks(name, lin)


def block_name(names: Names) -> str:
    """Return what a block is called: the module of a weight with its bias, or its parameter."""
    modules = {name.rpartition(".")[0] for name in names}
    return (
        modules.pop()
        if len(names) > 1 and len(modules) == 1 and "" not in modules
        else (" ".join(names))
    )


def _rows(
    lin: Linearization,
    method: str,
    reference: Pulled,
    found: Mapping[Names, Distance],
    total: Tensor | None,
) -> list[MatrixError]:
    """Return the rows of one method.

    Args:
        lin: the model and batch.
        method: its name.
        reference: has the blocks.
        found: by block.
        total: the Gram matrix of all exact rows, where it is known.
    """
    rows = []
    for names, one in found.items():
        groups, out, inside = reference.blocks[names].shape
        rows.append(_row(method, block_name(names), groups * out * inside, one))
    together = _together(list(found.values()))
    rows.append(_row(method, ALL, lin.num_params, together))
    if total is not None:
        values = falling(torch.linalg.eigvalsh(total))
        norm = float(total.square().sum())
        # |F - F~|^2 has what is between the blocks of F, and the errors within them.
        between = max(0.0, norm - together.norm)
        rounding = ROUNDING * lin.unit * (norm + together.norm)
        whole = Distance(
            "gram",
            between + together.square,
            max(0.0, between - rounding) + together.low,
            between + rounding + together.high,
            norm,
            None if together.values is None else values,
            together.values,
        )
        share = math.sqrt(between / norm) if norm > 0 else math.nan
        rows.append(replace(_row(method, WHOLE, lin.num_params, whole), off_diagonal=share))
    return rows


def _row(method: str, block: str, parameters: int, one: Distance) -> MatrixError:
    def relative(square: float) -> float:
        return math.sqrt(square / one.norm) if one.norm > 0 else math.nan

    apart = math.nan
    if one.exact is not None and one.values is not None and one.norm > 0:
        size = max(len(one.exact), len(one.values))
        exact, values = (
            torch.nn.functional.pad(v, (0, size - len(v))) for v in (one.exact, one.values)
        )
        apart = float((exact - values).norm() / exact.norm())
    return MatrixError(
        method,
        block,
        parameters,
        one.route,
        relative(one.square),
        relative(one.low),
        relative(one.high),
        apart,
        math.nan,
    )


def _together(found: Sequence[Distance]) -> Distance:
    """Return the distance of the block-diagonal matrices of several blocks."""
    routes = {one.route for one in found}
    exact = [one.exact for one in found if one.exact is not None]
    values = [one.values for one in found if one.values is not None]
    known = len(exact) == len(values) == len(found)
    return Distance(
        routes.pop() if len(routes) == 1 else "mixed",
        sum(one.square for one in found),
        sum(one.low for one in found),
        sum(one.high for one in found),
        sum(one.norm for one in found),
        falling(torch.cat(exact)) if known else None,
        falling(torch.cat(values)) if known else None,
    )


def _exact(lin: Linearization) -> Pulled | None:
    """Return the exact rows, None where there are too many."""
    try:
        return pulled(lin, Source("exact"))
    except EvalkitError:
        return None


def _in_order(lin: Linearization, reference: Pulled) -> list[Names]:
    places = {name: place for place, name in enumerate(lin.parameters)}
    return sorted(reference.blocks, key=lambda names: places[names[0]])


def _matrix(lin: Linearization, method: str, seed: int, others: Others) -> BlockMatrix:
    update = compute(method, lin, DAMPING, seed, others=others)
    if not isinstance(update, VectorUpdate) or update.matrix is None:
        raise _without_blocks(method, _tiny())
    check_known(lin, update.matrix.pulled.source)
    return update.matrix


def _solver(matrix: BlockMatrix, names: Names) -> Solver:
    if names not in matrix.blocks:
        raise EvalkitError(
            f"expected a block of {', '.join(names)} whatever the labels, found a matrix that "
            "divides these parameters otherwise; leave out `micro_batch_size`"
        )
    block = matrix.blocks[names]
    assert isinstance(block, MatrixBlock | RowBlock)
    return block


def _without_blocks(method: str, lin: Linearization) -> EvalkitError:
    known = ", ".join(name for name in methods() if _has_blocks(lin, name))
    return EvalkitError(
        f"expected methods whose matrix has a block for each layer, found '{method}', which has "
        f"none to compare; choose from {known}, or ask for its layer scales by `scales`"
    )


def _has_blocks(lin: Linearization, method: str) -> bool | None:
    """Return whether a method's update has blocks, None where it fails on the model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            update = compute(method, lin, DAMPING)
    except EvalkitError:
        return None
    return isinstance(update, VectorUpdate) and update.matrix is not None


def _tiny() -> Linearization:
    """Return a model of two layers on three samples, which takes milliseconds."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).view(parameter.shape))
    inputs = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(3, 2)
    return linearize(model, inputs, torch.tensor([0, 1, 1]))

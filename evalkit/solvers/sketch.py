"""A sketch of the tangent kernel J J^T: near enough to precondition CG, at a fraction of its cost.

J J^T is the Gram matrix of G_nm = J_n^T e_m for the unit cotangents e_m of a sample's M outputs.
With random signs Omega it is G Omega (G Omega)^T on average, and the inner product with any fixed
vector of outputs is off by about sqrt(2 / columns). Over all directions at once the error is about
sqrt(N M / columns) (Woodruff, Sketching as a Tool for Numerical Linear Algebra, 2014, chapter 2):
nothing for a result, but all that a preconditioner needs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.layers.rows import GradientRows
from evalkit.layers.sketches import (
    SIZE,
    SKETCHES,
    Sketch,
    SketchSize,
    fair_width,
    input_map,
    slices,
)
from evalkit.linearization import Linearization
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import gradient_rows
from evalkit.solvers.kernel import units_like


@full_precision()
def sketched_kernel(lin: Linearization, size: SketchSize = SIZE, seed: int = 0) -> Tensor:
    """Return a random matrix that is J J^T on average, (N M, N M) float64, in the logits' order.

    Parameters without per-sample gradients from one backward are left out, and so are those of a
    micro-batch where they are had in another way than in the first. One backward for each of M
    outputs, whose gradients are formed with few inputs and folded to few columns.

    Args:
        lin: the model and batch.
        size: how large the sketch is.
        seed: the seed of the random signs.

    Raises:
        EvalkitError: no parameter has per-sample gradients from one backward.
    """
    parts = lin.by_share(_columns, lin.logits.numel(), size, seed)
    return _inner((parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(0, 1)).double()


def _columns(batches: MicroBatches, _: slice, outputs: int, size: SketchSize, seed: int) -> Tensor:
    """Return the sketched gradients of the samples of some forward passes: (N, M, columns).

    Args:
        batches: the forward passes.
        outputs: N M of the whole batch.
        size: how large the sketch is.
        seed: the seed of the random signs, which are the same for all shares of a batch.
    """
    sketcher = _Sketcher(outputs, size, seed)
    parts = []
    for batch in batches:
        logits = batch.recording.logits
        parts.append(sketcher.columns(batch.recording, units_like(logits).to(logits.dtype)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _inner(rows: Tensor) -> Tensor:
    """Return R R^T, most blocks above the diagonal copied from below it."""
    inner = rows.new_empty(len(rows), len(rows))
    # A symmetric product in four blocks takes 5/8 of the multiplications.
    step = max(64, -(-len(rows) // 4))
    for start in range(0, len(rows), step):
        here = slice(start, min(start + step, len(rows)))
        torch.mm(rows[here], rows[: here.stop].T, out=inner[here, : here.stop])
        inner[:start, here] = inner[here, :start].T
    return inner


class _Sketcher:
    """The sketches of all parameters, drawn from the first micro-batch for all of them.

    Args:
        outputs: N M.
        size: how large the sketch is.
        seed: the seed of the random signs.
    """

    def __init__(self, outputs: int, size: SketchSize, seed: int) -> None:
        self._inputs, self._total = size.inputs, size.columns * outputs
        self._generator = torch.Generator().manual_seed(seed)
        self._sketches: dict[str, Sketch] = {}
        self._maps: dict[str | None, Tensor | None] = {}
        self._width = 0

    def columns(self, recording: Recording, units: Tensor) -> Tensor:
        """Return the sketched gradients of one micro-batch: (N, M, columns)."""
        # A call's inputs serve every output: mapped once for a micro-batch.
        positions = cache(self._positions)
        columns: Tensor | None = None
        for output, cotangents in enumerate(units):
            rows = gradient_rows(recording, cotangents[None], positions)
            # The first rows show which parameters have any, and of which kind.
            if not self._sketches:
                self._draw(rows)
            widths = [min(sketch.size, self._width) for sketch in self._sketches.values()]
            if columns is None:
                columns = units.new_zeros(units.shape[1], len(units), sum(widths))
            for (name, sketch), here in zip(self._sketches.items(), slices(widths), strict=True):
                if name in rows and sketch.takes(rows[name]):
                    sketch.write(rows[name], columns[:, output, here])
        assert columns is not None
        return columns

    def _positions(self, use: LayerUse) -> Tensor:
        """Return what the rows of a call share, inputs mapped to fewer where that saves work."""
        found, work = use.layer.positions(), use.layer.work
        if use.weight not in self._maps:
            # By weight and not by call: rows of one weight are summed over its calls.
            many, most = work.mapped(self._inputs), self._inputs
            self._maps[use.weight] = (
                input_map(work.inside, most, self._generator, found) if many else None
            )
        omega = self._maps[use.weight]
        return found if omega is None else found @ omega

    def _draw(self, rows: dict[str, GradientRows]) -> None:
        if not rows:
            raise EvalkitError(
                "expected layers whose per-sample gradients come from one backward, found none; "
                "choose solver 'cg'"
            )
        self._sketches = {
            name: SKETCHES[type(one)](one, self._generator, self._inputs)
            for name, one in rows.items()
        }
        # Small parameters stay whole, the others share the columns that are left.
        self._width = fair_width((one.size for one in self._sketches.values()), self._total)

"""How far rounding moves what curvature matrices are made of.

Entries of a and d are rounded, each by about a unit of the length of its vector, alike in all
directions; output gradients of a sample by as much as its gradient (:mod:`evalkit.rounding`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature.pulled import Names, Pulled
from evalkit.linearization import FormedRows
from evalkit.rounding import gradient_noise

INPUTS = 2.0
"""Units of rounding in the inputs of a layer, as a part of their length."""


@dataclass
class Moments:
    """Sums over vectors v of a kind, and over the parts by which rounding moves them.

    Attributes:
        count: of vectors.
        squares: sum |v|^2.
        moved: sum u_v^2 |v|^2 with rounding u_v.
        fourth: sum u_v^2 |v|^4.
    """

    count: int = 0
    squares: float = 0.0
    moved: float = 0.0
    fourth: float = 0.0

    def add(self, squares: Tensor, relative: Tensor | float) -> None:
        """Add vectors.

        Args:
            squares: |v|^2.
            relative: u_v, which is broadcast against them.
        """
        far = squares * relative**2
        self.count += squares.numel()
        self.squares += float(squares.sum())
        self.moved += float(far.sum())
        self.fourth += float((far * squares).sum())

    def mean_move(self, size: int) -> float:
        """Return the mean square move of an entry in sum v v^T, long vectors counting more."""
        return self.fourth / max(self.squares, 1e-300) / size

    def shift(self, size: int) -> float:
        """Return what the squares of all moves add to the diagonal of sum v v^T."""
        return self.moved / size


@dataclass(frozen=True)
class Noise:
    """Moments of a block.

    Attributes:
        inputs: of a_nt; none without factors.
        gradients: of d_knt; none without factors.
        rows: of P_kn, as if positions were independent.
        gradient: the mean square move of an entry of the gradient.
    """

    inputs: Moments
    gradients: Moments
    rows: Moments
    gradient: float


def noises(pulled: Pulled) -> dict[Names, Noise]:
    """Return the moments of each block, found once for all structures."""
    return pulled.lin.shared(("noise", pulled.source.key), lambda: _noises(pulled))


def _noises(pulled: Pulled) -> dict[Names, Noise]:
    lin = pulled.lin
    found = {names: (Moments(), Moments(), Moments()) for names in pulled.blocks}
    for part in pulled.parts():
        inputs, gradients, rows = found[part.names]
        relative = pulled.relative[part.draws, part.found.samples]
        if isinstance(part.found, FormedRows):
            rows.add(part.found.rows.double().square().sum(2), relative)
            continue
        a = part.found.inputs.double().square().sum(3)  # (groups, n, T)
        d = part.found.output_gradients.double().square().sum(4)  # (groups, K, n, T)
        if part.draws.start == 0:
            inputs.add(a, INPUTS * lin.unit)
        gradients.add(d, relative[:, :, None])
        rows.add(torch.einsum("gnt,gknt->gkn", a, d), relative)
    whole = max(sum(rows.squares for _, _, rows in found.values()), 1e-300)
    moved = float(gradient_noise(lin).square().sum())
    return {
        names: Noise(a, d, rows, moved * rows.squares / whole / _numbers(pulled, names))
        for names, (a, d, rows) in found.items()
    }


def _numbers(pulled: Pulled, names: Names) -> int:
    groups, out, inside = pulled.blocks[names].shape
    return groups * out * inside

"""How the vectors of conjugate gradients are kept: as cotangents, or as P numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.reductions import norm


@dataclass(frozen=True, eq=False)
class Space:
    """How vectors are kept, and what is needed of them.

    Attributes:
        gradient: g.
        adjoint: maps u, like logits, to J^T u.
        push: maps v to J v, like logits, float64.
        inner: maps u, v and J v to u^T v.
        norm: maps v to |v|, with J v in place of None if that is known.
        of_cotangents: a vector v is kept as w, like logits, with v = J^T w.
    """

    gradient: Tensor
    adjoint: Callable[[Tensor], Tensor]
    push: Callable[[Tensor], Tensor]
    inner: Callable[[Tensor, Tensor, Tensor], Tensor]
    norm: Callable[[Tensor, Tensor | None], float]
    of_cotangents: bool


def cotangents(lin: Linearization) -> Space:
    """Return the space in which J^T w is kept as w.

    g = J^T r and F v = J^T S J v, so every vector of CG is J^T of something. An iteration takes one
    product J J^T w, cheaper than a Fisher-vector product, and |v|^2 = w . (J J^T w).
    """
    return Space(
        gradient=lin.logit_gradients,
        adjoint=lambda u: u,
        push=lin.kernel_product,
        inner=lambda u, v, jv: (u * jv).sum(),
        norm=lambda v, jv: lin.vjp_norm(v) if jv is None else lin.pulled_norm(v, jv),
        of_cotangents=True,
    )


def vectors(lin: Linearization) -> Space:
    """Return the space of P numbers, for preconditioners and where rounding asks for it."""
    return Space(
        gradient=lin.gradient,
        adjoint=lin.vjp,
        push=lambda v: lin.jvp(v).double(),
        inner=lambda u, v, jv: (u.double() * v.double()).sum(),
        norm=lambda v, jv: norm(v),
        of_cotangents=False,
    )

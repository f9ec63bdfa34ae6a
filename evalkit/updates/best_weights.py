"""The best that any weights on per-sample gradients can do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.factor import GramFactor
from evalkit.factorization import factorize, factorize_rows, row_basis
from evalkit.linearization import Linearization
from evalkit.linearization.linearized import MOST_ROW_NUMBERS
from evalkit.reductions import inverse
from evalkit.rounding import gradient_noise, hidden_rows, relative_noise
from evalkit.solvers.kernel import sample_products
from evalkit.updates.registry import method
from evalkit.updates.types import CotangentUpdate, SolverReport, Term, Update, VectorUpdate
from evalkit.work import TYPICAL, kernel_work, product_work

MOST_NUMBERS = 1 << 27
"""Numbers in J G_n of all samples, N times those in the logits: 1 GiB."""

SAFETY = 4.0
"""What estimates of the part of 1 / gamma^2 that is missed are multiplied by."""


@method("best-weights")
def best_weights(lin: Linearization, damping: float) -> Update:
    """Best weights on samples: d = G^T alpha with alpha = argmin of gamma; ignores the damping.

    With A_nm = G_n^T F G_m and b = K 1, the slopes of the losses along g, gamma^2 is
    alpha^T A alpha / (alpha^T b)^2 and is smallest where A alpha = b: no reweighting of per-sample
    gradients, EF, iEF and FGN included, is better. A is the Gram matrix of W_n = S^(1/2) J G_n, and
    is factorised as one.

    A has the fourth powers of the singular values of J, of which float64 sees a factor of 1e4.
    Small float64 evaluations take an orthonormal basis Q of the span of G in place of G itself, and
    factorise W = S^(1/2) J Q in place of W W^T: d = Q (W^T W)^+ Q^T g.
    """
    size, outputs = lin.num_samples * lin.num_params, lin.logits.shape[-1]
    small = size <= MOST_ROW_NUMBERS and lin.logits.numel() * outputs <= MOST_NUMBERS
    if small and lin.logits.dtype == torch.float64:
        return lin.shared("best-weights", lambda: _in_span(lin))
    return lin.shared("best-weights", lambda: _weighted(lin))


def _weighted(lin: Linearization) -> Update:
    """Return the best weights by A itself."""
    products = _sample_products(lin)
    moved = torch.stack([lin.output_fisher(one.view_as(lin.logits)).flatten() for one in products])
    rounding = 10 * torch.finfo(lin.logits.dtype).eps
    # Of N numbers as far as can be told: rounding fills what is left of the rank.
    factor = factorize(products @ moved.T, rounding, lin.unit, lin.num_samples)
    b = products @ lin.logit_gradients.flatten()
    alpha = factor.solve(b, 0.0)
    return CotangentUpdate(
        lin.weighted_logit_gradients(alpha),
        (Term(lin.logit_gradients, alpha),),
        slope=float(b @ alpha),
        report=_report(
            lin, factor, b, factor.norms * relative_noise(lin), hidden_rows(lin, factor.norms)
        ),
    )


def _in_span(lin: Linearization) -> Update:
    """Return the best direction in the span of G, by a basis of it."""
    # Of any length, so that the squares of none underflow.
    scaled = lin.weighted_logit_gradients(inverse(lin.logit_gradient_norms))
    rows = lin.sample_gradients(scaled.unsqueeze(0))
    basis = row_basis(rows)
    if not len(basis):  # J J^T underflows, or there is no gradient
        return CotangentUpdate(torch.zeros_like(lin.logit_gradients), report=_report_of_nothing())
    root = lin.likelihood.fisher_root(lin.logits, lin.targets)
    root = root.reshape(-1, *root.shape[-2:])  # (positions, C, C)
    moved = [lin.jvp(q).reshape(*root.shape[:2], 1) for q in basis]
    factor = factorize_rows(torch.stack([(root.mT @ one).flatten() for one in moved]))
    b = basis @ lin.gradient
    norms = lin.gradient_norms
    relative = float(gradient_noise(lin).norm()) / max(float(norms.norm()), 1e-300)
    report = _report(lin, factor, b, factor.norms * relative, hidden_rows(lin, rows.norm(dim=1)))
    return VectorUpdate(basis.T @ factor.solve(b, 0.0), report)


def _report_of_nothing() -> SolverReport:
    """Return the report of no direction, which is right where no gradient is known to be other."""
    return SolverReport("direct", 0, 0.0, converged=True, error=0.0, curable=True)


def _of_hidden(lin: Linearization, hidden: Tensor, length: float) -> float:
    """Return what gradients leave open that only count as zero: no gamma is below the floor.

    Weights make a row as long as they like, however short it is.

    Args:
        lin: the model and batch.
        hidden: which rows those are, (N,).
        length: 1 / gamma of what was found.
    """
    if not hidden.any():
        return 0.0
    best = length * lin.gamma_floor
    return max(0.0, 1 / best - 1) if 0 < best < math.inf else math.inf


def _report(
    lin: Linearization, factor: GramFactor, b: Tensor, noise: Tensor, hidden: Tensor
) -> SolverReport:
    """Return what a solve with the factor of W W^T leaves.

    1 / gamma^2 = b^T (W W^T)^+ b misses what rounding hides of W. Weights that rounding has moved
    lose to second order alone: a change delta d costs half of |delta d|_F^2 / |d|_F^2.

    Args:
        lin: the model and batch.
        factor: the factor of W W^T.
        b: the right side.
        noise: how far rounding moves the rows of W.
        hidden: which gradients only count as zero, (N,).
    """
    found, size = factor.image(b, 0.0), float(b.norm())
    length = factor.length(factor.solve(b, 0.0))
    left = _of_hidden(lin, hidden, length)
    if length > 0:
        moved = factor.movement(b, 0.0, noise, lin.unit) / length
        left += SAFETY * (factor.unresolved(b, 0.0) / length**2 + moved**2) / 2
    return SolverReport(
        solver="direct",
        iterations=1,
        relative_residual=float((found - b).norm()) / size if size else 0.0,
        converged=True,
        error=left if left < 1 else math.inf,
        curable=True,
    )


def _sample_products(lin: Linearization) -> Tensor:
    """Return J G_n of every sample, (N, N M), by what takes less time.

    Raises:
        EvalkitError: they would not fit into memory.
    """
    samples, numbers = lin.num_samples, lin.num_samples * lin.logits.numel()
    if numbers > MOST_NUMBERS:
        raise EvalkitError(
            f"expected at most {MOST_NUMBERS:,} numbers in J G_n of all samples for method "
            f"'best-weights', found {numbers:,}; score smaller batches, or leave the method out"
        )
    alone = samples * TYPICAL.seconds(product_work(lin))
    if TYPICAL.seconds(kernel_work(lin, draws=1)) <= alone:
        return sample_products(lin, lin.logit_gradients)
    rows = []
    for sample in range(samples):
        c = torch.zeros_like(lin.logit_gradients)
        c[sample] = lin.logit_gradients[sample]
        rows.append(lin.kernel_product(c).flatten())
    return torch.stack(rows)

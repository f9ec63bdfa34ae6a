"""What holds of any model and batch: products, sums, orders and parts, against formed matrices."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

import evalkit
from evalkit.scoring.metrics import imbalance
from tests.support import dense
from tests.support.dense import Dense, assert_near
from tests.support.strategies import Plan
from tests.support.table import Batch
from tests.support.vectors import random_vectors

TOLERANCE = 1e-9
CANCELLED = 1e-3
"""Size of the terms that a Jacobian of zeros is the sum of."""
LOGIT_ROUNDING = 1e-2
"""Rounding of a logit, as a part of it, over the absolute tolerance of :func:`near`."""
METHODS = ("sgd", "ef", "ief", "ief-tikhonov", "fgn", "fgn-tikhonov", "polyak")
NGD = "ngd:tolerance=1e-12"
"""Of a residual that allows 1e-6, small eigenvalues leave the direction fewer digits than gamma."""


def linearized(batch: Batch) -> evalkit.Linearization:
    """The batch in float64, whatever its own dtype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evalkit.linearize(*batch, dtype="float64")


def formed(batch: Batch) -> Dense:
    """The batch with everything formed."""
    targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
    return dense.dense(batch.model, batch.inputs, targets, batch.likelihood)


def check_products(plan: Plan) -> None:
    """Gradients, norms, products with J, its transpose and F, the Gram matrix and its rank."""
    batch = plan.make()
    lin, expected = linearized(batch), formed(batch)
    assert (lin.num_samples, lin.num_params) == (plan.samples, expected.num_params)
    most = float(expected.logits.abs().max())
    scale = max(float(expected.jacobian.abs().max()), CANCELLED)
    near(lin.losses, expected.losses, most)
    # The rounding of logits is a part of r, and all of it where samples are fitted.
    rounded = LOGIT_ROUNDING * most * float(expected.curvature.abs().sum())
    size = scale * (float(expected.residual.abs().sum()) + rounded)
    near(lin.gradient, expected.gradient, size)
    near(lin.gradient_norms, expected.gradient_norms, size)
    near(lin.logit_gradient_norms, expected.logit_gradient_norms, 1.0)
    near(lin.gram, expected.gram, size**2)
    u, v = random_vectors(2, lin.num_params)
    c = torch.randn(expected.logits.shape, dtype=torch.float64)
    many = float(v.abs().sum()) * scale
    near(lin.jvp(v), expected.jvp(v), many)
    near(lin.vjp(c), expected.vjp(c), scale * float(c.abs().sum()))
    near(lin.kernel_product(c), expected.jvp(expected.vjp(c)), scale**2 * c.numel() * len(v))
    fisher = expected.fisher
    most = float(fisher.abs().max()) * float(v.abs().sum() + u.abs().sum())
    near(lin.fvp(v), fisher @ v, most)
    size = most * float(v.abs().sum() + u.abs().sum())
    near(u @ lin.fvp(v), v @ lin.fvp(u), size)
    assert float(v @ lin.fvp(v)) >= -TOLERANCE * size
    near((c * lin.jvp(v)).sum(), lin.vjp(c) @ v, many * float(c.abs().sum()))


def near(found: Tensor, wanted: Tensor, size: float) -> None:
    """Entries agree to rounding of terms of a size."""
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=TOLERANCE, atol=1e-12 * max(size, 1e-300)
    )


def check_directions(plan: Plan) -> None:
    """Damped directions are the textbook's, and nothing is below the floor or above what is best.

    gamma is that of sqrt(d^T F d) / |d^T g| whatever the length and sign of d; with a damping,
    (F + lambda I)^-1 g has the smallest gamma^2 + lambda (|d| / d^T g)^2.
    """
    batch = plan.make()
    lin, expected = linearized(batch), formed(batch)
    norms = expected.gradient_norms
    smallest = min(float(norms.min()), float(expected.gradient.norm()))
    if not smallest > 1e-3 * float(norms.max()):
        return  # what cancels is held to the exact numbers
    # The solves of the reference keep six digits as long as matrices are not much larger.
    damping = 0.1 * float(expected.gram.diagonal().max())
    damping = max(damping, 1e-9 * float(expected.jacobian.square().sum()))
    best = penalised(expected, dense.ngd(expected, damping), damping)
    for method in (*METHODS, NGD):
        d = evalkit.update(method, lin, damping=damping)
        makes = getattr(dense, method.split(":")[0].replace("-", "_"))
        wanted = makes(expected) if method == "sgd" else makes(expected, damping)
        assert_near(d, wanted, 1e-6)
        if abs(float(wanted @ expected.gradient)) < 1e-6 * float(wanted.norm()) * float(
            expected.gradient_norms.sum()
        ):
            continue
        gamma = evalkit.gamma(lin, wanted)
        assert abs(gamma / expected.gamma(wanted) - 1) < 1e-6, (method, plan)
        assert gamma >= lin.gamma_floor * (1 - 1e-9), (method, plan)
        assert penalised(expected, wanted, damping) >= best * (1 - 1e-6), (method, plan)
        for factor in (-1.0, 1e-20, -1e30):
            assert abs(evalkit.gamma(lin, factor * wanted) / gamma - 1) < 1e-9, (method, plan)


def penalised(expected: Dense, d: Tensor, damping: float) -> float:
    """gamma^2 + lambda (|d| / d^T g)^2."""
    slope = float(d @ expected.gradient)
    return float(d @ expected.fisher @ d + damping * d @ d) / slope**2


def check_table(plan: Plan) -> None:
    """Columns of a table are what they are defined to be of each other."""
    batch = plan.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = evalkit.score(*batch, methods=("sgd", "ief"), damping=1.0, dtype="float64")
    lin = linearized(batch)
    sgd = table.iloc[0]
    for row in table.itertuples():
        if row.slope and row.fisher_norm:
            assert row.gamma == row.fisher_norm / abs(row.slope)
            length = row.norm * lin.gradient_norm
            if length:
                assert abs(row.cosine_sgd - row.slope / length) <= 1e-9
                assert abs(row.cosine_sgd) <= 1 + 1e-6
            else:  # g is zero, and what the slope has is the rounding of what cancels
                assert row.error == float("inf")
        else:
            assert row.gamma == float("inf")
        if 0 < sgd.gamma < float("inf") and row.gamma < float("inf"):
            assert abs(row.ratio - row.gamma / sgd.gamma) <= 1e-9 * row.ratio
            if lin.gamma_floor < float("inf"):
                assert abs(row.efficiency - lin.gamma_floor / row.gamma) <= 1e-9
    norms = lin.gradient_norms
    found = imbalance(norms)
    assert found >= 1
    assert (found == float("inf")) == bool((norms == 0).any())


def check_orders(plan: Plan) -> None:
    """Samples in another order, twice, or in micro-batches; parameters in another order."""
    batch = plan.make()
    lin = linearized(batch)
    size = float(lin.gradient_norms.sum()) + 1e-300
    order = torch.arange(plan.samples).flip(0)
    moved = linearized(batch._replace(inputs=batch.inputs[order], targets=batch.targets[order]))
    near(moved.gradient, lin.gradient, size)
    near(moved.gram, lin.gram[order][:, order], size**2)
    twice = linearized(
        batch._replace(
            inputs=torch.cat([batch.inputs, batch.inputs]),
            targets=torch.cat([batch.targets, batch.targets]),
        )
    )
    near(twice.gradient, 2 * lin.gradient, size)
    near(twice.gram, lin.gram.repeat(2, 2), size**2)
    v = random_vectors(1, lin.num_params)[0]
    product = lin.fvp(v)
    near(twice.fvp(v), 2 * product, float(product.abs().sum()) + 1e-300)
    assert twice.gram_factor.rank == lin.gram_factor.rank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = evalkit.linearize(*batch, dtype="float64", micro_batch_size=2)
    near(parts.gradient, lin.gradient, size)
    near(parts.gram, lin.gram, size**2)
    near(parts.fvp(v), product, float(product.abs().sum()) + 1e-300)
    turned = linearized(batch._replace(model=Reversed(copy.deepcopy(batch.model))))
    near(turned.gram, lin.gram, size**2)
    near(turned.gradient.norm(), lin.gradient.norm(), size)
    assert abs(turned.gradient.sum() - lin.gradient.sum()) <= TOLERANCE * size * lin.num_params


class Reversed(nn.Module):
    """The same model whose parameters come in the opposite order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in model.named_parameters()][::-1]
        self.values = nn.ParameterList([model.get_parameter(name) for name in self.names])
        self.inner = [model]  # no module of this one

    def forward(self, x: Tensor) -> Tensor:
        values = dict(zip(self.names, self.values, strict=True))
        return torch.func.functional_call(self.inner[0], values, (x,))

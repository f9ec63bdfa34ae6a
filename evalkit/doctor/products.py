"""Whether J v, its transpose and the Gram matrix belong to one Jacobian."""

from __future__ import annotations

import torch

from evalkit.doctor.finding import Finding
from evalkit.linearization import Linearization
from evalkit.linearization.adjoint import compare
from evalkit.linearization.per_sample import defining_gradients

_NAME = "products"


def products(lin: Linearization) -> Finding:
    """Find whether <J v, u> = <v, J^T u> for random u and v, and K 1 = (r_n . J g)_n.

    Args:
        lin: of a batch.

    Raises:
        EvalkitError: torch cannot differentiate a backward; the sentence names the layer.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(lin.logits.shape, generator=generator).to(lin.logits)
    v = torch.randn(lin.num_params, generator=generator).to(lin.logits)
    test = compare([u], [lin.jvp(v)], lin.split(lin.vjp(u)), lin.split(v))
    gram, slopes = lin.gram, lin.sample_dots(lin.logit_gradients, lin.gradient_jvp)
    sizes = lin.gradient_norms * float(lin.gradient_norms.norm())
    rows = float(((gram.sum(1) - slopes).abs() / sizes.clamp_min(1e-300)).max())
    route = "rules" if lin.route is None else lin.route.__name__.partition("_")[0]
    numbers = {"adjoint": test.difference, "row_sums": rows, "route": route}
    if test.fails(lin.batches[0].recording.roughest):
        return Finding(
            _NAME,
            "fail",
            f"<J v, u> and <v, J^T u> differ by {test.difference:.1e} of their terms: a backward "
            "is not the transpose of its forward's derivative",
            "correct the autograd functions of the model, or use basic operations",
            numbers,
        )
    said = f"adjoint test within {test.difference:.0e}, row sums of the Gram matrix {rows:.0e}"
    if lin.route is defining_gradients:
        return Finding(
            _NAME,
            "warn",
            f"{said}, by one backward for each sample, which is slow: layer rules miss the row "
            "sums, as samples influence each other or lie on another axis than 0 inside",
            "keep the samples on axis 0 throughout the forward, and apart; where an axis is as "
            "long as the batch by chance, take another `batch_size`",
            numbers,
        )
    return Finding(_NAME, "ok", said, numbers=numbers)

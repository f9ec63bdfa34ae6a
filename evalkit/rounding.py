"""How far rounding moves per-sample gradients, and what that can do to a score."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.factor import SMALLEST
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.linearization import Linearization
from evalkit.reductions import power_of_two
from evalkit.signs import random_signs

LARGEST = 1e75
"""Fourth powers of what is larger overflow, as decompositions of Gram matrices take them."""
CANCELLED = 1e-2
"""|J_n^T c| / |c|, as a part of how long J is, below which its terms are taken to cancel."""


def gradient_noise(lin: Linearization) -> Tensor:
    """Return how far rounding moves G_n, an estimate of |delta G_n|: (N,) float64.

    Computed once for all methods.

    Args:
        lin: the model and batch.
    """
    return lin.shared(
        "gradient noise",
        lambda: row_noise(lin, lin.logit_gradients.unsqueeze(0), lin.gradient_norms),
    )


def row_noise(lin: Linearization, cotangents: Tensor, norms: Tensor) -> Tensor:
    """Return how far rounding moves J_n^T c_kn, as :func:`gradient_noise`: (K N,) float64.

    Rounding in the forward and the backward is that of weights rounded to the next number:
    delta z = J (u theta * signs) moves r_n by S_n delta z_n. Rows of other cotangents share the
    sample's model, so that rounding moves them alike. Where the terms of a row cancel, as over
    positions, it is they that are rounded.

    Args:
        lin: the model and batch.
        cotangents: c, (K, N, ..., C) float64.
        norms: |J_n^T c_kn|, (K N,).
    """

    def compute() -> Tensor:
        moved = lin.jvp_of(partial(_rounded, unit=lin.unit))
        far = lin.sample_dots(change := lin.output_fisher(moved), change).sqrt()
        relative = far / lin.logit_gradient_norms.clamp_min(torch.finfo(far.dtype).tiny)
        return lin.unit + relative.where(lin.gradient_norms > 0, 0.0)

    relative = lin.shared("relative noise", compute)
    return _uncancelled(lin, cotangents, norms) * relative.repeat(len(cotangents))


def relative_noise(lin: Linearization) -> Tensor:
    """Return |delta G_n| / |G_n|: (N,) float64.

    Args:
        lin: the model and batch.
    """
    norms = lin.gradient_norms
    return gradient_noise(lin) / norms.where(norms > 0, 1.0)


def fisher_trace(lin: Linearization) -> float:
    """Return an estimate of tr F = sum_n tr(S_n J_n J_n^T), J_n taken to be as long as along r_n.

    Args:
        lin: the model and batch.
    """

    def compute() -> float:
        traces = lin.likelihood.fisher_trace(lin.logits, lin.targets)
        norms = lin.logit_gradient_norms
        lengths = lin.gradient_norms / norms.where(norms > 0, 1.0)
        return float(lengths.square() @ traces)

    return lin.shared("trace of F", compute)


def underflows(lin: Linearization) -> bool:
    """Return whether J J^T is so small that the evaluation's smallest numbers round its entries.

    Cotangents are scaled to order one before they are pulled back; nothing scales J, taken to be as
    long as along r_n.

    Args:
        lin: the model and batch.
    """

    def compute() -> bool:
        norms, sizes = lin.gradient_norms, lin.logit_gradient_norms
        squares = (norms / sizes.where(sizes > 0, 1.0)).square()
        least = torch.finfo(lin.logits.dtype).tiny / lin.unit
        return bool(((norms > 0) & (sizes > 0) & (squares < least)).any())

    return lin.shared("J J^T underflows", compute)


def overflows(lin: Linearization) -> bool:
    """Return whether squares of gradients, or of their products with J, leave float64's range.

    Args:
        lin: the model and batch.
    """
    gradients, sizes = float(lin.gradient_norms.max()), float(lin.logit_gradient_norms.max())
    return not max(gradients, sizes, float(lin.gradient_jvp.abs().max())) < LARGEST


def vanishes(lin: Linearization) -> bool:
    """Return whether every per-sample gradient is zero, and none has only been rounded to zero.

    Args:
        lin: the model and batch.
    """

    def compute() -> bool:
        r = lin.logit_gradients.flatten(1)
        scaled = r / power_of_two(r, 1)[:, None]
        # No two alike, nor simple fractions: gradients of samples that repeat would cancel.
        weights = torch.linspace(-1.0, 0.0, lin.num_samples).exp().to(r)
        pulled = lin.vjp((scaled * weights[:, None]).view(lin.logits.shape))
        return not bool(pulled.any()) and not bool(saturated(lin).any())

    return lin.shared("gradients vanish", compute)


def saturated(lin: Linearization) -> Tensor:
    """Return which samples are so fitted that r_n and S_n are zero, or have lost digits: (N,)."""
    return _beyond(lin, lin.logits, lin.targets, lin.logit_gradient_norms)


def saturated_positions(lin: Linearization) -> Tensor:
    """Return which label positions are, those without a label aside: (positions of the batch,)."""
    logits, r = (one.flatten(0, -2) for one in (lin.logits, lin.logit_gradients))
    targets = lin.targets.reshape(len(logits), *lin.targets.shape[lin.logits.dim() - 1 :])
    labelled = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    if lin.likelihood.ignores_labels:
        labelled = (targets != IGNORED_LABEL).view(len(logits), -1).any(1)
    return labelled & _beyond(lin, logits, targets, torch.linalg.vector_norm(r, torch.inf, 1))


def hidden_rows(lin: Linearization, norms: Tensor) -> Tensor:
    """Return which gradients only count as zero in a factorisation: (N,).

    Without damping a row however short asks for its own part of the right side.

    Args:
        lin: the model and batch.
        norms: of the rows as they were factorised, (N,).
    """
    return (norms == 0) & ((lin.gradient_norms > 0) | saturated(lin))


def check_range(lin: Linearization, values: Tensor, what: str) -> None:
    """Refuse what a method makes of each sample where that is beyond float64's range.

    Args:
        lin: the model and batch.
        values: of the samples, (N,).
        what: they are.

    Raises:
        EvalkitError: one is not finite.
    """
    wrong = (~values.isfinite()).nonzero().flatten()
    if len(wrong):
        n = int(wrong[0])
        raise EvalkitError(
            f"expected {what} within the range of float64, found that of sample {n} beyond it, "
            f"whose loss is {float(lin.losses[n]):.3g} ({len(wrong)} of {lin.num_samples} "
            "samples); leave such samples out, or take a method that does not weight by it, as sgd"
        )


def _uncancelled(lin: Linearization, cotangents: Tensor, norms: Tensor) -> Tensor:
    """Return |J_n^T c_kn|, of rows whose terms cancel how long these are without: (K N,).

    How long J is shows in the other rows, and in J g where all cancel alike. Weights that are no
    signs leave no sum at zero: J_n^T (w c_kn) is as long as the terms of the row are together.
    """
    flat, g = cotangents.flatten(0, 1).flatten(1), lin.gradient_norm
    sizes = torch.linalg.vector_norm(flat, dim=1)
    lengths = norms / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    longest = lengths.max()
    if g > 0:
        pushed = lin.sample_dots(lin.gradient_jvp, lin.gradient_jvp).sqrt() / g
        longest = torch.maximum(longest, pushed.max())
    cancelled = (norms > 0) & (lengths < CANCELLED * longest)
    if not cancelled.any():
        return norms
    scales = power_of_two(flat, 1)  # squares of saturated samples' would underflow
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
    inner = lin.inner_products((weights * flat / scales[:, None]).view_as(cotangents))
    terms = inner.diagonal().clamp_min(0).sqrt() * scales
    return torch.maximum(norms, terms).where(cancelled, norms)


def _beyond(lin: Linearization, logits: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
    """Return where neither the sizes of r nor the traces of S have all of their digits."""
    traces = lin.likelihood.fisher_trace(logits, targets)
    return (sizes < SMALLEST) & (traces < SMALLEST)


def _rounded(parameters: Mapping[str, Tensor], dtype: torch.dtype, unit: float) -> list[Tensor]:
    """Return by how much weights change that are rounded up or down, in their shapes.

    The rounding of a layer's products and sums is that of its weights, each changed by a few u of
    itself (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5). Up or down
    is a random sign for each index of each axis of a parameter, multiplied: millions of signs of
    their own would take longer than a product.

    Args:
        parameters: the weights, by name.
        dtype: of the changes.
        unit: u.
    """
    generator, changes = torch.Generator().manual_seed(0), []
    for value in parameters.values():
        change = torch.empty(value.shape, dtype=dtype, device=value.device)
        signs = [random_signs((size,), generator, change) for size in value.shape]
        first, *rest = [
            one.view(-1, *[1] * (value.dim() - axis - 1)) for axis, one in enumerate(signs)
        ] or [torch.ones_like(change)]
        torch.mul(value.detach(), first * unit, out=change)
        for one in rest:  # in place: fresh memory for millions of numbers takes longer
            change.mul_(one)
        changes.append(change)
    return changes

"""The slow dense float64 reference of an optimiser's step: every per-sample gradient is formed.

Nothing is shared with evalkit, nor with :mod:`tests.support.dense`: losses are torch's own, their
gradients and Hessians in the logits come from autograd, each sample's gradient from a backward of
its own. Everything is of the *mean* loss L = sum_n l'_n with l'_n = l_n / N, so that no factor N is
written anywhere: it is inside of the derivatives of l'_n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def categorical(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of one sample, summed over its positions."""
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
    )


def bernoulli(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORED
    found = F.binary_cross_entropy_with_logits(logits, labels.where(kept, 0.0), reduction="none")
    return found.where(kept, 0.0).sum()


def gaussian(logits: Tensor, values: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(logits, values, reduction="sum")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "categorical": categorical,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
}


@dataclass(frozen=True)
class Formed:
    """The terms of the mean loss of one batch, l'_n = l_n / N.

    Attributes:
        losses: l'_n, (N,).
        rows: their gradients in the parameters, (N, P).
        residual: their gradients in the sample's own logits, (N, E).
        curvature: their Hessians there, (N, E, E).
        sampled: gradients for labels that were drawn from the model, (K N, P), of K draws.
        draws: K.
    """

    losses: Tensor
    rows: Tensor
    residual: Tensor
    curvature: Tensor
    sampled: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    draws: int = 1

    @property
    def gradient(self) -> Tensor:
        """Of the mean loss, (P,)."""
        return self.rows.sum(0)


def formed(
    logits: Tensor,
    targets: Tensor,
    parameters: Sequence[Tensor],
    likelihood: str,
    drawn: Sequence[Tensor] = (),
) -> Formed:
    """Form everything from logits that hold their graph.

    Args:
        logits: (N, ..., C).
        targets: as the loss takes them.
        parameters: the trainable ones, in the order of the flat vector.
        likelihood: a name of :data:`LOSSES`.
        drawn: targets that were drawn from the model, K of them.
    """
    count, loss = len(logits), LOSSES[likelihood]

    def terms(labels: Tensor) -> list[Tensor]:
        return [loss(z, y) / count for z, y in zip(logits, labels, strict=True)]

    def gradients(labels: Tensor) -> Tensor:
        return torch.stack([flat_gradient(term, parameters) for term in terms(labels)])

    residual, curvature = [], []
    for z, y in zip(logits.detach(), targets, strict=True):

        def term(entries: Tensor, z: Tensor = z, y: Tensor = y) -> Tensor:
            return loss(entries.view_as(z), y) / count

        entries = z.flatten()
        residual.append(torch.autograd.functional.jacobian(term, entries))
        curvature.append(torch.autograd.functional.hessian(term, entries))
    return Formed(
        losses=torch.stack(terms(targets)).detach(),
        rows=gradients(targets),
        residual=torch.stack(residual),
        curvature=torch.stack(curvature),
        sampled=torch.cat([gradients(labels) for labels in drawn]) if drawn else torch.zeros(0, 0),
        draws=max(1, len(drawn)),
    )


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """d value / d theta, (P,), parameters in order and flattened row-major."""
    found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def natural(logits: Tensor, parameters: Sequence[Tensor], given: Formed, damping: float) -> Tensor:
    """(F + lambda I)^-1 g for F = sum_n J_n^T S_n J_n of the mean loss."""
    matrix = torch.zeros(given.rows.shape[1], given.rows.shape[1]).to(given.rows)
    for z, s in zip(logits, given.curvature, strict=True):
        jacobian = torch.stack([flat_gradient(entry, parameters) for entry in z.flatten()])
        matrix += jacobian.T @ s @ jacobian
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix)).to(matrix), given.gradient)


def damped(rows: Tensor, right: Tensor, damping: float) -> Tensor:
    """G^T (G G^T + lambda I)^-1 b by the SVD of G, the pseudo-inverse without damping."""
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    kept = s > 1e-13 * s.max()
    share = torch.where(kept, s / (s.square() + damping), torch.zeros_like(s))
    return vh.T @ (share * (u.T @ right))


def ef(given: Formed, damping: float) -> Tensor:
    """Every l'_n falls at the same rate."""
    return damped(given.rows, torch.ones_like(given.losses), damping)


def ief(given: Formed, damping: float) -> Tensor:
    """l'_n falls at the rate |d l'_n / d z_n|^2."""
    return damped(given.rows, given.residual.square().sum(1), damping)


def fgn(given: Formed, damping: float) -> Tensor:
    """l'_n falls at the rate r^T S^+ r of its own gradient and Hessian in the logits."""
    inverse = torch.linalg.pinv(given.curvature, rtol=1e-12, hermitian=True)
    f = torch.einsum("ne,nef,nf->n", given.residual, inverse, given.residual)
    return damped(given.rows, f, damping)


def polyak(given: Formed, damping: float) -> Tensor:
    """l'_n falls at the rate l'_n."""
    return damped(given.rows, given.losses, damping)


def sf(given: Formed, damping: float) -> Tensor:
    """(Gs^T Gs / K + lambda I)^-1 g, both of the mean loss."""
    matrix = given.sampled.T @ given.sampled / given.draws
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix)).to(matrix), given.gradient)


DIRECTIONS: Mapping[str, Callable[[Formed, float], Tensor]] = {
    "ef": ef,
    "ief": ief,
    "fgn": fgn,
    "polyak": polyak,
    "sf": sf,
}


def flat(values: Sequence[Tensor]) -> Tensor:
    """All values as one vector, copied."""
    return torch.cat([value.detach().flatten() for value in values]).clone()


@dataclass
class Stepped:
    """What the reference's own optimiser does with directions: the formula, in three lines.

    theta <- (1 - eta w) theta - eta m with m <- mu m + d, and d / |d| in place of d if normalised.

    Args:
        learning_rates: of each parameter, one after the other as in the flat vector.
        weight_decay: w.
        momentum: mu.
        normalise: whether d is brought to length one.
    """

    learning_rates: Tensor
    weight_decay: float = 0.0
    momentum: float = 0.0
    normalise: bool = False
    buffer: Any = 0.0

    def __call__(self, theta: Tensor, direction: Tensor) -> Tensor:
        if self.normalise:
            direction = direction / direction.norm()
        self.buffer = self.momentum * self.buffer + direction
        kept = 1 - self.learning_rates * self.weight_decay
        return kept * theta - self.learning_rates * self.buffer

"""Any small model whose Jacobian float64 holds exactly, for the ball arithmetic of ``exact``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from flint import arb
from torch import Tensor

import evalkit
from tests.support import dense, exact
from tests.support.table import Batch

IGNORED = -100


def jacobian(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits (N, ..., C) and J, (N E, P), of a batch, in float64."""
    model = batch.model.double()
    logits = dense.call(model, dense.to_dtype(batch.inputs, torch.float64))
    parameters = [value for value in model.parameters() if value.requires_grad]
    return logits.detach(), dense.jacobian_rows(logits.flatten(), parameters)


def batch(
    logits: Tensor, jacobian: Tensor, targets: Tensor, likelihood: str, drawn: Tensor
) -> exact.Batch:
    """Return K, r, S and what else a score is made of.

    Args:
        logits: (N, ..., C).
        jacobian: J, (N E, P).
        targets: in the form of the likelihood; -100 for none.
        likelihood: name.
        drawn: targets drawn from the model; of values, how far they are from the logits.
    """
    outputs = logits.shape[-1]
    wide = exact.matrix(jacobian)
    rows = [[arb(a) for a in row] for row in logits.reshape(-1, outputs).tolist()]
    places, size = logits[0].numel() // outputs, logits[0].numel()
    labels = _labels(targets, logits, likelihood)
    residual, product = exact.LIKELIHOODS[likelihood](rows)
    known = _known(targets, logits, likelihood)

    def masked(values: exact.Rows) -> exact.Rows:
        """Entries without a label are zero; positions of a sample become one row."""
        kept = [
            [a if there else arb(0) for a, there in zip(row, seen, strict=True)]
            for row, seen in zip(values, known, strict=True)
        ]
        return [
            list(itertools.chain(*kept[n * places : (n + 1) * places])) for n in range(len(logits))
        ]

    def curvature(n: int, v: Sequence[arb]) -> list[arb]:
        parts = [product(n * places + t, v[t * outputs : (t + 1) * outputs]) for t in range(places)]
        seen = itertools.chain(*known[n * places : (n + 1) * places])
        return [
            a if there else arb(0) for a, there in zip(itertools.chain(*parts), seen, strict=True)
        ]

    r = masked(residual(labels))
    if likelihood == "gaussian":
        sampled = [[-a for a in row] for row in exact.rows(drawn.reshape(len(logits), -1))]
    else:
        sampled = masked(residual(_labels(drawn, logits, likelihood)))
    assert len(r[0]) == size
    terms = [
        TERMS[likelihood](row, label, seen)
        for row, label, seen in zip(rows, labels.tolist(), known, strict=True)
    ]
    by_sample = [terms[n * places : (n + 1) * places] for n in range(len(logits))]
    return exact.Batch(
        wide * wide.transpose(),
        r,
        sampled,
        curvature,
        losses=[sum((loss for loss, _ in one), arb(0)) for one in by_sample],
        floor_terms=[sum((term for _, term in one), arb(0)) for one in by_sample],
    )


def _labels(targets: Tensor, logits: Tensor, likelihood: str) -> Tensor:
    """Return targets by position, with some label where there is none."""
    if likelihood == "categorical":
        return targets.reshape(-1).clamp_min(0)
    values = targets.double().reshape(-1, logits.shape[-1])
    return values.where(values != IGNORED, 0.0) if likelihood == "bernoulli" else values


def _known(targets: Tensor, logits: Tensor, likelihood: str) -> list[list[bool]]:
    if likelihood == "gaussian":
        there = torch.ones(logits.shape, dtype=torch.bool)
    elif likelihood == "categorical":
        there = (targets != IGNORED).unsqueeze(-1).expand(logits.shape)
    else:
        there = (targets != IGNORED).reshape(logits.shape)
    return there.reshape(-1, logits.shape[-1]).tolist()


def _categorical(z: list[arb], label: int, known: list[bool]) -> tuple[arb, arb]:
    if not known[0]:
        return arb(0), arb(0)
    odds = sum(((a - z[label]).exp() for c, a in enumerate(z) if c != label), arb(0))
    return odds.log1p(), odds


def _bernoulli(z: list[arb], label: list[float], known: list[bool]) -> tuple[arb, arb]:
    loss, term = arb(0), arb(0)
    for a, y, there in zip(z, label, known, strict=True):
        if there:
            loss += (1 - arb(y)) * a.exp().log1p() + arb(y) * (-a).exp().log1p()
            term += ((1 - arb(y)) * (a / 2).exp() - arb(y) * (-a / 2).exp()) ** 2
    return loss, term


def _gaussian(z: list[arb], label: list[float], known: list[bool]) -> tuple[arb, arb]:
    square = sum(((a - arb(y)) ** 2 for a, y in zip(z, label, strict=True)), arb(0))
    return square / 2, square


TERMS = {"categorical": _categorical, "bernoulli": _bernoulli, "gaussian": _gaussian}
"""Loss and floor term of a position."""


def gradient_norms(one: exact.Batch) -> list[arb]:
    """Return |G_n|."""
    outputs, norms = len(one.residual[0]), []
    for n, r in enumerate(one.residual):
        block = [
            [one.kernel[n * outputs + i, n * outputs + j] for j in range(outputs)]
            for i in range(outputs)
        ]
        along = [exact.dot([row], [r]) for row in block]
        norms.append(abs(exact.dot([along], [r])).sqrt())
    return norms


def drawn(lin: evalkit.Linearization) -> Tensor:
    """Return what the sampled Fisher draws with the default seed, for :func:`batch`."""
    generator = torch.Generator().manual_seed(0)
    if lin.likelihood.name == "gaussian":
        return torch.randn(lin.logits.shape, generator=generator, dtype=torch.float64)
    return lin.likelihood.sample_targets(lin.logits, lin.targets, generator)

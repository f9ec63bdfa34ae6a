"""Faults to plant: each is written as somebody would write it by mistake.

A fault replaces a function that the engine really calls, a registered method or a part of the
likelihood, for as long as a test lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from evalkit.likelihoods import categorical
from evalkit.linearization import Linearization
from evalkit.study import batches
from evalkit.updates import Update, ngd, registry
from evalkit.updates.weighted import damped_sum


def ief_with_unsquared_norms(lin: Linearization, damping: float) -> Update:
    """iEF with s_n = |r_n| instead of |r_n|^2."""
    return damped_sum(lin, lin.gram_factor, lin.logit_gradient_norms, damping)


def ef_with_one_wrong_sign(lin: Linearization, damping: float) -> Update:
    """EF that raises the loss of the first sample instead of lowering it."""
    ones = torch.ones_like(lin.losses)
    ones[0] = -1
    return damped_sum(lin, lin.gram_factor, ones, damping)


def labels_from_the_data(
    self: categorical.Categorical, logits: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Labels for SF that are those of the data instead of draws from the model."""
    return targets


def not_centred(logits: Tensor, targets: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and u instead of p and u - E_p[u]: S = diag(p) without - p p^T."""
    return logits.double().softmax(-1), vectors.double()


def ngd_stopped_early(lin: Linearization, damping: float) -> Update:
    """NGD by CG that stops after 3 iterations."""
    return ngd.ngd(lin, damping, max_iterations=3, solver="cg")


def ief_uphill(lin: Linearization, damping: float) -> Update:
    """iEF with the sign of a step instead of a gradient's."""
    return damped_sum(lin, lin.gram_factor, -lin.logit_gradient_norms.square(), damping)


def reordered_ief(lin: Linearization, damping: float) -> Tensor:
    """iEF from per-sample gradients, one backward each, last sample first: not a fault."""
    rows = []
    for n in reversed(range(lin.num_samples)):
        only = torch.zeros_like(lin.losses)
        only[n] = 1
        rows.append(lin.vjp(lin.weighted_logit_gradients(only)).double())
    gradients = torch.stack(rows)
    s = lin.logit_gradient_norms.square().flip(0)
    ridge = damping * torch.eye(lin.num_samples, dtype=torch.float64)
    return torch.linalg.solve(gradients @ gradients.T + ridge, s) @ gradients


def samples_reversed(patch: pytest.MonkeyPatch) -> None:
    """Reverse the samples of every batch, each with the label that SF draws for it: no fault."""
    draw, sample = batches.draw_batch, categorical.Categorical.sample_targets

    def drawn(*arguments: int) -> Tensor:
        return draw(*arguments).flip(0)

    def sampled(
        self: categorical.Categorical, logits: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Tensor:
        return sample(self, logits.flip(0), targets.flip(0), generator).flip(0)

    patch.setattr(batches, "draw_batch", drawn)
    patch.setattr(categorical.Categorical, "sample_targets", sampled)


def as_method(name: str, function: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what makes a function the method of that name."""
    return lambda patch: patch.setitem(registry._METHODS._entries, name, function)


@dataclass(frozen=True)
class Fault:
    """A fault, and where the gate must see it.

    Attributes:
        plant: puts it in place.
        method: named by the row that fails.
        verdict: of that row.
    """

    plant: Callable[[pytest.MonkeyPatch], None]
    method: str
    verdict: str = "worse"


FAULTS = {
    "iEF with un-squared norms": Fault(as_method("ief", ief_with_unsquared_norms), "ief"),
    "EF with one wrong sign": Fault(as_method("ef", ef_with_one_wrong_sign), "ef"),
    "SF with labels of the data": Fault(
        lambda patch: patch.setattr(
            categorical.Categorical, "sample_targets", labels_from_the_data
        ),
        "sf",
    ),
    "Fisher without - p p^T": Fault(
        lambda patch: patch.setattr(categorical, "_centred", not_centred), "sgd", "not comparable"
    ),
    "CG stopped after 3 iterations": Fault(as_method("ngd", ngd_stopped_early), "ngd"),
    "iEF uphill": Fault(as_method("ief", ief_uphill), "ief"),
}

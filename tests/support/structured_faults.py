"""Faults to plant in methods by layers: each is wrong in the scale of a layer or of samples alone.

gamma does not feel the scale of a direction, only that of one layer against another: the faults
show in a model with positions in one layer and none in the other, each of which fits samples of its
own, so that a direction of one layer alone is far from the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalkit import curvature
from evalkit.curvature.eigen import Eigen, Sums, decomposed
from evalkit.curvature.kronecker import Kronecker
from evalkit.curvature.noise import Moments
from evalkit.curvature.pulled import Names, Pulled
from evalkit.linearization import LayerFactors

Blocks = dict[Names, Kronecker]


class Apart(nn.Module):
    """A layer at ten positions, whose outputs are summed, beside a layer at one."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.Linear(4, 3, bias=False)
        self.one = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.many(x[:, 1:]).sum(1) + self.one(x[:, 0])


def samples() -> tuple[Tensor, Tensor]:
    """Inputs of one layer each, (128, 11, 4), and labels of which every ninth is wrong."""
    generator = torch.Generator().manual_seed(0)
    inputs = 0.3 * torch.randn(128, 11, 4, generator=generator)
    inputs[::2, 0] = 0.0
    inputs[1::2, 1:] = 0.0
    labels = inputs.sum(1)[:, :3].argmax(1)
    labels[::9] = (labels[::9] + 1) % 3
    inputs[:, 0] *= 0.3
    return inputs, labels


def scaled(one: Eigen, scale: Tensor | float) -> Eigen:
    """A multiple of a factor, of each group."""
    factor = torch.as_tensor(scale).to(one.values).expand(len(one.values))
    return replace(
        one,
        values=one.values * factor[:, None],
        variances=one.variances * factor[:, None, None] ** 2,
        mean=one.mean * factor,
    )


def positions(pulled: Pulled) -> dict[Names, int]:
    """T of each layer."""
    parts = (part for part in pulled.parts() if isinstance(part.found, LayerFactors))
    return {part.names: part.found.inputs.shape[2] for part in parts}  # type: ignore[union-attr]


def positions_lost(pulled: Pulled, blocks: Blocks) -> Blocks:
    """A = sum a a^T / N instead of / (N T)."""
    count = positions(pulled)
    return {n: replace(b, inside=scaled(b.inside, count[n])) for n, b in blocks.items()}


def mean_of_gradients(pulled: Pulled, blocks: Blocks) -> Blocks:
    """The mean of d over positions instead of its sum."""
    count = positions(pulled)
    return {n: replace(b, out=scaled(b.out, count[n] ** -2)) for n, b in blocks.items()}


def trace_lost(pulled: Pulled, blocks: Blocks) -> Blocks:
    """L (x) R without / tr L, which is tr R."""
    return {n: replace(b, out=scaled(b.out, b.inside.values.sum(1))) for n, b in blocks.items()}


def inputs_reweighted(pulled: Pulled, blocks: Blocks) -> Blocks:
    """A of a_n / |r_n|, as if the inputs were reweighted with the output gradients."""
    sums: dict[Names, Sums] = {name: Sums() for name in blocks}
    weights = 1 / pulled.lin.logit_gradient_norms
    for part in pulled.parts():
        if isinstance(part.found, LayerFactors):
            a = part.found.inputs.double() * weights[part.found.samples][:, None, None]
            sums[part.names].add(a.flatten(1, 2))
    unit = pulled.lin.unit
    return {
        name: replace(
            blocks[name], inside=decomposed(one, Moments(one.count, 1.0), 1 / one.count, unit)
        )
        for name, one in sums.items()
    }


@dataclass(frozen=True)
class Fault:
    """A fault, and the method that the gate must name.

    Attributes:
        structure: whose blocks it changes.
        change: the blocks into wrong ones.
        method: whose rows fail.
    """

    structure: str
    change: Callable[[Pulled, Blocks], Blocks]
    method: str

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in place of the structure."""
        right = getattr(curvature, self.structure)

        def wrong(pulled: Pulled, *args: Any, **kwargs: Any) -> Blocks:
            return self.change(pulled, right(pulled, *args, **kwargs))

        patch.setattr(curvature, self.structure, wrong)


FAULTS = {
    "KFAC without T": Fault("kfac", positions_lost, "kfac:labels=exact"),
    "KFAC (reduce) with the mean of d": Fault(
        "kfac", mean_of_gradients, "kfac:labels=exact:sharing=reduce"
    ),
    "Shampoo without tr L": Fault("shampoo", trace_lost, "shampoo:labels=exact"),
    "ieKFAC with A reweighted": Fault("kfac", inputs_reweighted, "kfac:labels=improved"),
}

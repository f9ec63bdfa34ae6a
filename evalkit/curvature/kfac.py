"""KFAC: each layer's block as the Kronecker product of two second moments."""

from __future__ import annotations

from typing import Literal

from evalkit.curvature.eigen import Eigen, Sums, decomposed
from evalkit.curvature.kronecker import Kronecker, Style
from evalkit.curvature.noise import noises
from evalkit.curvature.pulled import Names, Pulled
from evalkit.linearization import LayerFactors

Sharing = Literal["expand", "reduce"]


def kfac(
    pulled: Pulled, sharing: Sharing = "expand", style: Style = "tikhonov"
) -> dict[Names, Kronecker]:
    """Return B (x) A for each layer.

    expand: A = (1 / (N T)) sum_nt a a^T and B = sum_knt d d^T, as if positions were independent.
    reduce: A = (1 / N) sum_n abar abar^T with abar = mean_t a, and B = sum_kn dhat dhat^T with
    dhat = sum_t d, as if every position had the same input.
    """
    spanned, moved = pulled.given.rest is None and sharing == "expand", noises(pulled)
    inside, out = input_factors(pulled, sharing), gradient_factors(pulled, sharing)
    within, unit = (spanned, sharing == "expand"), pulled.lin.unit
    return {
        names: Kronecker(out[names], inside[names], within, moved[names].gradient, unit, style)
        for names in out
    }


def input_factors(pulled: Pulled, sharing: Sharing) -> dict[Names, Eigen]:
    """Return A of each layer; as it does not depend on labels, all sources share it."""

    def compute() -> dict[Names, Eigen]:
        sums: dict[Names, Sums] = {}
        for part in pulled.parts():
            if isinstance(part.found, LayerFactors) and part.draws.start == 0:
                a = part.found.inputs.double()
                vectors = a.flatten(1, 2) if sharing == "expand" else a.mean(2)
                sums.setdefault(part.names, Sums()).add(vectors)
        moved = noises(pulled)
        return {
            names: decomposed(one, moved[names].inputs, 1 / one.count, pulled.lin.unit)
            for names, one in sums.items()
        }

    return pulled.lin.shared(("inputs", sharing), compute)


def gradient_factors(pulled: Pulled, sharing: Sharing) -> dict[Names, Eigen]:
    """Return B of each layer."""

    def compute() -> dict[Names, Eigen]:
        sums: dict[Names, Sums] = {}
        for part in pulled.parts():
            if isinstance(part.found, LayerFactors):
                d = part.found.output_gradients.double()
                vectors = d.flatten(1, 3) if sharing == "expand" else d.sum(3).flatten(1, 2)
                sums.setdefault(part.names, Sums()).add(vectors)
        moved = noises(pulled)
        return {
            names: decomposed(one, moved[names].gradients, 1.0, pulled.lin.unit)
            for names, one in sums.items()
        }

    return pulled.lin.shared(("gradients", sharing, pulled.source.key), compute)

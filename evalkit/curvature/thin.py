"""The gradient of layers whose inputs span few directions, as products of thin matrices.

With few vectors a_nt the factor of inputs is decomposed by the vectors themselves, and its basis Qa
holds all of them. Then G = sum_nt d_nt a_nt^T = (sum_nt d_nt (Qa^T a_nt)^T) Qa^T, from the output
gradients of r alone, and nothing of the size of the weight is formed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evalkit.curvature.labels import Source
from evalkit.curvature.pulled import Names, pulled
from evalkit.layers.low_rank import LowRank
from evalkit.linearization import LayerFactors, Linearization


def thin_gradients(lin: Linearization, bases: Mapping[Names, Tensor]) -> dict[Names, LowRank]:
    """Return the gradients of some layers, (groups, out, in).

    Args:
        lin: the model and batch.
        bases: orthonormal bases that hold all inputs of these layers, (groups, in, rank) float64.
    """
    if not bases:
        return {}
    lefts: dict[Names, Tensor] = {}
    for part in pulled(lin, Source("empirical")).parts():
        if part.names not in bases or not isinstance(part.found, LayerFactors):
            continue
        a, d = part.found.inputs.double().flatten(1, 2), part.found.output_gradients[:, 0]
        added = d.double().flatten(1, 2).mT @ (a @ bases[part.names])
        lefts[part.names] = lefts[part.names] + added if part.names in lefts else added
    return {names: LowRank(left, bases[names]) for names, left in lefts.items()}

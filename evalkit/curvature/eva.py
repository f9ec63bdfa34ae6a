"""Eva: each layer's block as one outer product of mean vectors (Zhang et al., ICLR 2023)."""

from __future__ import annotations

from torch import Tensor

from evalkit.curvature.eigen import Eigen, Sums, decomposed
from evalkit.curvature.kronecker import Kronecker
from evalkit.curvature.noise import Moments, noises
from evalkit.curvature.pulled import Names, Pulled
from evalkit.linearization import LayerFactors


def eva(pulled: Pulled) -> dict[Names, Kronecker]:
    """Return N (dbar dbar^T) (x) (abar abar^T), dbar = (1/N) sum_nt d, abar the mean of all a.

    With several draws their products dbar dbar^T are added.
    """
    lin, moved = pulled.lin, noises(pulled)

    def compute() -> dict[Names, tuple[Eigen, Eigen]]:
        inputs: dict[Names, Tensor] = {}
        gradients: dict[Names, Tensor] = {}
        count = dict.fromkeys(pulled.blocks, 0)
        for part in pulled.parts():
            if not isinstance(part.found, LayerFactors):
                continue
            a, d = part.found.inputs, part.found.output_gradients.double().sum((2, 3))
            if part.draws.start == 0:
                count[part.names] += a.shape[1] * a.shape[2]
                whole = a.double().sum((1, 2))[:, None]
                inputs[part.names] = inputs.get(part.names, 0.0) + whole
            if part.names not in gradients:
                shape = (d.shape[0], len(pulled.given.values), d.shape[2])
                gradients[part.names] = d.new_zeros(shape)
            gradients[part.names][:, part.draws] += d
        return {
            names: (
                _factor(one, moved[names].gradients, lin.num_samples, lin.unit, lin.num_samples),
                _factor(inputs[names], moved[names].inputs, count[names], lin.unit),
            )
            for names, one in gradients.items()
        }

    pairs = lin.shared(("eva", pulled.source.key), compute)
    return {
        names: Kronecker(out, inside, (False, False), moved[names].gradient, lin.unit)
        for names, (out, inside) in pairs.items()
    }


def _factor(sums: Tensor, noise: Moments, count: int, unit: float, scale: float = 1.0) -> Eigen:
    """Return scale x sum v v^T with v = sums / count, decomposed.

    Args:
        sums: (groups, vectors, size).
        noise: of what is summed.
        count: what the sums are divided by.
        unit: the rounding of the evaluation.
        scale: a factor.
    """
    means = sums / count
    found, moved, squares = Sums(), noise.moved / count**2, float(means.square().sum())
    found.add(means)
    moments = Moments(means.shape[1], squares, moved, moved * squares)
    return decomposed(found, moments, scale, unit)

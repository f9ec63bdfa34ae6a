"""Layer scales: whether a direction is worse for what it is within layers or for their scales.

With D = [d_1 ... d_L] the parts of d in each layer, embedded, c = (D^T F D)^+ D^T g makes D c the
direction of the smallest gamma that other scales of the layers can give. gamma(d) against
gamma(D c) parts a wrong scale between layers from a wrong direction within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.curvature import Source
from evalkit.curvature.pulled import Block, Names, pulled
from evalkit.diagnosis.matrix_errors import block_name
from evalkit.indicator import indicator
from evalkit.linearization import Linearization
from evalkit.scoring import score_update
from evalkit.scoring.metrics import efficiency
from evalkit.settings import Others
from evalkit.storage.rows import LayerScale
from evalkit.updates import Update, VectorUpdate, compute


@dataclass(frozen=True, eq=False)
class Scaled:
    """The best scales of the layers of a direction.

    Attributes:
        scales: c, (L,), NaN where a part moves no output.
        common: the best scale that all parts have in common, d^T g / d^T F d.
        gamma: of D c.
    """

    scales: Tensor
    common: float
    gamma: float


def layer_scales(
    lin: Linearization,
    methods: Sequence[str],
    dampings: Sequence[float],
    seed: int = 0,
    others: Others = "block",
) -> list[LayerScale]:
    """Return the best scale of each layer in directions of methods, and the gamma that they give.

    Layers are the blocks of structured methods: those of a structured method its own, a layer's
    weight with its bias, any other parameter by itself.

    Args:
        lin: the model and batch.
        methods: of any kind, with settings.
        dampings: at which each is taken.
        seed: for methods that draw samples.
        others: what methods by layers make of parameters without factors.
    """
    rows = []
    for name in methods:
        for damping in dampings:
            update = compute(name, lin, damping, seed, others=others)
            rows += _of_update(lin, name, damping, update)
    return rows


def best_scales(lin: Linearization, parts: Sequence[Tensor]) -> Scaled:
    """Return the best scales of parts of a direction.

    Args:
        lin: the model and batch.
        parts: d_l, (P,) each, which sum to d.
    """
    moved = [lin.jvp(part).double() for part in parts]
    turned = [lin.output_fisher(one) for one in moved]
    fisher = torch.stack(
        [torch.stack([lin.sample_dots(one, other).sum() for other in turned]) for one in moved]
    )
    slopes = torch.stack([lin.sample_dots(lin.logit_gradients, one).sum() for one in moved])
    fisher = (fisher + fisher.T) / 2
    sizes = fisher.diagonal().clamp_min(0.0).sqrt()
    some = sizes > 0
    inverse = sizes.reciprocal().where(some, 0.0)
    # Of parts of length one: scales that differ by magnitudes lose no digits to each other.
    angles = inverse[:, None] * fisher * inverse
    rounding = 64 * len(parts) * lin.unit
    solved = torch.linalg.pinv(angles, rtol=rounding, hermitian=True) @ (inverse * slopes)
    c = inverse * solved
    found = indicator(lin, torch.stack([s * one for s, one in zip(c, moved, strict=True)]).sum(0))
    square = float(fisher.sum())
    common = float(slopes.sum()) / square if square > 0 else math.nan
    return Scaled(c.where(some, math.nan), common, found.gamma)


def _of_update(lin: Linearization, name: str, damping: float, update: Update) -> list[LayerScale]:
    blocks = _blocks(lin, update)
    values = lin.by_name(update.direction(lin))
    zero = {key: torch.zeros_like(value) for key, value in values.items()}
    parts = [
        lin.flattened({key: values[key] if key in names else zero[key] for key in values})
        for names in blocks
    ]
    found, score = best_scales(lin, parts), score_update(lin, name, damping, update)
    common = found.common if found.common else math.nan
    return [
        LayerScale(
            name,
            damping,
            block_name(names),
            float(scale),
            float(scale) / common,
            score.gamma,
            found.gamma,
            score.efficiency,
            efficiency(found.gamma, lin.gamma_floor),
            score.error,
        )
        for names, scale in zip(blocks, found.scales, strict=True)
    ]


def _blocks(lin: Linearization, update: Update) -> dict[Names, Block]:
    """Return the blocks of a model in the order of its parameters."""
    own = update.matrix if isinstance(update, VectorUpdate) else None
    blocks = (pulled(lin, Source("empirical")) if own is None else own.pulled).blocks
    places = {name: place for place, name in enumerate(lin.parameters)}
    return dict(sorted(blocks.items(), key=lambda item: places[item[0][0]]))

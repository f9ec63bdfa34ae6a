"""Output gradients weighted by sample, and the gradients of parameters that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evalkit.linearization.adjoint import differentiating
from evalkit.linearization.broadcasts import Broadcast
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import OutputGradients

WeightedGradients = tuple[OutputGradients, int, Tensor]
"""Output gradients, which of their cotangents is meant, and weights on the samples, (N,)."""


def of_call(parts: Sequence[WeightedGradients], place: int) -> Tensor | None:
    """Return the gradients in the outputs of a call, of the sum of w_n c_kn over parts."""
    return weighted_sum([(one.gradients[place], k, w) for one, k, w in parts])


def gradients_of_calls(
    uses: Sequence[LayerUse],
    gradients: Callable[[int], Tensor | None],
    wanted: frozenset[str],
) -> dict[str, Tensor]:
    """Return the gradients of parameters from those in the outputs of their calls.

    Args:
        uses: the calls.
        gradients: returns those in the outputs of the call at a place.
        wanted: names of the parameters that are meant.
    """
    found: dict[str, Tensor] = {}
    for place, use in enumerate(uses):
        names = [name if name in wanted else None for name in (use.weight, use.bias)]
        if names == [None, None] or (d := gradients(place)) is None:
            continue
        asked = [name is not None for name in names]
        for name, one in zip(names, use.layer.parameter_gradients(d, *asked), strict=True):
            if name is not None and one is not None:
                found[name] = found[name] + one if name in found else one
    return found


def weighted_sum(parts: Sequence[tuple[Tensor | None, int, Tensor]]) -> Tensor | None:
    """Return the sum of w_n d_kn over parts (d, k, w), None where nothing depends on the call."""
    total: Tensor | None = None
    for d, draw, weights in parts:
        if d is None:
            return None
        one = d[draw]
        scaled = one * weights.to(one.dtype).view(-1, *[1] * (one.dim() - 1))
        total = scaled if total is None else total.add_(scaled)
    return total


def gradients_of_copies(
    recording: Recording, copies: Sequence[tuple[Broadcast, Tensor]]
) -> dict[str, Tensor]:
    """Return the gradients of parameters behind values that every sample gets alike."""
    if not copies:
        return {}
    behind = recording.broadcast_parameters
    parameters = [recording.parameters[name] for name in behind]
    values: list[Any] = [broadcast.value for broadcast, _ in copies]
    with differentiating(recording, False):
        found = torch.autograd.grad(
            values, parameters, [d for _, d in copies], retain_graph=True, allow_unused=True
        )
    pairs = zip(behind, found, strict=True)
    return {name: value.detach() for name, value in pairs if value is not None}

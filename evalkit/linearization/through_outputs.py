"""Which parameters J reaches through the outputs of their calls alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from evalkit.layers import MovedLayer
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording

Calls = dict[str, list[tuple[LayerUse, MovedLayer]]]


def through_outputs(recording: Recording, role: Literal["weight", "bias"]) -> Calls:
    """Return the calls of each parameter that is reached through its calls' outputs alone.

    Args:
        recording: the forward pass.
        role: the role of the parameters.
    """
    found: dict[str, list[tuple[LayerUse, MovedLayer | None]]] = defaultdict(list)
    for use in recording.uses:
        name = use.weight if role == "weight" else use.bias
        if name in recording.ruled:
            found[name].append((use, use.layer.through_outputs))
    return {
        name: [(use, layer) for use, layer in calls if layer is not None]
        for name, calls in found.items()
        if all(layer is not None for _, layer in calls)
    }

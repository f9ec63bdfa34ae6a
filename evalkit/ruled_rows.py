"""Per-sample gradients of the parameters whose layers have a rule, kept as the layer's factors.

With one-sample cotangents c_n, the output gradients D_n of a call come from one backward of the
whole batch; together with the call's inputs they say all about the gradients of its parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from evalkit.forward import Recording, differentiable
from evalkit.layers.rows import GradientRows
from evalkit.recorder import LayerUse


def ruled_names(recording: Recording) -> frozenset[str]:
    """Return the parameters whose calls have the samples on axis 0 and rows that can be joined."""
    samples = len(recording.logits)
    kinds: dict[str, set[Hashable]] = defaultdict(set)
    elsewhere: set[str] = set()
    for use in recording.uses:
        names = {name for name in (use.weight, use.bias) if name is not None}
        if use.layer.inputs.shape[0] != samples:
            elsewhere |= names
        for name in names:
            kinds[name].add((use.layer.kind, name == use.weight))
    single = {name for name, found in kinds.items() if len(found) == 1}
    return (recording.ruled & single) - elsewhere


def ruled_rows(recording: Recording, cotangents: Tensor) -> dict[str, GradientRows]:
    """Return the per-sample gradients of each parameter of :func:`ruled_names`.

    Args:
        recording: the forward pass.
        cotangents: c, (K, N, ..., C): K cotangents per sample, in the dtype of the logits.

    Returns:
        Rows by name, those of a bias with its weight's where they always go together. A parameter
        that the logits do not depend on is left out: its rows are zero.
    """
    names = ruled_names(recording)
    uses = [use for use in recording.uses if {use.weight, use.bias} & names]
    if not uses:
        return {}
    edges = [use.outputs for use in uses]
    with differentiable():
        pulled = [
            torch.autograd.grad(recording.logits, edges, c, retain_graph=True, allow_unused=True)
            for c in cotangents
        ]
    parts: dict[str, list[GradientRows]] = defaultdict(list)
    together = _biases_with_weights(uses, names)
    for use, gradients in zip(uses, zip(*pulled, strict=True), strict=True):
        if gradients[0] is None:  # the logits do not depend on this call
            continue
        d = torch.stack([gradient.detach() for gradient in gradients])
        if use.weight in names:
            parts[use.weight].append(use.layer.weight_rows(d, use.bias in together))
        if use.bias in names - together:
            parts[use.bias].append(use.layer.bias_rows(d))
    return {name: type(found[0]).joined(found) for name, found in parts.items()}


def _biases_with_weights(uses: Sequence[LayerUse], names: frozenset[str]) -> set[str]:
    """Return the biases that every call uses beside one and the same weight, as outer products."""
    weights: dict[str, set[str | None]] = defaultdict(set)
    biases: dict[str | None, set[str | None]] = defaultdict(set)
    for use in uses:
        matrix = use.layer.matrix_shape[0] > 0 and use.weight in names
        biases[use.weight].add(use.bias)
        if use.bias in names:
            weights[use.bias].add(use.weight if matrix else None)
    return {
        bias
        for bias, found in weights.items()
        if None not in found and len(found) == 1 and biases[next(iter(found))] == {bias}
    }

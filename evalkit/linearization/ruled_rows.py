"""Per-sample gradients of parameters that one backward of the whole batch is enough for.

With one-sample cotangents c_n, that backward brings the output gradients D_n of every call of a
layer with a rule, which together with the call's inputs say all about the gradients of its
parameters: these are kept as the layer's factors. It also brings the gradients in values that every
sample gets alike (:mod:`evalkit.linearization.broadcasts`), from where the way to the parameters is
short.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evalkit.layers.rows import Formed, GradientRows
from evalkit.linearization.adjoint import differentiating
from evalkit.linearization.broadcasts import Broadcast
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording

BROADCAST = "broadcast"
"""The kind of rows of a parameter that acts on every sample alike."""


def row_kinds(recording: Recording) -> dict[str, Hashable]:
    """Return how the per-sample gradients of each parameter are had from one backward.

    By the rule of the layer whose calls have the samples on axis 0 and rows that can be joined, or
    through a value that every sample gets alike. Parameters of neither kind are left out. Rows of
    two micro-batches go together where their kinds are equal.
    """
    samples = len(recording.logits)
    kinds: dict[str, set[Hashable]] = defaultdict(set)
    elsewhere: set[str] = set()
    for use in recording.uses:
        names = {name for name in (use.weight, use.bias) if name is not None}
        # Without samples on axis 0 (a table that is mapped as a whole) there are no rows to tell.
        if use.layer.inputs.shape[0] != samples:
            elsewhere |= names
        for name in names:
            kinds[name].add((use.layer.kind, name == use.weight))
    found: dict[str, Hashable] = dict.fromkeys(recording.broadcast_parameters, BROADCAST)
    for name in recording.ruled - elsewhere - found.keys():
        # Rows of several kinds, as of a tied embedding, cannot be joined: they are formed.
        if len(kinds[name]) == 1:
            found[name] = next(iter(kinds[name]))
    return found


@dataclass(frozen=True, eq=False)
class OutputGradients:
    """What one backward of the whole batch, for each of K cotangents, brings to the calls.

    Attributes:
        kinds: :func:`row_kinds` of the recording.
        uses: the calls whose parameters have a rule.
        gradients: D, (K, N, ...), in the outputs of each call; None where the logits do not depend
            on it.
        broadcasts: where values that every sample gets alike meet the batch.
        copies: d, (K, N, ...), in the copies of each of these; None where they do not count.
    """

    kinds: dict[str, Hashable]
    uses: tuple[LayerUse, ...]
    gradients: tuple[Tensor | None, ...]
    broadcasts: tuple[Broadcast, ...]
    copies: tuple[Tensor | None, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """The parameters with the rule of a layer."""
        return frozenset(name for name, kind in self.kinds.items() if kind != BROADCAST)

    @cached_property
    def together(self) -> frozenset[str]:
        """The biases whose rows are part of their weight's."""
        return frozenset(_biases_with_weights(self.uses, self.names))


def output_gradients(recording: Recording, cotangents: Tensor) -> OutputGradients:
    """Return the gradients in the outputs of every call of a layer with a rule.

    Args:
        recording: the forward pass.
        cotangents: c, (K, N, ..., C): K cotangents per sample, in the dtype of the logits.
    """
    kinds = row_kinds(recording)
    names = {name for name, kind in kinds.items() if kind != BROADCAST}
    uses = tuple(use for use in recording.uses if {use.weight, use.bias} & names)
    broadcasts = tuple(
        dict.fromkeys(b for found in recording.broadcast_parameters.values() for b in found)
    )
    edges = [*(use.outputs for use in uses), *(broadcast.copies for broadcast in broadcasts)]
    if not edges:
        return OutputGradients(kinds, (), (), (), ())
    with differentiating(recording, False):
        pulled = [
            torch.autograd.grad(recording.logits, edges, c, retain_graph=True, allow_unused=True)
            for c in cotangents
        ]
    gradients = tuple(
        None if parts[0] is None else _stacked([part.detach() for part in parts])
        for parts in zip(*pulled, strict=True)
    )
    count = len(uses)
    return OutputGradients(kinds, uses, gradients[:count], broadcasts, gradients[count:])


def gradient_rows(
    recording: Recording,
    cotangents: Tensor,
    positions: Callable[[LayerUse], Tensor] | None = None,
) -> dict[str, GradientRows]:
    """Return the per-sample gradients of each parameter of :func:`row_kinds`.

    Args:
        recording: the forward pass.
        cotangents: c, (K, N, ..., C): K cotangents per sample, in the dtype of the logits.
        positions: what the rows of a call share (:meth:`Layer.positions`), kept between calls or
            with inputs replaced by others; None takes rows as inner products want them.

    Returns:
        Rows by name, those of a bias with its weight's where they always go together. A parameter
        that the logits do not depend on is left out: its rows are zero.
    """
    pulled = output_gradients(recording, cotangents)
    return rows_of(recording, pulled, cotangents.shape[:2], pulled.names, positions)


def rows_of(
    recording: Recording,
    pulled: OutputGradients,
    shape: torch.Size,
    wanted: Collection[str],
    positions: Callable[[LayerUse], Tensor] | None = None,
) -> dict[str, GradientRows]:
    """Return the per-sample gradients that output gradients make, as :func:`gradient_rows`.

    Args:
        recording: the forward pass.
        pulled: its output gradients.
        shape: (K, N).
        wanted: parameters with a rule to include; those of broadcasts always are.
        positions: as in :func:`gradient_rows`.
    """
    parts: dict[str, list[GradientRows]] = defaultdict(list)
    for use, d in zip(pulled.uses, pulled.gradients, strict=True):
        if d is None:  # the logits do not depend on this call
            continue
        if use.weight is not None and use.weight in wanted:
            layer, together = use.layer, use.bias in pulled.together
            parts[use.weight].append(
                layer.weight_rows(d, together)
                if positions is None
                else layer.rows_at(positions(use), d, together)
            )
        if use.bias is not None and use.bias in wanted and use.bias not in pulled.together:
            parts[use.bias].append(use.layer.bias_rows(d))
    rows = {name: type(found[0]).joined(found) for name, found in parts.items()}
    return rows | _broadcast_rows(recording, pulled.broadcasts, pulled.copies, shape)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return parts along a new axis 0; a single one is not copied."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))


def _broadcast_rows(
    recording: Recording,
    broadcasts: Sequence[Broadcast],
    gradients: Sequence[Tensor | None],
    shape: torch.Size,
) -> dict[str, GradientRows]:
    """Return (dh / dtheta)^T d_kn for the parameters behind values that are broadcast.

    Args:
        recording: the forward pass.
        broadcasts: where they meet the batch.
        gradients: d, (K, N, ...), of each broadcast; None where the logits do not depend on it.
        shape: (K, N).
    """
    reached = [
        (broadcast, d.reshape(shape.numel(), *broadcast.shape))
        for broadcast, d in zip(broadcasts, gradients, strict=True)
        if d is not None
    ]
    names = list(recording.broadcast_parameters) if reached else []
    if not names:
        return {}
    values = [broadcast.value for broadcast, _ in reached]
    parameters = [recording.parameters[name] for name in names]
    pulled = _pulled_rows(values, parameters, [d for _, d in reached])
    return {
        name: Formed(value.detach().reshape(*shape, -1))
        for name, value in zip(names, pulled, strict=True)
        if value is not None
    }


def _pulled_rows(
    values: Sequence[Any], parameters: Sequence[Tensor], rows: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return what each row of gradients in the values pulls back to, all of them at once."""

    def pull(gradients: Sequence[Tensor], batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            values,
            parameters,
            gradients,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )

    try:
        return pull(rows, True)
    except RuntimeError:  # a backward that vmap cannot run
        each = [pull(row, False) for row in zip(*rows, strict=True)]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]


def joined_biases(recording: Recording) -> dict[str, str]:
    """Return the biases whose rows are part of their weight's, by the weight's name."""
    names = frozenset(name for name, kind in row_kinds(recording).items() if kind != BROADCAST)
    uses = [use for use in recording.uses if {use.weight, use.bias} & names]
    together = _biases_with_weights(uses, names)
    return {
        use.weight: use.bias for use in uses if use.weight and use.bias in together and use.bias
    }


def _biases_with_weights(uses: Sequence[LayerUse], names: frozenset[str]) -> set[str]:
    """Return the biases that every call uses beside one and the same weight, as outer products."""
    weights: dict[str, set[str | None]] = defaultdict(set)
    biases: dict[str | None, set[str | None]] = defaultdict(set)
    for use in uses:
        matrix = use.layer.has_matrix and use.weight in names
        biases[use.weight].add(use.bias)
        if use.bias in names:
            weights[use.bias].add(use.weight if matrix else None)
    return {
        bias
        for bias, found in weights.items()
        if None not in found and len(found) == 1 and biases[next(iter(found))] == {bias}
    }

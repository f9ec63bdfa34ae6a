"""Gram matrices by per-sample gradients: the fallback that covers every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from evalkit.evaluation.forward import differentiable
from evalkit.linearization.adjoint import differentiating
from evalkit.linearization.recording import Recording


class CannotVectorizeError(RuntimeError):
    """A model that ``torch.func.vmap`` cannot run one sample at a time."""


PerSample = Callable[[Recording, Tensor, list[str], Tensor], list[Tensor]]
"""Maps (recording, cotangents, names, rows) to the per-sample gradients of each parameter."""


def inner_products(
    left: tuple[Recording, Tensor],
    right: tuple[Recording, Tensor],
    names: list[str],
    route: PerSample,
) -> Tensor:
    """Return the inner products of per-sample gradients that are formed, over some parameters.

    Rows are taken in blocks that bound the memory; a block is formed again for each pair.

    Args:
        left: a forward pass and c, (K, N, ..., C), in the dtype of the logits.
        right: those of the columns; the same objects for a symmetric matrix, of which one half is
            computed.
        names: the parameters to include.
        route: :func:`vectorized_gradients` or :func:`defining_gradients`.

    Returns:
        (K N, K' N') float64; row k N + n belongs to cotangent k of sample n.
    """
    same = left[1] is right[1]
    size = sum(left[0].parameters[name].numel() for name in names)
    most = max(1, left[0].budget.held // size)
    rows, columns = (
        torch.arange(c.shape[:2].numel(), device=c.device).split(most) for _, c in (left, right)
    )
    blocks = [[torch.empty(0)] * len(columns) for _ in rows]
    for i, first in enumerate(rows):
        formed = route(*left, names, first)
        for j, second in enumerate(columns[i if same else 0 :], start=i if same else 0):
            other = formed if same and j == i else route(*right, names, second)
            blocks[i][j] = sum(
                (a.double() @ b.double().T for a, b in zip(formed, other, strict=True)),
                torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device),
            )
            if same and j > i:
                blocks[j][i] = blocks[i][j].T
    return torch.cat([torch.cat(row, 1) for row in blocks])


def vectorized_gradients(
    recording: Recording, cotangents: Tensor, names: list[str], rows: Tensor
) -> list[Tensor]:
    """Return J_n^T c_n by ``torch.func.vmap`` over samples run one at a time.

    It takes the model to treat each sample on its own, and fails where the model cannot be traced.

    Returns:
        For each parameter, (rows, size).

    Raises:
        CannotVectorizeError: the model's own code does not run on one traced sample.
    """
    samples = cotangents.shape[1]
    chosen = {name: recording.parameters[name].detach() for name in names}
    rest = {name: p.detach() for name, p in recording.parameters.items() if name not in chosen}

    def is_batched(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == samples

    def product(values: dict[str, Tensor], arguments: Any, cotangent: Tensor) -> Tensor:
        single = tree_map(
            lambda leaf, batched: leaf.unsqueeze(0) if batched else leaf,
            arguments,
            tree_map(is_batched, recording.inputs),
        )
        logits = recording.call({**rest, **values}, single)
        return (logits.squeeze(0) * cotangent).sum()

    # The model is given batches of one, which it is written for; only vmap knows of the others.
    axes = tree_map(lambda leaf: 0 if is_batched(leaf) else None, recording.inputs)
    arguments = tree_map(
        lambda leaf: leaf[rows % samples] if is_batched(leaf) else leaf, recording.inputs
    )
    vectorized = vmap(grad(product), in_dims=(None, axes, 0), randomness="error")
    try:
        with differentiable():
            gradients = vectorized(chosen, arguments, cotangents.flatten(0, 1)[rows])
    except Exception as error:  # whatever the model's code raises
        raise CannotVectorizeError(str(error)) from error
    return [gradients[name].detach().reshape(len(rows), -1) for name in names]


def defining_gradients(
    recording: Recording, cotangents: Tensor, names: list[str], rows: Tensor
) -> list[Tensor]:
    """Return J_n^T c_n by one VJP of the whole forward per row: slow, and true by definition.

    Returns:
        For each parameter, (rows, size).

    Raises:
        EvalkitError: a backward fails.
    """
    samples = cotangents.shape[1]
    flat = cotangents.flatten(0, 1)
    parameters = [recording.parameters[name] for name in names]
    gradients = []
    for row in rows.tolist():
        cotangent = torch.zeros_like(recording.logits)
        cotangent[row % samples] = flat[row]
        with differentiating(recording, False):
            pulled = torch.autograd.grad(
                recording.logits, parameters, cotangent, retain_graph=True, materialize_grads=True
            )
        gradients.append([value.detach().flatten() for value in pulled])
    return [torch.stack(column) for column in zip(*gradients, strict=True)]

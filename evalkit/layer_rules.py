"""Layers whose part of a Gram matrix needs no per-sample gradients.

With one-sample cotangents c_n and G_n = J_n^T c_n:

- the weight of a linear layer with inputs A_n (T, in) and output gradients D_n (T, out) adds
  sum_{t,s} (A_nt . A_ms) (D_nt . D_ms) to G_n . G_m: two small products per pair of samples, or,
  when T is large, the inner products of that layer's per-sample gradients D_n^T A_n;
- its bias adds (sum_t D_nt) . (sum_s D_ms).

Inner products are taken in float64, whatever the model's dtype.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from evalkit.forward import Recording

ELEMENTS_AT_ONCE = 1 << 24
"""Float64 numbers in one intermediate array: 128 MiB."""


def linear_parameters(recording: Recording) -> list[str]:
    """Return the parameters whose every use is a linear call with the samples on axis 0."""
    samples = len(recording.logits)
    elsewhere = {
        name
        for use in recording.linear_uses
        if use.inputs.shape[0] != samples
        for name in (use.weight, use.bias)
    }
    return [name for name in recording.parameters if name in recording.linear - elsewhere]


def linear_gram(recording: Recording, cotangents: Tensor, names: list[str]) -> Tensor:
    """Return the part of the Gram matrix that weights and biases of linear layers add.

    Args:
        recording: the forward pass.
        cotangents: c, (K, N, ..., C): K cotangents per sample, in the dtype of the logits.
        names: the parameters to include, all from :func:`linear_parameters`.

    Returns:
        (K N, K N) float64; row k N + n belongs to cotangent k of sample n.
    """
    uses = [use for use in recording.linear_uses if {use.weight, use.bias} & set(names)]
    draws, samples = cotangents.shape[:2]
    gram = torch.zeros(draws * samples, draws * samples, dtype=torch.float64)
    gram = gram.to(cotangents.device)
    if not uses:
        return gram
    edges = [use.outputs for use in uses]
    pulled = [
        torch.autograd.grad(recording.logits, edges, c, retain_graph=True, allow_unused=True)
        for c in cotangents
    ]
    weights: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    biases: dict[str, list[Tensor]] = defaultdict(list)
    for use, gradients in zip(uses, zip(*pulled, strict=True), strict=True):
        if gradients[0] is None:  # the logits do not depend on this call
            continue
        d = torch.cat([gradient.detach() for gradient in gradients])
        d = d.reshape(len(d), -1, d.shape[-1])
        if use.weight in names:
            a = use.inputs.reshape(samples, -1, use.inputs.shape[-1]).repeat(draws, 1, 1)
            weights[use.weight].append((a, d))
        if use.bias in names:
            biases[use.bias].append(d.double().sum(1))
    for factors in weights.values():
        gram += _weight_gram(
            torch.cat([a for a, _ in factors], 1), torch.cat([d for _, d in factors], 1)
        )
    for sums in biases.values():
        b = sum(sums[1:], sums[0])
        gram += b @ b.T
    return gram


def _weight_gram(a: Tensor, d: Tensor) -> Tensor:
    """Return sum_{t,s} (a_nt . a_ms) (d_nt . d_ms) by the cheaper of two routes: (M, M) float64.

    Multiplications: M^2 T^2 (in + out) for pairs of positions; M T in out + M^2 in out with the
    per-sample gradients d_n^T a_n formed.
    """
    rows, positions, width = a.shape
    size = width * d.shape[-1]
    pairs = rows**2 * positions**2 * (width + d.shape[-1])
    formed = rows * positions * size + rows**2 * size
    return _gram_by_pairs(a, d) if pairs <= formed else _gram_by_gradients(a, d)


def _gram_by_pairs(a: Tensor, d: Tensor) -> Tensor:
    rows, positions, _ = a.shape
    a_all, d_all = a.double().flatten(0, 1), d.double().flatten(0, 1)
    step = max(1, ELEMENTS_AT_ONCE // (rows * positions**2))
    blocks = []
    for start in range(0, rows, step):
        here = slice(start * positions, (start + step) * positions)
        products = (a_all[here] @ a_all.T).mul_(d_all[here] @ d_all.T)
        if positions > 1:
            products = products.unflatten(0, (-1, positions)).sum(1)
            products = products.unflatten(1, (rows, positions)).sum(2)
        blocks.append(products)
    return torch.cat(blocks)


def _gram_by_gradients(a: Tensor, d: Tensor) -> Tensor:
    rows, _, width = a.shape
    a64, d64 = a.double(), d.double()
    step = max(1, ELEMENTS_AT_ONCE // (rows * width))
    gram = a64.new_zeros(rows, rows)
    for part in d64.split(step, dim=-1):
        gradients = torch.bmm(part.transpose(1, 2), a64).flatten(1)
        gram.addmm_(gradients, gradients.T)
    return gram

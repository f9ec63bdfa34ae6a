"""Structured approximations formed in full, from Jacobians and from hooks: slow and plain.

A layer is a linear or convolutional module whose inputs and output gradients make the rows of the
Jacobian; everything else is a parameter with its own block. Matrices of blocks are formed, (out in,
out in) for each group, and solved densely.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import evalkit
from tests.support.dense import Dense, call, dense, to_dtype
from tests.support.structures import STRUCTURES, solver, unchanged
from tests.support.table import Batch

LABELS = ("sampled", "exact", "empirical", "improved", "floor")


@dataclass
class Layer:
    """What a module has received and what comes back to it.

    Attributes:
        names: of the weight and the bias that is trained with it.
        a: (groups, N, T, in).
        d: (groups, K, N, T, out).
    """

    names: tuple[str, ...]
    a: Tensor
    d: Tensor

    @property
    def rows(self) -> Tensor:
        """P, (groups, K, N, out, in)."""
        return torch.einsum("gknto,gnti->gknoi", self.d, self.a)


def cotangents(
    reference: Dense, lin: evalkit.Linearization, labels: str, norm: str = "sample", draws: int = 1
) -> Tensor:
    """c, (K, N, ..., C), for a source of labels."""
    r, shape = reference.residual, reference.logits.shape
    if labels == "sampled":
        return lin.sampled_logit_gradients(0, draws).reshape(draws, *shape) / math.sqrt(draws)
    if labels == "exact":
        values, vectors = torch.linalg.eigh(reference.curvature)
        roots = vectors * values.clamp_min(0).sqrt()[:, None]
        return roots.permute(2, 0, 1).reshape(-1, *shape)
    if labels == "empirical":
        return r.reshape(1, *shape)
    if labels == "floor":
        inverse = torch.linalg.pinv(reference.curvature, rtol=1e-12, hermitian=True)
        scale = torch.einsum("ne,nef,nf->n", r, inverse, r).sqrt()[:, None]
    elif norm == "position":
        r = r.reshape(shape)
        scale = r.norm(dim=-1, keepdim=True)
    else:
        scale = r.norm(dim=1, keepdim=True)
    return torch.where(scale > 0, r / scale, torch.zeros_like(r)).reshape(1, *shape)


def layers(batch: Batch, c: Tensor) -> dict[tuple[str, ...], Layer]:
    """The linear and convolutional modules, whether or not they tell all of their weights."""
    model = copy.deepcopy(batch.model).double()
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(
                lambda module, args, output: seen.setdefault(module, []).append((args[0], output))
            )
    logits = call(model, to_dtype(batch.inputs, torch.float64))
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    found = {}
    for module, calls in seen.items():
        known = id(module.weight) in names and holders[id(module.weight)] == 1
        calls = [pair for pair in calls if pair[1].requires_grad]
        if not known or not calls:
            continue
        pulled = [
            torch.autograd.grad(
                logits, [out for _, out in calls], one, retain_graph=True, allow_unused=True
            )
            for one in c.reshape(-1, *logits.shape)
        ]
        calls = [
            (x, [torch.zeros_like(out) if d[i] is None else d[i] for d in pulled])
            for i, (x, out) in enumerate(calls)
        ]
        a = torch.cat([positions(module, x.detach()) for x, _ in calls], 2)
        d = torch.cat([torch.stack([gradients(module, one) for one in d], 1) for _, d in calls], 3)
        own = (names[id(module.weight)],)
        if module.bias is not None and id(module.bias) in names and holders[id(module.bias)] == 1:
            own = (*own, names[id(module.bias)])
            a = torch.cat([a, torch.ones_like(a[..., :1])], 3)
        found[own] = Layer(own, a, d)
    return found


def positions(module: Any, x: Tensor) -> Tensor:
    """a, (groups, N, T, in), without ones: patches as the outputs of a kernel for each entry."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, len(x), -1, x.shape[-1])
    inside = module.weight[0].numel() // module.weight.shape[1] * module.in_channels
    kernel = torch.eye(inside, dtype=x.dtype).reshape(
        inside, module.in_channels, *module.kernel_size
    )
    move = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
    patches = move[len(module.kernel_size)](
        x, kernel, None, module.stride, module.padding, module.dilation
    )
    return patches.reshape(len(x), module.groups, -1, patches[0, 0].numel()).permute(1, 0, 3, 2)


def gradients(module: Any, d: Tensor) -> Tensor:
    """d, (groups, N, T, out)."""
    if isinstance(module, nn.Linear):
        return d.reshape(1, len(d), -1, d.shape[-1])
    return d.reshape(len(d), module.groups, -1, d[0, 0].numel()).permute(1, 0, 3, 2)


class Oracle:
    """A batch with everything formed.

    Attributes:
        reference: Jacobian, gradient and output Fisher.
        lin: the linearization, for its draws alone.
        known: rows and layers of each source of cotangents that was asked for.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        double = Batch(
            copy.deepcopy(batch.model).double(),
            to_dtype(batch.inputs, torch.float64),
            to_dtype(batch.targets, torch.float64),
            batch.likelihood,
        )
        self.reference = dense(*batch)
        self.known: dict[Any, tuple[Tensor, dict[tuple[str, ...], Layer]]] = {}
        self.lin = evalkit.linearize(*double)
        sizes = {n: p for n, p in batch.model.named_parameters() if p.requires_grad}
        ends = torch.tensor([p.numel() for p in sizes.values()]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        self.places = {
            name: torch.arange(start, end).reshape(p.shape)
            for (name, p), start, end in zip(sizes.items(), starts, ends, strict=True)
        }

    def matrix_places(self, layer: Layer) -> Tensor:
        """The places of a layer's matrices in a vector, (groups, out, in)."""
        groups = len(layer.a)
        weight = self.places[layer.names[0]].reshape(groups, layer.d.shape[-1], -1)
        if len(layer.names) == 1:
            return weight
        return torch.cat([weight, self.places[layer.names[1]].reshape(groups, -1, 1)], 2)

    def direction(self, structure: str, damping: float, labels: str, **settings: Any) -> Tensor:
        """d, (P,); with ``others=leave`` that of :meth:`left`."""
        if settings.get("others") == "leave":
            return self.left().direction(
                structure, damping, labels, **{**settings, "others": "block"}
            )
        own = {key: settings.pop(key) for key in ("norm", "draws") if key in settings}
        key = (labels, *own.items())
        if key not in self.known:
            c = cotangents(self.reference, self.lin, labels, **own)
            self.known[key] = self.rows(c), self.layers(c)
        blocks = self.blocks(structure, *self.known[key], **settings)
        d = torch.full_like(self.reference.gradient, torch.nan)
        for places, solve in blocks:
            d[places.flatten()] = solve(self.reference.gradient[places], damping).flatten()
        assert not d.isnan().any()
        return d

    def without_factors(self) -> set[str]:
        """The parameters that are in no layer, those that no logit depends on aside."""
        c = torch.eye(self.reference.logits[0].numel()).double()
        c = c[:, None].repeat(1, len(self.reference.logits), 1)
        c = c.reshape(len(c), *self.reference.logits.shape)
        rows, covered = self.rows(c), {name for names in self.layers(c) for name in names}
        return {
            name
            for name, places in self.places.items()
            if name not in covered and rows[:, places.flatten()].any()
        }

    def left(self) -> Oracle:
        """The same batch with the parameters without factors frozen."""
        model, names = copy.deepcopy(self.batch.model), self.without_factors()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in names)
        return Oracle(self.batch._replace(model=model))

    def rows(self, c: Tensor) -> Tensor:
        """J_n^T c_kn: (K N, P)."""
        c = c.reshape(len(c), *self.reference.residual.shape)
        return torch.einsum("nep,kne->knp", self.reference.jacobian, c).flatten(0, 1)

    def layers(self, c: Tensor) -> dict[tuple[str, ...], Layer]:
        """The layers whose factors make their rows, and with them all of their gradients."""
        rows, found = self.rows(c), {}
        for layer in layers(self.batch, c).values():
            for own in (layer, Layer(layer.names[:1], layer.a[..., :-1], layer.d)):
                if len(layer.names) == 1 and own is not layer:  # its bias acts elsewhere too
                    break
                formed = own.rows.flatten(1, 2)
                wanted = rows[:, self.matrix_places(own)].movedim(1, 0)
                if torch.allclose(formed, wanted, rtol=1e-9, atol=1e-12):
                    found[own.names] = own
                    break
        return found

    def blocks(
        self,
        structure: str,
        rows: Tensor,
        layers: dict[tuple[str, ...], Layer],
        others: str = "block",
        **settings: Any,
    ) -> list[tuple[Tensor, Callable[[Tensor, float], Tensor]]]:
        """Places, (out, in), and what is done to the gradient there."""
        found, covered = [], set()
        for names, layer in layers.items():
            covered |= set(names)
            for group, places in enumerate(self.matrix_places(layer)):
                a, d = layer.a[group], layer.d[group]
                found.append((places, STRUCTURES[structure](a, d, **settings)))
        for name, places in self.places.items():
            if name not in covered:
                own = rows[:, places.flatten()]
                same = others == "gradient"
                found.append((places, unchanged if same else solver(own.T @ own)))
        return found

"""The Jacobian of a recorded forward and its transpose, applied layer by layer.

A parameter that only ever feeds layers with a rule acts on the logits through the outputs of those
calls: a change of it moves each call's outputs, and the gradients in the outputs make its gradient
(:mod:`evalkit.layers`). So J factors as

    J v = sum over calls of B (the call's outputs, moved by v) + the other parameters' part,

B being the Jacobian of the logits in the outputs of the call. The graph of u -> B^T u is built
once; its derivative in u, applied to a change of the outputs, is one backward that multiplies no
weight gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evalkit.layers.embedding import Embedding
from evalkit.layers.linear import Linear
from evalkit.linearization.adjoint import compare, differentiating, refuse_opaque_backward
from evalkit.linearization.double_backward import Change
from evalkit.linearization.pulled import Pulled
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording


class Tangents:
    """J, J^T and J J^T of a recorded forward.

    Args:
        recording: the forward pass.

    Attributes:
        tested: a product that moves everything has passed the adjoint test.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        ruled = recording.ruled
        self._uses = [u for u in recording.uses if u.weight in ruled or u.bias in ruled]
        self._others = [name for name in recording.parameters if name not in ruled]
        self._inner_products: dict[str, Tensor] = {}
        self.tested = False

    def _pull(self, cotangents: Tensor, graph: bool) -> tuple[Tensor | None, ...]:
        """Return the gradients in the outputs of ruled calls, then in the other parameters."""
        places: list[Any] = [use.outputs for use in self._uses]
        places += [self._recording.parameters[name] for name in self._others]
        with differentiating(self._recording, graph):
            pulled = torch.autograd.grad(
                self._recording.logits,
                places,
                cotangents,
                create_graph=graph,
                retain_graph=True,
                allow_unused=True,
            )
        # The backward of scripted code may keep a graph that was not asked for.
        return pulled if graph else tuple(x if x is None else x.detach() for x in pulled)

    @cached_property
    def _graph(self) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """A random cotangent u and the graph of what it pulls back to, linear in u."""
        logits = self._recording.logits
        generator = torch.Generator(logits.device).manual_seed(0)
        # Random: what it pulls back to tells whether a product J v is right.
        u = torch.randn(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        u.requires_grad_()
        with self._recording.backward.linearizing():
            pulled = self._pull(u, graph=True)
        if any(root is not None and not root.requires_grad and root.any() for root in pulled):
            refuse_opaque_backward(self._recording)
        return u, pulled

    def pull(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        """Return J^T c times a scale: (P,). One backward.

        Weight gradients D^T A are multiplied straight into the result: fresh memory for 10 million
        numbers costs more than a matrix product, and is taken once.

        Args:
            cotangents: c, like logits and in their dtype.
            scale: a number.
        """
        parameters = self._recording.parameters
        joined = cotangents.new_empty(self._recording.num_params)
        parts = dict(zip(parameters, self.split(joined), strict=True))
        with self._recording.backward.collecting() as collected:
            pulled = self._pull(cotangents, graph=False)
        count = len(self._uses)
        ruled = self._ruled_gradients(Pulled(self._uses, pulled[:count], collected), scale, parts)
        for name, value in zip(self._others, pulled[count:], strict=True):
            if value is None:
                parts[name].zero_()
            else:
                torch.mul(value, scale, out=parts[name])
        for name in self._recording.ruled - ruled:
            parts[name].zero_()
        return joined

    def _ruled_gradients(self, pulled: Pulled, scale: Tensor, parts: dict[str, Tensor]) -> set[str]:
        """Write the gradients of ruled parameters times a scale; return whose were written."""
        weights, biases = (self._grouped(pulled.reached, role) for role in ("weight", "bias"))
        for name, indices in weights.items():
            if self._all_linear(indices):
                rows = self._rows([pulled.d[index] for index in indices]) * scale
                torch.mm(rows.T, self._input_rows(indices), out=parts[name])
            else:
                torch.mul(pulled.weight_gradient(indices), scale, out=parts[name])
        for name, indices in biases.items():
            torch.mul(pulled.bias_gradient(indices), scale, out=parts[name])
        return weights.keys() | biases.keys()

    def _all_linear(self, indices: Sequence[int]) -> bool:
        return all(isinstance(self._uses[index].layer, Linear) for index in indices)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of a vector, (P,), in the shapes of the parameters."""
        values = self._recording.parameters.values()
        parts = vector.split([value.numel() for value in values])
        return tuple(
            part if value.dim() == 1 else part.view_as(value)
            for part, value in zip(parts, values, strict=True)
        )

    def push(self, values: Sequence[Tensor]) -> Tensor:
        """Return J v for v in the shapes of the parameters: like logits."""
        by_name = dict(zip(self._recording.parameters, values, strict=True))
        ruled: dict[str | None, Tensor] = {n: by_name[n] for n in self._recording.ruled}
        changes = [(ruled.get(use.weight), ruled.get(use.bias)) for use in self._uses]
        return self._push([None] * len(changes), changes, [by_name[n] for n in self._others])

    def _push(
        self,
        moved: Sequence[Tensor | None],
        changes: Sequence[Change],
        others: Sequence[Tensor | None],
    ) -> Tensor:
        """Return what changes of the ruled calls' outputs and of parameters do.

        Args:
            moved: how far the outputs of each ruled call are moved.
            changes: of weight and bias of each ruled call, which move them further.
            others: changes of the other parameters.
        """
        handed: dict[int, Change] = {}
        roots: list[Tensor | None] = []
        for use, far, change in zip(self._uses, moved, changes, strict=True):
            if use.pushes and any(part is not None for part in change):
                handed[id(use.layer)] = change
                roots.append(far)
            else:
                roots.append(_sum(far, _moved(use, change)))
        with self._recording.backward.changing(handed):
            product = self._differentiated([*roots, *others])
        if handed:  # what feeds these layers has not changed
            rest = [
                _moved(use, handed[id(use.layer)]) if id(use.layer) in handed else None
                for use in self._uses
            ]
            product = product + self._differentiated([*rest, *[None] * len(others)])
        if not self.tested or self._recording.foreign:
            whole = [
                _sum(root, _moved(use, change)) if use.pushes else root
                for use, root, change in zip(self._uses, roots, changes, strict=True)
            ]
            self._test(product, [*whole, *others])
        return product

    def _test(self, product: Tensor, changes: Sequence[Tensor | None]) -> None:
        """Compare <J v, u> with <v, J^T u> for the u of the graph.

        Products are tested until one that moves everything has passed; all of them are where the
        model has autograd functions of its own.

        Raises:
            EvalkitError: they do not agree.
        """
        u, pulled = self._graph
        pairs = zip(pulled, changes, strict=True)
        reached = [(root, change) for root, change in pairs if root is not None]
        roots, moved = [root for root, _ in reached], [change for _, change in reached]
        test = compare([u], [product], roots, moved)
        if test.fails(self._recording.roughest):
            refuse_opaque_backward(self._recording)
        self.tested = test.complete

    def _differentiated(self, changes: Sequence[Tensor | None]) -> Tensor:
        """Return the derivative of u -> J^T u along changes of what it pulls back to."""
        u, pulled = self._graph
        pairs = [
            (root, change.to(root.dtype).expand_as(root))
            for root, change in zip(pulled, changes, strict=True)
            if root is not None and root.requires_grad and change is not None
        ]
        if not pairs:
            return torch.zeros_like(u)
        roots, cotangents = zip(*pairs, strict=True)
        with differentiating(self._recording, True):
            (product,) = torch.autograd.grad(
                roots, u, cotangents, retain_graph=True, materialize_grads=True
            )
        return product.detach()

    def kernel_product(self, cotangents: Tensor) -> Tensor:
        """Return J J^T c, without forming J^T c for linear layers where that is cheaper.

        A weight's part of J^T c is D^T A over the rows of all its calls, and moves their outputs
        by A (D^T A)^T = (A A^T) D. With fewer rows than features, as for an MLP on a batch, the
        right side takes far fewer multiplications, and A A^T is the same for every c.

        Args:
            cotangents: c, like logits and in their dtype.
        """
        with self._recording.backward.collecting() as collected:
            values = self._pull(cotangents, graph=False)
        count = len(self._uses)
        pulled = Pulled(self._uses, values[:count], collected)
        moved: list[Tensor | None] = [None] * count
        weights: list[Tensor | None] = [None] * count
        biases: list[Tensor | None] = [None] * count
        for name, indices in self._grouped(pulled.reached, "weight").items():
            if self._all_linear(indices):
                for index, part in zip(
                    indices, self._through_weight(name, indices, pulled.d), strict=True
                ):
                    moved[index] = part
            elif isinstance(self._uses[indices[0]].layer, Embedding) and len(indices) == 1:
                moved[indices[0]] = pulled.through_weight(indices[0])
            else:
                total = pulled.weight_gradient(indices)
                for index in indices:
                    weights[index] = total
        for indices in self._grouped(pulled.reached, "bias").values():
            total = pulled.bias_gradient(indices)
            for index in indices:
                biases[index] = total
        return self._push(moved, list(zip(weights, biases, strict=True)), values[count:])

    def _grouped(self, indices: Sequence[int], role: str) -> dict[str, list[int]]:
        """Return the calls that share a ruled weight or bias, by its name."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index in indices:
            name = getattr(self._uses[index], role)
            if name in self._recording.ruled:
                groups[name].append(index)
        return groups

    def _rows(self, values: Sequence[Tensor | None]) -> Tensor:
        parts = [value.reshape(-1, value.shape[-1]) for value in values if value is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _input_rows(self, indices: Sequence[int]) -> Tensor:
        return self._rows([self._uses[index].layer.inputs for index in indices])

    def _through_weight(
        self, name: str, indices: Sequence[int], d: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        """Return how far a linear weight's part of J^T c moves the outputs of its calls."""
        layers = [self._uses[index].layer for index in indices]
        a, rows = self._input_rows(indices), self._rows([d[index] for index in indices])
        count, width = a.shape
        if count * (width + rows.shape[-1]) > 2 * width * rows.shape[-1]:
            moved = a @ (a.T @ rows)
        else:
            if name not in self._inner_products:
                self._inner_products[name] = a @ a.T
            moved = self._inner_products[name] @ rows
        parts = moved.split([layer.inputs.shape[:-1].numel() for layer in layers])
        return [
            part.view(*layer.inputs.shape[:-1], -1)
            for part, layer in zip(parts, layers, strict=True)
        ]


def _moved(use: LayerUse, change: Change) -> Tensor | None:
    """Return how far a change of weight and bias moves the outputs of a call."""
    return None if change[0] is None and change[1] is None else use.layer.moved(*change)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other

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

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evalkit.layers import MovedLayer, weight_calls
from evalkit.layers.base import WeightCalls
from evalkit.layers.linear import LinearCalls
from evalkit.layers.low_rank import LowRank, formed
from evalkit.linearization.adjoint import compare, differentiating, refuse_opaque_backward
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import OutputGradients
from evalkit.linearization.through_outputs import through_outputs
from evalkit.linearization.weighted_outputs import (
    WeightedGradients,
    gradients_of_calls,
    gradients_of_copies,
    of_call,
    weighted_sum,
)


class Tangents:
    """J, J^T and J J^T of a recorded forward.

    Args:
        recording: the forward pass.

    Attributes:
        tested: a product that moves everything has passed the adjoint test.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        # Apart, since a bias may be shared by other calls than its weight is.
        weights, biases = (through_outputs(recording, role) for role in ("weight", "bias"))
        named = [u for u in recording.uses if u.weight in weights or u.bias in biases]
        self._uses = [(use, layer) for use in named if (layer := use.layer.through_outputs)]
        places = {use: place for place, (use, _) in enumerate(self._uses)}
        self._weights, self._biases = (
            {name: [(places[use], layer) for use, layer in calls] for name, calls in found.items()}
            for found in (weights, biases)
        )
        self._calls = {
            name: weight_calls([layer for _, layer in calls])
            for name, calls in self._weights.items()
        }
        self._linear = {
            name: calls for name, calls in self._calls.items() if isinstance(calls, LinearCalls)
        }
        alone = [p for use, p in places.items() if use.weight not in weights]
        self._groups: list[tuple[WeightCalls | None, list[int]]] = [
            *((self._calls[name], [p for p, _ in calls]) for name, calls in self._weights.items()),
            *((None, [place]) for place in alone),
        ]
        ruled = weights.keys() | biases.keys()
        self._others = [name for name in recording.parameters if name not in ruled]
        self.tested = False

    def _pull(self, cotangents: Tensor, graph: bool) -> tuple[Tensor | None, ...]:
        """Return the gradients in the outputs of ``_uses``, then in the other parameters."""
        places: list[Any] = [use.outputs for use, _ in self._uses]
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
        pulled = self._pull(u, graph=True)
        if any(root is not None and not root.requires_grad and root.any() for root in pulled):
            refuse_opaque_backward(self._recording)
        return u, pulled

    def pull(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        """Return J^T c times a scale: (P,). One backward.

        Args:
            cotangents: c, like logits and in their dtype.
            scale: a number.
        """
        joined = cotangents.new_empty(self._recording.num_params)
        self.pull_into(
            dict(zip(self._recording.parameters, self.split(joined), strict=True)),
            cotangents,
            scale,
        )
        return joined

    def pull_into(
        self, parts: Mapping[str, Tensor], cotangents: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        """Write J^T c times a scale into parts in the shapes of the parameters, by name.

        Args:
            parts: where to write; weights of :attr:`input_rows` may be left out.
            cotangents: as for :meth:`pull`.
            scale: as for :meth:`pull`.

        Returns:
            Of each weight that is left out the rows D, (rows, out), of which D^T A is its part.
        """
        d, others = self._gradients(cotangents)
        rows = {}
        for name, calls in self._weights.items():
            own = [d[place] for place, _ in calls]
            if name in parts:
                self._calls[name].write_gradient(own, scale, parts[name])
            else:
                rows[name] = self._linear[name].output_rows(own) * scale
        for name, calls in self._biases.items():
            torch.mul(_bias_gradient(calls, d), scale, out=parts[name])
        for name, value in zip(self._others, others, strict=True):
            if value is None:
                parts[name].zero_()
            else:
                torch.mul(value, scale, out=parts[name])
        return rows

    @property
    def input_rows(self) -> dict[str, Tensor]:
        """By weight, A, (rows, in): where its part of J^T c is D^T A (:meth:`pull_into`)."""
        return {name: calls.input_rows for name, calls in self._linear.items()}

    def _gradients(self, cotangents: Tensor) -> tuple[list[Tensor], Sequence[Tensor | None]]:
        """Return the gradients in the outputs of ``_uses``, and those of the other parameters."""
        pulled = self._pull(cotangents, graph=False)
        count = len(self._uses)
        d = [
            cotangents.new_zeros(use.shape) if value is None else value
            for (use, _), value in zip(self._uses, pulled[:count], strict=True)
        ]
        return d, pulled[count:]

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of a vector, (P,), in the shapes of the parameters."""
        values = self._recording.parameters.values()
        parts = vector.split([value.numel() for value in values])
        return tuple(
            part if value.dim() == 1 else part.view_as(value)
            for part, value in zip(parts, values, strict=True)
        )

    def push(self, values: Sequence[Tensor | LowRank]) -> Tensor:
        """Return J v for v in the shapes of the parameters: like logits."""
        return self.push_parts(dict(zip(self._recording.parameters, values, strict=True)), {})

    def push_parts(
        self, parts: Mapping[str, Tensor | LowRank], moves: Mapping[str, Tensor]
    ) -> Tensor:
        """Return J v, like logits, for v of which some weights' parts are known by what they move.

        Args:
            parts: of the other parameters, in their shapes, by name.
            moves: by weight of :attr:`input_rows`, how far its part moves the outputs of its calls,
                (rows, out).
        """
        moved: list[Tensor | None] = [None] * len(self._uses)
        for name, rows in moves.items():
            places = [place for place, _ in self._weights[name]]
            for place, change in zip(places, self._linear[name].parts(rows), strict=True):
                moved[place] = change
        for place, (use, layer) in enumerate(self._uses):
            weight = parts.get(use.weight) if use.weight in self._weights else None
            bias = formed(parts[use.bias]) if use.bias in self._biases else None
            if weight is not None or bias is not None:
                own, known = layer.moved_along(weight, bias), moved[place]
                moved[place] = own if known is None else own + known
        return self._push([*moved, *(formed(parts[name]) for name in self._others)])

    def _push(self, changes: Sequence[Tensor | None]) -> Tensor:
        """Return the derivative of u -> J^T u along changes of what it pulls back to."""
        # u -> J^T u is linear: its derivative is the same at every u, so the graph of one serves.
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
        product = product.detach()
        if not self.tested or self._recording.foreign:
            self._test(product, changes)
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

    def kernel_product(self, cotangents: Tensor) -> Tensor:
        """Return J J^T c, without J^T c for layers that move their outputs without it.

        Args:
            cotangents: c, like logits and in their dtype.
        """
        d, others = self._gradients(cotangents)
        return self._through(d.__getitem__, others)

    def covered_by(self, pulled: OutputGradients) -> bool:
        """Return whether output gradients say all that there is to say about every parameter."""
        calls = {use for use, _ in self._uses}
        return pulled.kinds.keys() == self._recording.parameters.keys() and calls <= {*pulled.uses}

    def weighted_product(self, parts: Sequence[WeightedGradients]) -> Tensor:
        """Return J J^T c for c_n the sum of w_n c_kn, from the output gradients of c_kn alone.

        Args:
            parts: output gradients that cover every parameter, where samples do not influence each
                other; which of their cotangents is meant; and w, (N,) float64.
        """
        others = self._parameter_gradients(parts, frozenset(self._others))
        d = self._weighted_outputs(parts)
        return self._through(d, [others.get(name) for name in self._others])

    def _weighted_outputs(self, parts: Sequence[WeightedGradients]) -> Callable[[int], Tensor]:
        """Return what returns the gradients in the outputs at a place of ``_uses``."""
        places = {use: place for place, use in enumerate(parts[0][0].uses)}

        def d(place: int) -> Tensor:
            use = self._uses[place][0]
            found = of_call(parts, places[use])
            return self._recording.logits.new_zeros(use.shape) if found is None else found

        return d

    def weighted_rows(
        self, parts: Sequence[WeightedGradients], weights: Collection[str]
    ) -> dict[str, Tensor]:
        """Return the rows D of some weights of :attr:`input_rows`, (rows, out).

        Args:
            parts: as for :meth:`weighted_product`.
            weights: their names.
        """
        d = self._weighted_outputs(parts)
        return {
            name: self._linear[name].output_rows([d(place) for place, _ in self._weights[name]])
            for name in weights
        }

    def weighted_gradients(
        self, parts: Sequence[WeightedGradients], but: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return J^T c for c_n the sum of w_n c_kn, from the output gradients of c_kn alone.

        Args:
            parts: as for :meth:`weighted_product`.
            but: names of parameters whose gradients are not asked for.

        Returns:
            By parameter's name, in its shape; one that the logits do not depend on is left out.
        """
        wanted = frozenset(self._recording.parameters) - frozenset(but)
        return self._parameter_gradients(parts, wanted)

    def _parameter_gradients(
        self, parts: Sequence[WeightedGradients], wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return J^T c of some parameters, arguments as for :meth:`weighted_product`."""
        pulled = parts[0][0]
        copies = [
            (broadcast, total.sum(0).view(broadcast.shape))
            for place, broadcast in enumerate(pulled.broadcasts)
            if (total := weighted_sum([(one.copies[place], k, w) for one, k, w in parts]))
            is not None
        ]
        of_calls = gradients_of_calls(pulled.uses, lambda place: of_call(parts, place), wanted)
        return of_calls | gradients_of_copies(self._recording, copies)

    def _through(self, d: Callable[[int], Tensor], others: Sequence[Tensor | None]) -> Tensor:
        """Return J J^T c for what c pulled back to.

        Args:
            d: returns the gradients in the outputs at a place of ``_uses``, asked for once.
            others: the gradients of the other parameters.
        """
        moved: list[Tensor | None] = [None] * len(self._uses)
        totals: dict[str, Tensor] = {}
        for calls, places in self._groups:
            parts = [d(place) for place in places]
            if calls is not None:
                for place, part in zip(places, calls.through(parts), strict=True):
                    moved[place] = part
            for place, part in zip(places, parts, strict=True):
                use, layer = self._uses[place]
                if use.bias in self._biases:
                    total = layer.bias_gradient(part)
                    totals[use.bias] = totals[use.bias] + total if use.bias in totals else total
        for name, found in self._biases.items():
            for place, layer in found:
                by_weight, by_bias = moved[place], layer.moved(None, totals[name])
                moved[place] = by_bias if by_weight is None else by_weight.add_(by_bias)
        return self._push([*moved, *others])


def _bias_gradient(calls: Sequence[tuple[int, MovedLayer]], d: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a bias that calls share, at their places in d."""
    first, *rest = (layer.bias_gradient(d[place]) for place, layer in calls)
    return sum(rest, first)

"""What each layer's block of a Fisher matrix is made of: inputs and output gradients, or rows.

With cotangents c_kn of the logits, F = sum_kn J^T c_kn c_kn^T J, and a layer whose outputs are
W a_nt + b at positions t has rows

    P_kn = sum_t d_knt a_nt^T,  (out, in),  d_knt the gradient of c_kn . z_n in its outputs,

with a one appended to a_nt where a bias always goes with the weight. Structured approximations
(KFAC and its kin) replace F_l = sum_kn vec(P_kn) vec(P_kn)^T by something smaller that sums over
samples of a and d alone can make. Nothing is averaged here, and nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evalkit.layers.rows import GradientRows, OuterProducts
from evalkit.linearization.gram import scaled_cotangents
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.per_sample import (
    CannotVectorizeError,
    PerSample,
    defining_gradients,
    vectorized_gradients,
)
from evalkit.linearization.recorder import LayerUse
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import (
    OutputGradients,
    joined_biases,
    output_gradients,
    rows_of,
)


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """Inputs and output gradients of a layer with a weight matrix, for some samples of the batch.

    A convolution has one matrix for each of its groups, and the patches of its inputs as a; a
    layer that is used several times has the positions of all its uses.

    Attributes:
        weight: name of the weight.
        bias: name of the bias whose ones are the last column of a, None without one.
        shape: the shape of the weight.
        samples: the samples, as a slice of the batch.
        inputs: a, (groups, n, T, in), in the precision of the model.
        output_gradients: d, (groups, K, n, T, out), in the precision of the model.
    """

    weight: str
    bias: str | None
    shape: torch.Size
    samples: slice
    inputs: Tensor
    output_gradients: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the block."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def rows(self) -> Tensor:
        """P_kn = sum_t d_knt a_nt^T: (K, n, groups, out, in)."""
        return torch.einsum("gknto,gnti->kngoi", self.output_gradients, self.inputs)

    def matrix(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return values in the shapes of the parameters as the layer's matrices, as P is.

        Args:
            values: of the weight and the bias by name, such as those of ``lin.by_name(v)``.

        Returns:
            (groups, out, in), the bias as the last column where it belongs to the layer.
        """
        groups = len(self.inputs)
        matrix = values[self.weight].reshape(groups, -1, self.shape[1:].numel())
        if self.bias is None:
            return matrix
        return torch.cat([matrix, values[self.bias].view(groups, -1, 1)], 2)

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return matrices, (groups, out, in), as tensors like the parameters, by name."""
        if self.bias is None:
            return {self.weight: matrix.reshape(self.shape)}
        weight, bias = matrix[..., :-1], matrix[..., -1]
        return {self.weight: weight.reshape(self.shape), self.bias: bias.flatten()}


@dataclass(frozen=True, eq=False)
class FormedRows:
    """Per-sample gradients of a parameter that has no factors, for some samples of the batch.

    Attributes:
        name: the name of the parameter.
        samples: the samples, as a slice of the batch.
        rows: J_n^T c_kn, (K, n, size), in the precision of the model.
    """

    name: str
    samples: slice
    rows: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the block."""
        return (self.name,)


def layer_factors(
    batches: MicroBatches,
    cotangents: Tensor,
    route: PerSample | None,
    numbers: int | None = None,
) -> Iterator[LayerFactors | FormedRows]:
    """Yield the factors of every layer, and the rows of every parameter without, in parts.

    Of several micro-batches each is run once, and its parts come together.

    Args:
        batches: the forward passes.
        cotangents: c, (K, N, ..., C) float64; a backward for each of K.
        route: one of :data:`evalkit.linearization.gram.ROUTES`. But for the first, samples may
            influence each other, and inputs and output gradients do not say what their gradients
            are: all rows are formed.
        numbers: in a part, at most, which takes fewer samples to the next part; a single sample's
            are never split. None for those that the budget lets be held.
    """
    scaled, scales = scaled_cotangents(cotangents, batches.dtype)
    most = batches.budget.held if numbers is None else numbers
    scales = scales.view(scaled.shape[:2]).to(batches.dtype)
    for batch, here in zip(batches, batches.slices, strict=True):
        part = _Part(batch.recording, scaled[:, here], scales[:, here], here.start, most)
        yield from part.all_formed(route) if route is not None else part.by_rules()


def formed(
    parameters: Mapping[str, Tensor],
    cotangents: Tensor,
    parts: Iterable[LayerFactors | FormedRows],
) -> Tensor:
    """Return J_n^T c_kn, formed of all parts: (K N, P) float64; row k N + n is of cotangent k.

    Args:
        parameters: the trainable parameters by name.
        cotangents: c, (K, N, ..., C) float64.
        parts: as :func:`layer_factors` yields them.
    """
    sizes = [value.numel() for value in parameters.values()]
    rows = torch.empty(*cotangents.shape[:2], sum(sizes)).to(cotangents)
    places = dict(zip(parameters, rows.split(sizes, 2), strict=True))
    for part in parts:
        if isinstance(part, FormedRows):
            places[part.name][:, part.samples] = part.rows
            continue
        own, inside = part.rows, part.shape[1:].numel()
        places[part.weight][:, part.samples] = own[..., :inside].flatten(2)
        if part.bias is not None:
            places[part.bias][:, part.samples] = own[..., inside].flatten(2)
    return rows.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Part:
    """A micro-batch.

    Attributes:
        recording: the forward pass.
        cotangents: scaled to order one, (K, n, ..., C).
        scales: what they are multiplied by, (K, n).
        start: the first sample in the batch.
        numbers: in a part that is yielded, at most.
    """

    recording: Recording
    cotangents: Tensor
    scales: Tensor
    start: int
    numbers: int

    def by_rules(self) -> Iterator[LayerFactors | FormedRows]:
        """Yield what the rules of layers tell, and form the rest."""
        pulled = output_gradients(self.recording, self.cotangents)
        calls = matrix_calls(pulled)
        biases = joined_biases(self.recording)
        for weight, uses in calls.items():
            yield from self._of_layer(weight, biases.get(weight), uses)
        others = pulled.kinds.keys() - calls.keys() - {biases.get(weight) for weight in calls}
        rows = rows_of(self.recording, pulled, self.scales.shape, others)
        for name in self.recording.parameters:
            if name in rows:
                yield from self._of_rows(name, rows[name])
            elif name in others:  # the logits do not depend on it
                size = self.recording.parameters[name].numel()
                zero = self.scales.new_zeros(()).expand(*self.scales.shape, size)
                yield self._formed(name, slice(0, self.scales.shape[1]), zero)
        # Bare parameters, and those of layers without a rule.
        rest = [name for name in self.recording.parameters if name not in pulled.kinds]
        yield from self._by_route(rest, vectorized_gradients)

    def all_formed(self, route: PerSample) -> Iterator[FormedRows]:
        """Yield the rows of every parameter by a route."""
        yield from self._by_route(list(self.recording.parameters), route)

    def _of_layer(
        self, weight: str, bias: str | None, calls: list[tuple[LayerUse, Tensor]]
    ) -> Iterator[LayerFactors]:
        # Calls with one weight have one in and out; their positions add up, as those of one call.
        work, draws = calls[0][0].layer.work, len(self.scales)
        positions = sum(use.layer.work.positions for use, _ in calls)
        for here in self._slices(work.groups * positions * (work.inside + draws * work.outside)):
            a, d = [], []
            for use, gradients in calls:
                # The same call on fewer samples, so that a convolution makes their patches alone.
                layer = replace(use.layer, inputs=use.layer.inputs[here])
                scale = self.scales[:, here].view(draws, -1, *[1] * (gradients.dim() - 2))
                found = layer.rows_at(layer.positions(), gradients[:, here] * scale)
                assert isinstance(found, OuterProducts)
                a.append(found.a)
                d.append(found.d)
            inputs = a[0] if len(a) == 1 else torch.cat(a, 2)
            if bias is not None:
                inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:3], 1)], 3)
            yield LayerFactors(
                weight,
                bias,
                self.recording.parameters[weight].shape,
                self._in_batch(here),
                inputs,
                d[0] if len(d) == 1 else torch.cat(d, 3),
            )

    def _of_rows(self, name: str, rows: GradientRows) -> Iterator[FormedRows]:
        draws = len(self.scales)
        for here in self._slices(draws * self.recording.parameters[name].numel()):
            formed = rows.formed(here).to(self.cotangents)
            yield self._formed(name, here, formed * self.scales[:, here, None])

    def _by_route(self, names: list[str], route: PerSample) -> Iterator[FormedRows]:
        draws, samples = self.scales.shape
        sizes = [self.recording.parameters[name].numel() for name in names]
        draw = torch.arange(draws, device=self.scales.device)[:, None] * samples
        for here in self._slices(draws * sum(sizes)) if names else ():
            # Row k N + n belongs to cotangent k of sample n.
            count = torch.arange(here.start, here.stop, device=self.scales.device)
            rows = (draw + count).flatten()
            try:
                formed = route(self.recording, self.cotangents, names, rows)
            except CannotVectorizeError:
                formed = defining_gradients(self.recording, self.cotangents, names, rows)
            for name, one in zip(names, formed, strict=True):
                one = one.view(draws, len(count), -1)
                yield self._formed(name, here, one * self.scales[:, here, None])

    def _formed(self, name: str, here: slice, rows: Tensor) -> FormedRows:
        return FormedRows(name, self._in_batch(here), rows)

    def _slices(self, size: int) -> Iterator[slice]:
        """Yield slices of the samples, each of which takes so many numbers."""
        samples = self.scales.shape[1]
        step = max(1, self.numbers // max(1, size))
        for start in range(0, samples, step):
            yield slice(start, min(start + step, samples))

    def _in_batch(self, here: slice) -> slice:
        return slice(self.start + here.start, self.start + here.stop)


def matrix_calls(pulled: OutputGradients) -> dict[str, list[tuple[LayerUse, Tensor]]]:
    """Return the calls, with their output gradients, of each weight that is a matrix in all."""
    calls: dict[str, list[tuple[LayerUse, Tensor]]] = {}
    for use, d in zip(pulled.uses, pulled.gradients, strict=True):
        if use.weight in pulled.names and use.layer.has_matrix and d is not None:
            calls.setdefault(use.weight, []).append((use, d))
    return calls

"""Parameters without factors, and what a run makes of them: the option ``others``.

They are normalisations, embeddings, bare parameters, biases without their weight, and weights that
several modules share. Methods by layers give each its own block (``block``) or the gradient itself
(``gradient``); or they are frozen while the model is scored (``leave``), so that F, g and the floor
of every row, whatever its method, are of the parameters that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalkit.curvature.kronecker import Solution
from evalkit.curvature.pulled import Names, several_layers
from evalkit.errors import EvalkitError, shortened
from evalkit.evaluation.given import Inputs
from evalkit.evaluation.wrapped import evaluated_module, plain_name
from evalkit.linearization import Linearization, linearize
from evalkit.linearization.adjoint import differentiating
from evalkit.linearization.factors import matrix_calls
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import joined_biases, output_gradients
from evalkit.linearization.split import Split
from evalkit.settings import Others
from evalkit.signs import random_signs


@dataclass(frozen=True)
class Kinds:
    """The trainable parameters that the logits of a batch depend on, in the order of the model.

    Attributes:
        layers: those of layers with a weight matrix, which have factors.
        others: those without factors.
    """

    layers: tuple[str, ...]
    others: tuple[str, ...]


def kinds(lin: Linearization) -> Kinds:
    """Return which parameters have factors, from one backward: no row is formed.

    They are those of :class:`evalkit.curvature.pulled.Pulled`, where samples do not influence each
    other.
    """
    return lin.shared("kinds of parameters", lambda: _kinds(lin))


def _kinds(lin: Linearization) -> Kinds:
    apart = several_layers(lin)
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(lin.logits.shape, generator=generator, dtype=torch.float64).to(lin.logits)
    layers: set[Names] = set()
    bare: set[str] = set()
    for matrices, used in (one for part in lin.by_share(_of_share, c) for one in part):
        layers |= {names for names in matrices if not apart.intersection(names)}
        bare |= used.union(*(names for names in matrices if apart.intersection(names)))
    # Micro-batches that use a parameter in different ways leave it without factors.
    count = Counter([*bare, *(name for names in layers for name in names)])
    mixed = {name for names in layers if any(count[n] > 1 for n in names) for name in names}
    others, whole = bare | mixed, {name for names in layers for name in names}
    return Kinds(
        tuple(name for name in lin.parameters if name in whole - others),
        tuple(name for name in lin.parameters if name in others),
    )


def _of_share(batches: MicroBatches, here: slice, c: Tensor) -> list[tuple[list[Names], set[str]]]:
    """Return those of each micro-batch, for cotangents of the whole batch."""
    pairs = zip(batches, batches.slices, strict=True)
    return [_of_micro_batch(batch.recording, c[here][part]) for batch, part in pairs]


def _of_micro_batch(recording: Recording, c: Tensor) -> tuple[list[Names], set[str]]:
    """Return the parameters of layers with a weight matrix, and all others that the logits feel."""
    calls = matrix_calls(output_gradients(recording, c[None]))
    biases = joined_biases(recording)
    found: list[Names] = [
        (weight,) if biases.get(weight) is None else (weight, str(biases[weight]))
        for weight in calls
    ]
    covered = {name for names in found for name in names}
    rest = [name for name in recording.parameters if name not in covered]
    if not rest:
        return found, set()
    with differentiating(recording, False):
        gradients = torch.autograd.grad(
            recording.logits,
            [recording.parameters[name] for name in rest],
            c,
            retain_graph=True,
            allow_unused=True,
        )
    used = zip(rest, gradients, strict=True)
    return found, {name for name, value in used if value is not None and bool(value.any())}


@dataclass(frozen=True, eq=False)
class Unchanged:
    """The identity in place of a block: the direction is the gradient, whatever the damping.

    Attributes:
        gradient: the mean square move of an entry of the gradient by rounding.
    """

    gradient: float

    def rotated(self, gradient: Tensor) -> Tensor:
        """Return a gradient, (groups, out, in)."""
        return gradient

    def product(self, x: Tensor) -> Tensor:
        """Return the identity applied to matrices."""
        return x

    def solve(self, gradient: Tensor, damping: float) -> Solution:
        """Return the gradient as the solution."""
        return Solution(
            gradient,
            self.gradient * gradient.numel(),
            4 * self.gradient * float(gradient.square().sum()),
            deviation=lambda generator: (
                random_signs(gradient.shape, generator, gradient) * self.gradient**0.5
            ),
            lengths=torch.linalg.vector_norm(gradient),
        )


def check_left(lin: Linearization) -> None:
    """Refuse a linearization that still has what ``others=leave`` leaves out.

    Raises:
        EvalkitError: it has.
    """
    if found := kinds(lin).others:
        raise EvalkitError(
            f"expected a linearization without parameters that have no factors for others=leave, "
            f"found {len(found)} of them ({shortened(', '.join(found), 100)}); call "
            "requires_grad_(False) on them before you linearize, or use evalkit.score"
        )


@contextmanager
def linearized(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    likelihood: str,
    micro_batch_size: int | None,
    dtype: str | torch.dtype | None,
    others: Others,
    split: Split | None = None,
) -> Iterator[tuple[Linearization, tuple[str, ...]]]:
    """Provide a linearization, and the names of the parameters that it leaves out.

    With ``leave`` these are frozen within the block, and trainable again after it.

    Args:
        model: as the other arguments in :func:`evalkit.linearize`.
        inputs: of the batch.
        targets: of the batch.
        likelihood: what the outputs mean.
        micro_batch_size: samples that are held at a time.
        dtype: of the evaluation.
        others: what is made of parameters without factors.
        split: the processes that share the samples, if there are several.

    Raises:
        EvalkitError: nothing is left, or as :func:`evalkit.linearize`.
    """
    given = inputs, targets, likelihood, micro_batch_size, dtype
    lin = linearize(model, *given, split=split)
    if others != "leave":
        yield lin, ()
        return
    left: tuple[str, ...] = ()
    inside = evaluated_module(model)
    frozen: list[nn.Parameter] = []
    try:
        # Again, as a parameter might have factors for the sake of another that is left.
        while (found := kinds(lin)).others and found.layers:
            left += found.others
            del lin  # the graph goes before the next one is made
            for name, parameter in inside.named_parameters():
                if plain_name(name) in found.others:
                    frozen.append(parameter)
                    parameter.requires_grad_(False)
            lin = linearize(model, *given, split=split)
        if not found.layers or lin.route is not None:
            raise _nothing_left((*left, *lin.parameters))
        yield lin, left
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def no_layers() -> EvalkitError:
    """Return the error of a model that methods by layers have nothing to do with."""
    return EvalkitError(
        "expected a layer whose weight is a matrix, in a model whose samples do not influence each "
        "other, for a method by layers, found none; use one on the whole matrix, as ief"
    )


def _nothing_left(names: tuple[str, ...]) -> EvalkitError:
    return EvalkitError(
        "expected a layer whose weight is a matrix, in a model whose samples do not influence each "
        f"other, for `others=leave`, found none beside {shortened(', '.join(names), 100)}; choose "
        "`others=block`"
    )

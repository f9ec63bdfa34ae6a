"""Whether J v and J^T u belong to one Jacobian: <J v, u> = <v, J^T u>.

J v is the derivative of u -> J^T u, so a backward that torch cannot differentiate (one that is
marked ``once_differentiable``, or multiplies in a kernel without a graph) loses a part of J v
beside a residual path, and nothing else shows it: J^T u stays right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from evalkit.errors import EvalkitError, shortened
from evalkit.evaluation.failures import backward_failures
from evalkit.evaluation.forward import differentiable
from evalkit.evaluation.modules import ModuleCall, first, watched
from evalkit.linearization.graph_ends import functions_between
from evalkit.linearization.recording import Recording

MOST_AT_ONCE = 1 << 16
"""Numbers of float32 in a dot product of no more rounding than a factor of a backward has."""

CANCELLING = 100.0
"""Units of rounding of usual terms that a sum whose own terms cancel may be off by."""


@dataclass(frozen=True)
class AdjointTest:
    """One comparison of <J v, u> with <v, J^T u>.

    Attributes:
        difference: how far the two differ, relative to the size of their terms; NaN where they
            overflow.
        usual: the size that terms with usual entries of J^T u have, relative to theirs. Far above
            one where v moves what has no effect, as a bias before a normalisation: then both sides
            are what rounding left of terms that cancelled.
        complete: v moved everything that u pulls back to.
    """

    difference: float
    usual: float
    complete: bool

    def fails(self, dtype: torch.dtype) -> bool:
        """Return whether more than rounding in some precision lies between the two."""
        eps = torch.finfo(dtype).eps
        return self.difference > eps**0.5 + CANCELLING * eps * self.usual


def compare(
    u: Sequence[Tensor],
    products: Sequence[Tensor],
    pulled: Sequence[Tensor],
    v: Sequence[Tensor | None],
) -> AdjointTest:
    """Compare <J v, u> with <v, J^T u>; reads each tensor a few times, and multiplies none.

    A term is as large as its sum or as the sum of as many random numbers, whichever is more.

    Args:
        u: random, of order one.
        products: J v, like u.
        pulled: J^T u by parts.
        v: changes of the same parts, None for zero.
    """
    left = [_dot(a, b) for a, b in zip(products, u, strict=True)]
    moved = [(a, b.expand_as(a)) for a, b in zip(pulled, v, strict=True) if b is not None]
    right = [_dot(a, b) for a, b in moved]
    lengths = [_length([root.detach() for root in pulled]), _length([b for _, b in moved])]
    # All numbers are read at once, so that a GPU is waited for once.
    known = torch.stack([*(x for pair in (*left, *right) for x in pair), *lengths]).tolist()
    values = list(zip(known[:-2:2], known[1:-2:2], strict=True))
    total = sum(x for x, _ in values[: len(left)]) - sum(x for x, _ in values[len(left) :])
    size = sum(abs(x) + typical for x, typical in values[len(left) :])
    size += sum(typical for _, typical in values[: len(left)])
    usual = math.prod(known[-2:]) / max(1, sum(root.numel() for root in pulled)) ** 0.5
    complete = len(moved) == len(pulled) and all(x for x, _ in values[len(left) :])
    if not math.isfinite(total) or not math.isfinite(size):
        return AdjointTest(math.nan, math.nan, complete)
    numbers = torch.finfo(products[0].dtype)
    if size < numbers.tiny / numbers.eps:  # rounded to whole numbers of the smallest, or zero
        return AdjointTest(0.0, 0.0, complete and not size)
    return AdjointTest(abs(total) / size, usual / size, complete)


def _length(parts: Sequence[Tensor]) -> Tensor:
    """Return the norm of a vector that is given in parts."""
    norms = [torch.linalg.vector_norm(part).double() for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(()).double()


def _dot(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner product of two tensors, and how large one of random numbers would be."""
    one, other = one.detach().reshape(-1), other.detach().reshape(-1)
    norms = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    other = other.to(one.dtype)
    # A dot product of float32 loses digits with its length, and one in float64 copies its factors.
    parts = zip(one.split(MOST_AT_ONCE), other.split(MOST_AT_ONCE), strict=True)
    total = torch.stack([torch.dot(a, b) for a, b in parts]).sum(dtype=torch.float64)
    return total, norms.double() / max(1, one.numel()) ** 0.5


_ONCE = ("double backward", "differentiate twice", "is not implemented", "is not differentiable")
"""What torch says of a backward that it cannot differentiate."""


@contextmanager
def differentiating(recording: Recording, again: bool) -> Iterator[None]:
    """Run a backward, and turn what torch says of one that it cannot run into one sentence.

    Args:
        recording: the forward whose graph is run.
        again: the backward is that of a backward, or is to have a graph.

    Raises:
        EvalkitError: naming the layer where torch cannot differentiate its backward.
    """
    with differentiable(), backward_failures():
        try:
            yield
        except RuntimeError as error:
            said = shortened(str(error).split("\n")[0].rstrip("."), 200)
            known = isinstance(error, NotImplementedError) or any(w in said.lower() for w in _ONCE)
            if again and known:
                refuse_opaque_backward(recording, said)
            if "modified by an inplace operation" in said:
                raise EvalkitError(
                    "expected a forward whose backward runs, found values that were changed in "
                    "place after another operation kept them for its gradient; linearize again "
                    "where parameters have moved since, or leave out operations in place (names "
                    "that end in _, inplace=True)"
                ) from error
            raise


def refuse_opaque_backward(recording: Recording, found: str = "") -> NoReturn:
    """Name the layer whose backward torch cannot differentiate.

    Args:
        recording: the forward whose J v and J^T u do not belong together.
        found: what torch said, if anything.

    Raises:
        EvalkitError: always.
    """
    broken: list[ModuleCall] = []

    def after(call: ModuleCall) -> None:
        if not broken and not _differentiable_twice(call, recording.roughest):
            broken.append(call)

    # The forward runs once more, watched: every module's own J v and J^T u are compared, and the
    # first that do not agree name the layer.
    with differentiable(), watched(recording.model, after):
        recording.call(recording.parameters, recording.inputs)
    functions = functions_between(broken[0].outputs, broken[0].inputs) if broken else ()
    by = f" by {' and '.join(functions)}" if functions else ""
    said = f", where torch says: {found}" if found else ""
    scripted = any(isinstance(one, torch.jit.ScriptModule) for one in recording.model.modules())
    advice = (
        "pass the module that was scripted or traced, in which other operators can stand in"
        if scripted
        else "write that backward with differentiable operations (no once_differentiable, no "
        "no_grad, no kernel of its own), or replace the layer by one made of basic operations for "
        "the evaluation"
    )
    raise EvalkitError(
        "expected layers that can be differentiated twice, found a backward that torch cannot see "
        f"into in {first(broken, recording.model)}{by}{said}; {advice}"
    )


def _differentiable_twice(call: ModuleCall, roughest: torch.dtype) -> bool:
    """Return whether a module's own J v and J^T u belong together."""
    places = [x for x in (*call.inputs, *call.module.parameters()) if x.requires_grad]
    outputs = [x for x in call.outputs if x.requires_grad]
    if not places or not outputs:
        return True
    generator = torch.Generator().manual_seed(0)
    try:
        u = [torch.randn(x.shape, generator=generator).to(x).requires_grad_() for x in outputs]
        pulled = torch.autograd.grad(outputs, places, u, create_graph=True, allow_unused=True)
        reached = [x for x in pulled if x is not None]
        # Along J^T u itself, <v, J^T u> is a length: no part of it cancels another.
        v = [x.detach() / x.detach().norm().clamp_min(1e-30) for x in reached]
        live = [i for i, x in enumerate(reached) if x.requires_grad]
        # A gradient that is not zero and has no graph came from a kernel that torch cannot see.
        if not live:
            return not any(bool(x.any()) for x in reached)
        products = torch.autograd.grad(
            [reached[i] for i in live], u, [v[i] for i in live], materialize_grads=True
        )
    except RuntimeError:
        return False
    return not compare(u, products, reached, v).fails(roughest)

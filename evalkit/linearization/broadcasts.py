"""Values that every sample gets alike: prompts, position embeddings, class tokens, scales.

A value h without a sample axis meets the batch where it is broadcast along axis 0. With e_n = h the
copy of sample n, z_n depends on e_n alone, so that the per-sample gradient of a parameter behind h
is (dh / dtheta)^T d_n with d_n = J_{e,n}^T c_n: one backward of the whole batch brings every d_n,
and the way from h to theta is short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

# Calls that return copies of their operand, and calls that copy an operand on the way.
_COPYING = ("expand", "expand_as", "broadcast_to", "repeat")
_ELEMENTWISE = ("add", "sub", "mul", "div", "true_divide")
_FUNCTIONS = {
    function: name.removesuffix("_")
    for space in (torch, Tensor)
    for name in (*_COPYING, *_ELEMENTWISE, *(f"{name}_" for name in _ELEMENTWISE))
    if (function := getattr(space, name, None)) is not None
}


@dataclass(frozen=True, eq=False)
class Broadcast:
    """One place where a value meets the batch.

    Attributes:
        value: the graph edge of h.
        shape: the shape of h.
        copies: the graph edge of e, (N, ...), with as many numbers for each sample as h has.
        samples: N.
    """

    value: GradientEdge
    shape: torch.Size
    copies: GradientEdge
    samples: int


def broadcast_call(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], samples: int | None
) -> tuple[Any, tuple[Broadcast, ...]] | None:
    """Run a call with what it broadcasts over the samples made visible in the graph.

    Args:
        func: a torch function.
        args: its arguments.
        kwargs: its arguments by name.
        samples: N; None where it shows only after the forward, so that any length may be it.

    Returns:
        What the call returns and its broadcasts; None where it is no such call.
    """
    name = _FUNCTIONS.get(func)
    # With one sample, every axis of length 1 looks like the sample axis.
    if name is None or samples in (0, 1) or not args or not torch.is_grad_enabled():
        return None
    if name in _COPYING:
        return _copied(func, args, kwargs, samples)
    return _met(func, args, kwargs, samples)


def _copied(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], samples: int | None
) -> tuple[Any, tuple[Broadcast, ...]] | None:
    value = args[0]
    if not isinstance(value, Tensor) or not value.requires_grad:
        return None
    value = value.view(value.shape)  # a node of its own, for a parameter too
    output = func(value, *args[1:], **kwargs)
    # A new axis in front, or one of length 1 that grew to N, and no other that grew.
    alike = output.dim() > value.dim() or (value.dim() > 0 and value.shape[0] == 1)
    count = _samples(output.shape, samples)
    found = alike and count is not None and output.numel() == count * value.numel()
    return output, (_broadcast(value, output),) if found else ()


def _met(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], samples: int | None
) -> tuple[Any, tuple[Broadcast, ...]] | None:
    """Run an elementwise call with each operand that lacks the sample axis copied along it."""
    if len(args) < 2 or not all(isinstance(operand, Tensor) for operand in args[:2]):
        return None
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
    count = _samples(shape, samples)
    if count is None:
        return None
    operands, found = list(args[:2]), []
    for place, operand in enumerate(operands):
        padded = (*[1] * (len(shape) - operand.dim()), *operand.shape)
        if padded[0] == 1 and operand.requires_grad:
            # A view has a node of its own, which is where the short way to the parameters starts.
            value = operand.view(operand.shape)
            operands[place] = value.reshape(padded).expand(count, *padded[1:])
            found.append(_broadcast(value, operands[place]))
    # A number without axes does not decide on the precision of the result; a copy of it would.
    if not found or torch.result_type(*operands) != torch.result_type(*args[:2]):
        return None
    return func(*operands, *args[2:], **kwargs), tuple(found)


def _samples(shape: torch.Size, samples: int | None) -> int | None:
    """Return the length of axis 0 where it may be that of the samples."""
    if not shape or shape[0] < 2 or samples not in (None, shape[0]):
        return None
    return shape[0]


def _broadcast(value: Tensor, copies: Tensor) -> Broadcast:
    edges = get_gradient_edge(value), get_gradient_edge(copies)
    return Broadcast(edges[0], value.shape, edges[1], len(copies))


def broadcast_parameters(
    users: Mapping[Any, Sequence[Any]],
    accumulators: Mapping[str, Any],
    broadcasts: Sequence[Broadcast],
) -> dict[str, tuple[Broadcast, ...]]:
    """Return the parameters that reach the logits through broadcasts alone, and through which.

    Args:
        users: the users of every node in the graph of the logits.
        accumulators: the nodes that accumulate the parameters' gradients, by name.
        broadcasts: as recorded.
    """
    places: dict[Any, list[Broadcast]] = {}
    for broadcast in broadcasts:
        places.setdefault(broadcast.copies.node, []).append(broadcast)
    found = {}
    # From the parameter towards the logits: each way has to end at a place where it is broadcast.
    for name, start in accumulators.items() if broadcasts else ():
        reached: dict[Broadcast, None] = {}
        seen, pending, outside = {start}, [start], False
        while pending and not outside:
            for user in users[pending.pop()]:
                if user in places:
                    reached |= dict.fromkeys(places[user])
                # The logits themselves: this way meets the batch unseen, so the rows are not known.
                elif not users[user]:
                    outside = True
                elif user not in seen:
                    seen.add(user)
                    pending.append(user)
        if reached and not outside:
            found[name] = tuple(reached)
    return found


def of_samples(logits: Tensor, broadcasts: Sequence[Broadcast]) -> frozenset[Broadcast]:
    """Return the broadcasts whose copies along axis 0 each belong to one sample.

    An axis may be as long as the batch by chance. With the logits of half of the samples held
    fixed, one backward brings gradients of exactly zero to their copies, and to no other.

    Args:
        logits: with their graph.
        broadcasts: as recorded.
    """
    if not broadcasts:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(logits.shape, generator=generator).to(logits)
    fixed = torch.randperm(len(logits), generator=generator)[: len(logits) // 2].to(logits.device)
    cotangents[fixed] = 0
    edges = [broadcast.copies for broadcast in broadcasts]
    pulled = torch.autograd.grad(logits, edges, cotangents, retain_graph=True, allow_unused=True)
    return frozenset(
        broadcast
        for broadcast, value in zip(broadcasts, pulled, strict=True)
        if value is None or not value[fixed].any()
    )

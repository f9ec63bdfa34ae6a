"""Where the graph of the logits ends before it reaches a parameter that training would reach.

Reentrant activation checkpointing hides a part of the model in one node: the gradients of the
parameters inside come from a backward within its backward, which ``loss.backward()`` runs and
``torch.autograd.grad`` does not. An operator without a backward passes no gradient on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from evalkit.errors import EvalkitError
from evalkit.evaluation.modules import ModuleCall, described, first, watched
from evalkit.linearization.recorder import Graph

_WITHOUT_BACKWARD = "WarnNotImplemented"
_REENTRANT = "CheckpointFunction"

Call = Callable[[dict[str, Tensor]], Tensor]
"""Maps parameters by name to logits, with the modules of the model called."""


def is_foreign(node: Any) -> bool:
    """Return whether a node of a graph is an autograd function of the model's, in Python."""
    home = getattr(getattr(node, "_forward_cls", None), "__module__", "")
    return isinstance(node, BackwardCFunction) and not home.startswith("evalkit.")


def refuse_lost_gradients(
    model: nn.Module,
    graph: Graph,
    parameters: Mapping[str, Tensor],
    hidden: frozenset[str],
    call: Call,
) -> bool:
    """Refuse a graph that ends before parameters whose gradients ``loss.backward()`` finds.

    Args:
        model: whose logits they are.
        graph: the graph of the logits.
        parameters: the trainable ones, by name.
        hidden: names of those that something was done with while gradients were off.
        call: the forward, for parameters by name.

    Returns:
        Whether the graph has autograd functions of the model's own.

    Raises:
        EvalkitError: naming the module.
    """
    nodes = list(graph.accumulators_of(parameters).values())
    foreign = [node for node in graph.users if is_foreign(node)]
    ends = [node for node in graph.users if node is not None and _WITHOUT_BACKWARD in node.name()]
    if any(_leads_to(node, nodes) for node in ends):
        raise EvalkitError(
            "expected operators with a backward, found one that torch has none for in "
            f"{_where(model, parameters, call, _WITHOUT_BACKWARD)}, so that its gradients would "
            "be lost; register one (torch.library.register_autograd), or use basic operations"
        )
    reentrant = [node for node in foreign if _REENTRANT in node.name()]
    if reentrant and (hidden or any(_leads_to(node, nodes) for node in reentrant)):
        raise EvalkitError(
            "expected activation checkpointing that torch can differentiate again, found "
            f"use_reentrant=True in {_where(model, parameters, call, _REENTRANT)}, whose gradients "
            "would be lost; pass use_reentrant=False to torch.utils.checkpoint (Hugging Face: "
            "gradient_checkpointing_kwargs={'use_reentrant': False}), or switch checkpointing off"
        )
    # Gradients of its arguments an autograd function returns. What else its forward took while
    # gradients were off, it can only reach by a backward of its own.
    if foreign and hidden - _given_to(foreign, graph, parameters):
        _refuse_another_backward(model, parameters, call)
    return bool(foreign)


def refuse_without_graph(model: nn.Module, run: Callable[[], object]) -> NoReturn:
    """Run a forward whose logits have no graph again, and name the module that ends it.

    Args:
        model: whose logits they are.
        run: the forward, with gradients on.

    Raises:
        EvalkitError: always.
    """
    started: dict[str, bool] = {}
    ended: list[ModuleCall] = []

    def before(call: ModuleCall) -> None:
        started[call.name] = torch.is_grad_enabled()

    def after(call: ModuleCall) -> None:
        # The module that takes something with a graph and returns nothing with one has ended it.
        taken = (*call.inputs, *call.module.parameters())
        depends = any(value.requires_grad for value in taken)
        if started[call.name] and depends and not any(x.requires_grad for x in call.outputs):
            ended.append(call)

    with watched(model, after, before):
        run()
    raise EvalkitError(
        "expected logits with a graph that leads to the trainable parameters, found none behind "
        f"{first(ended, model)}; leave out torch.no_grad(), detach() and conversions to numbers in "
        "its forward, or set requires_grad on the parameters that its logits depend on"
    )


def _given_to(
    functions: Sequence[Any], graph: Graph, parameters: Mapping[str, Tensor]
) -> frozenset[str]:
    """Return the parameters that autograd functions take as arguments: the graph knows of them."""
    return frozenset(
        name
        for name, node in graph.accumulators_of(parameters).items()
        if any(user in functions for user in graph.users[node])
    )


def _refuse_another_backward(
    model: nn.Module, parameters: Mapping[str, Tensor], call: Call
) -> None:
    """Compare the gradients of ``loss.backward()`` with those of ``torch.autograd.grad``.

    Raises:
        EvalkitError: naming a parameter whose gradients differ.
    """
    values = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    expected: dict[str, Tensor | None] = {}

    def backward(calls: ModuleCall) -> None:
        # Within the call, while the modules hold these values: a backward may run them again.
        if calls.name or not calls.outputs or not calls.outputs[0].requires_grad:
            return
        logits = calls.outputs[0]
        u = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        found = torch.autograd.grad(
            logits, list(values.values()), u, retain_graph=True, allow_unused=True
        )
        expected.update(zip(values, found, strict=True))
        logits.backward(u)

    with watched(model, backward):
        call(values)
    for name, known in expected.items():
        grad = values[name].grad
        if grad is None or (known is not None and torch.allclose(grad, known, rtol=1e-3)):
            continue
        if known is not None or grad.any():
            raise EvalkitError(
                f"expected gradients of parameter '{name}' that torch.autograd.grad finds, found "
                f"those of loss.backward() to be others in {described('', model)}; use basic "
                "operations in place of a backward that runs a backward of its own"
            )


def _leads_to(node: Any, ends: Sequence[Any]) -> bool:
    """Return whether gradients that pass a node reach one of some nodes."""
    return any(below in ends for below in _below([node], frozenset()))


def _below(start: Sequence[Any], stop: frozenset[Any]) -> Iterator[Any]:
    """Walk a graph from some nodes towards its leaves, as far as other nodes."""
    seen, pending = set(start) | stop, [node for node in start if node not in stop]
    while pending:
        node = pending.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def nodes_between(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Iterator[Any]:
    """Walk the nodes that a module adds to a graph.

    Args:
        outputs: the outputs of the module.
        inputs: what it was called with.
    """
    start = [x.grad_fn for x in outputs if x.grad_fn is not None]
    return _below(start, frozenset(x.grad_fn for x in inputs if x.grad_fn is not None))


def functions_between(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the autograd functions that a module calls."""
    names = (
        node.name().removesuffix("Backward")
        for node in nodes_between(outputs, inputs)
        if is_foreign(node)
    )
    return tuple(dict.fromkeys(names))


def _where(model: nn.Module, parameters: Mapping[str, Tensor], call: Call, kind: str) -> str:
    """Return what a sentence calls the smallest module that makes a kind of node."""
    found: list[ModuleCall] = []

    def after(one: ModuleCall) -> None:
        if any(kind in node.name() for node in nodes_between(one.outputs, one.inputs)):
            found.append(one)

    with watched(model, after):
        call(dict(parameters))
    return first(found, model)

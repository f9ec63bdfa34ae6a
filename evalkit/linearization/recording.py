"""One forward pass of a model, recorded: logits, their graph, and what each parameter did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.determinism import (
    preserved_random_state,
    random_state,
    refuse_random_forward,
)
from evalkit.evaluation.failures import forward_failures
from evalkit.evaluation.forward import Evaluation, differentiable
from evalkit.evaluation.given import Inputs
from evalkit.layers.budget import Budget
from evalkit.linearization.broadcasts import Broadcast, broadcast_parameters, of_samples
from evalkit.linearization.graph_ends import refuse_lost_gradients, refuse_without_graph
from evalkit.linearization.recorder import (
    Graph,
    LayerUse,
    Recorder,
    graph_of,
    ruled_parameters,
)


@dataclass(frozen=True)
class Recording:
    """A forward pass that can be differentiated again and again.

    Attributes:
        logits: (N, ..., C), with the graph attached.
        parameters: the trainable parameters by name, in the order of ``named_parameters``.
        uses: the calls of layers with a rule that a trainable parameter took part in.
        ruled: names of the parameters whose every use is one of these calls.
        broadcast_candidates: where parameters that reach the logits only through values without a
            sample axis meet the batch, by name, if axis 0 is the sample axis there.
        call: maps (parameters by name, inputs) to logits: the same forward again.
        inputs: the inputs of this pass.
        model: as given.
        foreign: the graph has autograd functions of the model's own.
        roughest: the precision with the fewest digits that a result has.
        budget: how much of per-sample gradients is formed at a time.
        pass_work: multiplications of a pass through all layers with a rule, frozen ones too.
    """

    logits: Tensor
    parameters: dict[str, Tensor]
    uses: tuple[LayerUse, ...]
    ruled: frozenset[str]
    broadcast_candidates: dict[str, tuple[Broadcast, ...]]
    call: Callable[[dict[str, Tensor], Inputs], Tensor]
    inputs: Inputs
    model: nn.Module
    foreign: bool
    roughest: torch.dtype
    budget: Budget
    pass_work: int

    @property
    def num_params(self) -> int:
        """P, the number of trainable parameters."""
        return sum(value.numel() for value in self.parameters.values())

    @cached_property
    def broadcast_parameters(self) -> dict[str, tuple[Broadcast, ...]]:
        """Where the parameters that act on every sample alike meet the batch, by name.

        A parameter whose per-sample gradients take more memory than is spent at once is left out.
        """
        found = {
            name: places
            for name, places in self.broadcast_candidates.items()
            if self.parameters[name].numel() * len(self.logits) <= self.budget.held
        }
        # One backward looks at all places; a parameter counts if all of its own pass.
        chosen = dict.fromkeys(place for places in found.values() for place in places)
        with differentiable():
            alike = of_samples(self.logits, tuple(chosen))
        return {name: places for name, places in found.items() if alike.issuperset(places)}


def record(evaluated: Evaluation, inputs: Inputs, samples: int, budget: Budget) -> Recording:
    """Run the forward once and keep its graph.

    Args:
        evaluated: the model.
        inputs: what its forward takes.
        samples: N.
        budget: how much of per-sample gradients is formed at a time.

    Raises:
        EvalkitError: the forward fails or draws random numbers, or its graph hides gradients.
    """
    model, trainable, parameters = evaluated.model, evaluated.trainable, evaluated.parameters
    call, inputs = evaluated.call, evaluated.cast(inputs)
    # The evaluation keeps the parameters alive, so that an id stays that of one tensor.
    recorder = Recorder({id(value): name for name, value in parameters.items()}, samples)
    with differentiable(), preserved_random_state(), recorder:
        # Dropout and the like move it; J would be that of one draw, and each forward another model.
        state = random_state()
        with forward_failures(model, inputs):
            logits = call(parameters, inputs)
        random = any(not torch.equal(a, b) for a, b in zip(state, random_state(), strict=True))
    if random:
        refuse_random_forward(model, lambda: call(parameters, inputs))
    cast = any(parameters[name].dtype != value.dtype for name, value in trainable.items())
    if recorder.recomputed and (cast or evaluated.mode.changed):
        raise EvalkitError(
            "expected a forward that its backward does not run again, since that would be in the "
            "model's own precision, found activation checkpointing; switch it off for the "
            "evaluation, or convert the model"
        )
    if not logits.requires_grad:
        with differentiable():
            refuse_without_graph(model, lambda: call(parameters, inputs))
    graph = graph_of(logits)
    _refuse_kept_references(graph, trainable)
    with differentiable():
        foreign = refuse_lost_gradients(
            model, graph, parameters, frozenset(recorder.hidden), lambda v: call(v, inputs)
        )
    ruled = ruled_parameters(graph, parameters, recorder)
    reached = graph.accumulators_of(parameters)
    candidates = broadcast_parameters(graph.users, reached, recorder.broadcasts)
    return Recording(
        logits,
        parameters,
        tuple(recorder.uses),
        ruled,
        candidates,
        call,
        inputs,
        model,
        foreign,
        recorder.roughest or logits.dtype,
        budget,
        recorder.pass_work,
    )


def _refuse_kept_references(graph: Graph, trainable: Mapping[str, Tensor]) -> None:
    for name in graph.accumulators_of(trainable):
        raise EvalkitError(
            f"expected parameter '{name}' to be used through its module alone, found a forward "
            "that uses a reference kept elsewhere; read it from the module inside forward"
        )

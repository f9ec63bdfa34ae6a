"""A forward that the caller runs himself, once, recorded while it runs.

An optimiser is given parameters and a closure, not a model: what it sees of the forward is what
torch calls it makes. Such a forward is never run again, neither for a check nor sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.forward import differentiable
from evalkit.evaluation.given import Inputs
from evalkit.layers.budget import BUDGET, Budget
from evalkit.linearization.broadcasts import broadcast_parameters
from evalkit.linearization.graph_ends import is_foreign
from evalkit.linearization.micro_batches import MicroBatch, MicroBatches
from evalkit.linearization.recorder import Graph, Recorder, graph_of, ruled_parameters
from evalkit.linearization.recording import Recording
from evalkit.linearization.sample_axis import refuse_infinite_logits
from evalkit.linearization.tangents import Tangents

_REENTRANT = "CheckpointFunction"


@contextmanager
def recorded(parameters: Mapping[str, Tensor]) -> Iterator[Recorder]:
    """Record what is done with parameters while a caller's forward runs.

    Gradients are on, and attention is plain: fused kernels cannot be differentiated twice.
    Where torch's gradients are off, it is the caller's to decide whether to record at all.

    Args:
        parameters: those to watch, by name.
    """
    names = {id(value): name for name, value in parameters.items()}
    recorder = Recorder(names, samples=None)
    with differentiable(), recorder:
        yield recorder


class CallersForward(MicroBatches):
    """The Jacobian of a forward that has run: one micro-batch, whose graph is all there is of it.

    Args:
        recorder: of :func:`recorded`, closed.
        logits: what the forward made, with its graph, the samples on axis 0.
        parameters: as given to :func:`recorded`.
        budget: how much of per-sample gradients is formed at a time.

    Attributes:
        kinds: what the graph of the logits is made of: the names of its operations, with whether
            one takes statistics of the batch. Forwards of the same kinds treat samples alike.

    Raises:
        EvalkitError: the logits have no sample or no graph, are not finite, or their graph hides
            gradients.
    """

    def __init__(
        self,
        recorder: Recorder,
        logits: Tensor,
        parameters: Mapping[str, Tensor],
        budget: Budget = BUDGET,
    ) -> None:
        _refuse_without_graph(logits)
        graph = graph_of(logits)
        recording = _recording(recorder, logits, graph, dict(parameters), budget)
        self.kinds = frozenset(_kind(node) for node in graph.users if node is not None)
        self.budget = budget
        self.logits = logits.detach()
        self.slices = (slice(0, len(logits)),)
        self._kept = {0: MicroBatch(recording, Tangents(recording))}
        refuse_infinite_logits(self.logits)

    def runs_alone(self) -> bool:
        """Return True: no sample is run by itself, and what was recorded is checked by its sums."""
        return True

    def in_float64(self) -> NoReturn:
        """Refuse: the forward is not run again."""
        raise _ran_already("be run again in float64")

    def module_and_inputs(self) -> NoReturn:
        """Refuse: there is no model."""
        raise _ran_already("be handed on as a module and its inputs")


def _kind(node: torch.autograd.graph.Node) -> tuple[str, bool]:
    """Return the name of an operation, and whether it takes statistics of the batch."""
    return node.name(), bool(getattr(node, "_saved_training", False))


def _refuse_without_graph(logits: Tensor) -> None:
    if not len(logits):
        raise EvalkitError(
            "expected the logits of at least one sample, found none; leave out empty batches"
        )
    if not logits.requires_grad:
        raise EvalkitError(
            "expected logits with a graph, found some that depend on no trainable parameter; leave "
            "out torch.no_grad() and detach() between the parameters and the logits"
        )


def _recording(
    recorder: Recorder, logits: Tensor, graph: Graph, parameters: dict[str, Tensor], budget: Budget
) -> Recording:
    """Return what was recorded of a forward, with its logits."""
    if any(node is not None and _REENTRANT in node.name() for node in graph.users):
        raise EvalkitError(
            "expected activation checkpointing that torch can differentiate layer by layer, found "
            "use_reentrant=True, whose gradients would be lost; pass use_reentrant=False"
        )
    reached = graph.accumulators_of(parameters)
    # What is as long as another axis is no batch.
    broadcasts = [one for one in recorder.broadcasts if one.samples == len(logits)]
    return Recording(
        logits,
        parameters,
        tuple(recorder.uses),
        ruled_parameters(graph, parameters, recorder),
        broadcast_parameters(graph.users, reached, broadcasts),
        _run_again,
        (),
        nn.Module(),
        any(is_foreign(node) for node in graph.users),
        recorder.roughest or logits.dtype,
        budget,
        recorder.pass_work,
    )


def _run_again(parameters: dict[str, Tensor], inputs: Inputs) -> Tensor:
    raise _ran_already("be run again to look at it closely")


def _ran_already(what: str) -> EvalkitError:
    return EvalkitError(
        f"expected a forward that can {what}, found that of a closure, which runs once; linearize "
        "the model itself with evalkit.linearize, which says more about it"
    )

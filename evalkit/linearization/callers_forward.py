"""A forward that the caller runs himself, once, recorded while it runs.

An optimiser is given parameters and a closure, not a model: what it sees of the forward is what
torch calls it makes. Such a forward is never run again, neither for a check nor sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from torch import Tensor, nn

from evalkit.errors import EvalkitError
from evalkit.evaluation.forward import differentiable
from evalkit.evaluation.given import Inputs
from evalkit.layers.budget import BUDGET, Budget
from evalkit.linearization.graph_ends import is_foreign
from evalkit.linearization.micro_batches import MicroBatch, MicroBatches
from evalkit.linearization.recorder import Recorder, graph_of, ruled_parameters
from evalkit.linearization.recording import Recording
from evalkit.linearization.sample_axis import refuse_infinite_logits
from evalkit.linearization.tangents import Tangents

_REENTRANT = "CheckpointFunction"


@contextmanager
def recorded(parameters: Mapping[str, Tensor]) -> Iterator[Recorder]:
    """Record what is done with parameters while a caller's forward runs.

    Gradients are on, and attention is plain: fused kernels cannot be differentiated twice.

    Args:
        parameters: those to watch, by name.
    """
    # Without a number of samples, which nobody knows before the forward, no broadcast is seen.
    recorder = Recorder({id(value): name for name, value in parameters.items()}, samples=0)
    with differentiable(), recorder:
        yield recorder


class CallersForward(MicroBatches):
    """The Jacobian of a forward that has run: one micro-batch, whose graph is all there is of it.

    Args:
        recorder: of :func:`recorded`, closed.
        logits: what the forward made, with its graph.
        parameters: as given to :func:`recorded`.
        budget: how much of per-sample gradients is formed at a time.

    Raises:
        EvalkitError: the logits are no tensor with a sample axis and a graph, are not finite, or
            their graph hides gradients.
    """

    def __init__(
        self,
        recorder: Recorder,
        logits: Tensor,
        parameters: Mapping[str, Tensor],
        budget: Budget = BUDGET,
    ) -> None:
        recording = _recording(recorder, logits, dict(parameters), budget)
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


def _recording(
    recorder: Recorder, logits: Tensor, parameters: dict[str, Tensor], budget: Budget
) -> Recording:
    """Return what was recorded of a forward, with its logits."""
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        found = "a scalar" if isinstance(logits, Tensor) else type(logits).__name__
        raise EvalkitError(
            f"expected the logits of the batch, with the samples on axis 0, found {found}; return "
            "the model's outputs, not a loss"
        )
    if not logits.requires_grad:
        raise EvalkitError(
            "expected logits with a graph, found some that depend on no trainable parameter; leave "
            "out torch.no_grad() and detach() between the parameters and the logits"
        )
    graph = graph_of(logits)
    if any(node is not None and _REENTRANT in node.name() for node in graph.users):
        raise EvalkitError(
            "expected activation checkpointing that torch can differentiate layer by layer, found "
            "use_reentrant=True, whose gradients would be lost; pass use_reentrant=False"
        )
    return Recording(
        logits,
        parameters,
        tuple(recorder.uses),
        ruled_parameters(graph, parameters, recorder),
        {},
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

"""The forward of a training step as a linearization: what a step needs, and nothing run twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import range_failures
from evalkit.evaluation.outputs import logits_of
from evalkit.group import Group
from evalkit.linearization import Linearization
from evalkit.linearization.callers_forward import CallersForward, recorded
from evalkit.linearization.recorder import Recorder
from evalkit.linearization.sample_gradients import Trusted

Closure = Callable[[], tuple[Tensor, Tensor]]
"""Runs the forward and returns (logits, targets)."""


class StepError(EvalkitError):
    """A step that cannot be taken from this batch: numbers that are not finite, or no solution."""


@dataclass
class Forwards:
    """Linearizations of one forward after another of the same model.

    That per-sample gradients are what a fast route takes them for is tested at the first forward,
    which costs about two training steps; those after it that look the same are taken for alike:
    the same operations and layers, in the same mode. A single sample tells nothing of others.

    Attributes:
        likelihood: what the logits mean, by name.
        routes: the route that was found for each look of a forward.
    """

    likelihood: str
    routes: dict[Hashable, Trusted] = field(default_factory=dict)

    def of_closure(self, closure: Closure, parameters: Mapping[str, Tensor]) -> Linearization:
        """Return the linearization of the forward that a closure runs; it runs once.

        Args:
            closure: returns logits and targets.
            parameters: the trainable ones by name, in the order of the flat vector.

        Raises:
            EvalkitError: it returns something else.
            StepError: logits or losses are not finite.
        """
        with recorded(parameters) as recorder:
            returned = closure()
        if not isinstance(returned, tuple) or len(returned) != 2:
            found = "a scalar" if _is_scalar(returned) else f"the type {type(returned).__name__}"
            raise EvalkitError(
                f"expected a closure that returns a pair (logits, targets), found {found}; return "
                "the model's outputs beside the labels, and leave the loss and its backward to "
                "`step`"
            )
        return self.of_logits(recorder, *returned, parameters)

    def of_logits(
        self, recorder: Recorder, logits: Any, targets: Tensor, parameters: Mapping[str, Tensor]
    ) -> Linearization:
        """Return the linearization of a forward that was recorded, arguments and errors alike.

        Args:
            recorder: saw the forward.
            logits: what it made, with their graph: a tensor, or a model's output with them.
            targets: labels or values for the likelihood.
            parameters: as for :meth:`of_closure`.
        """
        if _is_scalar(logits):
            raise EvalkitError(
                "expected the logits of the batch, with the samples on axis 0, found a scalar; "
                "return the model's outputs, not a loss"
            )
        logits = logits_of(logits)
        if not logits.isfinite().all():
            raise StepError(
                "expected finite logits, found NaN or infinity; lower the learning rate, or set "
                "`on_failure` to 'skip'"
            )
        batches = CallersForward(recorder, logits, parameters)
        layers = tuple(type(use.layer) for use in recorder.uses)
        recording = batches[0].recording
        alike = frozenset(recording.broadcast_candidates)
        look = recording.ruled, alike, layers, batches.kinds, len(batches.logits) > 1
        meaning = likelihoods.get(self.likelihood)
        lin = Linearization(batches, meaning, targets, self.routes.get(look))
        if not lin.losses.isfinite().all():
            raise StepError(
                "expected finite losses, found NaN or infinity; lower the learning rate, or set "
                "`on_failure` to 'skip'"
            )
        if look not in self.routes:
            self.routes[look] = Trusted(lin.route)
        return lin


def _is_scalar(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and value.dim() == 0)


@contextmanager
def step_failures() -> Iterator[None]:
    """Let what a batch's numbers do not allow be a step that cannot be taken.

    Raises:
        StepError: in place of any other sentence, or of numbers that leave the range of float64.
    """
    try:
        with range_failures():
            yield
    except StepError:
        raise
    except EvalkitError as error:
        raise StepError(str(error)) from error


@contextmanager
def all_or_none(ranks: Group) -> Iterator[None]:
    """Let a step that one process cannot take be one that none of them takes.

    Raises:
        StepError: within the block, or within that of another process.
    """
    failed: StepError | None = None
    try:
        yield
    except StepError as error:
        failed = error
    others = [one for one in ranks.objects(None if failed is None else str(failed)) if one]
    if failed is not None:
        raise failed
    if others:
        raise StepError(others[0])


def mean_loss(lin: Linearization, ranks: Group) -> Tensor:
    """Return the mean loss per sample of all processes, detached: float64 where the logits are."""
    total = torch.stack([lin.losses.sum(), torch.full_like(lin.losses[0], len(lin.losses))])
    ranks.sum([total])
    return (total[0] / total[1]).to(torch.promote_types(lin.logits.dtype, torch.float32))

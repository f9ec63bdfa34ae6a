"""The preconditioned step of any other optimiser: a loss whose gradient is the direction.

EF, iEF, FGN and Polyak's step are weighted sums of per-sample gradients, so that the gradient of
sum_n w_n l_n, w held fixed, is their direction: whatever follows a backward, an optimiser with
momentum or Adam's scaling, gradient clipping, a scheduler, then works on it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.evaluation.outputs import logits_of
from evalkit.linearization.callers_forward import recorded
from evalkit.linearization.recorder import Recorder
from evalkit.next_token import warn_of_labels
from evalkit.optim.recorded import Forwards
from evalkit.optim.weights import sample_weights
from evalkit.settings import DEFAULT_DAMPING, check_damping
from evalkit.updates.targets import TARGETS


@dataclass
class _Watch:
    """A forward of the model while it runs, and what was seen of the last one.

    Attributes:
        entered: records a forward that has not ended.
        recorder: of the last one.
        inputs: of the last one, until labels have been compared with them.
        checked: they have been.
    """

    entered: AbstractContextManager[Recorder] | None = None
    recorder: Recorder | None = None
    inputs: Any = None
    checked: bool = False


class WeightedLoss:
    """A loss whose gradient is the direction of EF, iEF, FGN or Polyak's step.

    It records the forwards of the model from then on, those with gradients on. After each, it takes
    logits and targets::

        weighted = evalkit.optim.WeightedLoss(model, method="ief")
        weighted(model(inputs), targets).backward()
        optimizer.step()  # any of torch's

    In a Trainer, pass ``compute_loss_func=lambda outputs, labels, **_: weighted(outputs.logits,
    labels)``.

    Args:
        model: whose forwards are recorded.
        method: ``"ef"``, ``"ief"``, ``"fgn"`` or ``"polyak"``.
        damping: lambda >= 0, for the mean loss.
        likelihood: what the logits mean.

    Raises:
        EvalkitError: an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str = "ief",
        damping: float = DEFAULT_DAMPING,
        likelihood: str = "categorical",
    ) -> None:
        if method not in TARGETS:
            raise EvalkitError(
                f"expected a method that is weights on the samples ({', '.join(TARGETS)}), found "
                f"'{method}'; choose one of these, or an optimiser of evalkit.optim"
            )
        self.method, self.damping = method, check_damping(damping)
        self._meaning = likelihoods.get(likelihood)
        self._model, self._watch, self._forwards = model, _Watch(), Forwards(likelihood)
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            # Called where the forward fails too: a recorder that stays would see everything.
            model.register_forward_hook(self._end, always_call=True),
        ]

    def close(self) -> None:
        """Leave the model as it was before."""
        for handle in self._handles:
            handle.remove()

    def weights(self, logits: Any, targets: Tensor) -> Tensor:
        """Return w with the gradient of sum_n w_n l_n the direction for the mean loss: (N,).

        Args:
            logits: of the last forward of the model, with their graph: a tensor, or its output with
                them.
            targets: labels or values for the likelihood.

        Raises:
            EvalkitError: the model has run no forward with gradients since the last call.
            StepError: no step can be taken from this batch.
        """
        recorder, self._watch.recorder = self._watch.recorder, None
        if recorder is None:
            raise EvalkitError(
                "expected a forward of the model with gradients on before each weighted loss, "
                "found none; call the model whole, then this"
            )
        if not self._watch.checked:
            warn_of_labels(self._model, self._watch.inputs, targets)
            self._watch.checked, self._watch.inputs = True, None
        lin = self._forwards.of_logits(recorder, logits, targets, self._trainable())
        return sample_weights(lin, self.method, self.damping)

    def __call__(self, logits: Any, targets: Tensor) -> Tensor:
        """Return sum_n w_n l_n, whose gradient is the direction; errors as :meth:`weights`.

        Its value is not a loss to look at: weights of a nearly singular system have both signs.
        """
        weights, logits = self.weights(logits, targets), logits_of(logits)
        targets = self._meaning.check(logits, targets)
        losses = self._meaning.losses(logits, targets)
        return (weights.to(losses) * losses).sum()

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._watch.recorder = None
        if not torch.is_grad_enabled():  # as in validation
            return
        if not self._watch.checked:
            self._watch.inputs = dict(enumerate(inputs)) | named if named else inputs
        self._watch.entered = recorded(self._trainable())
        self._watch.recorder = self._watch.entered.__enter__()

    def _end(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._watch.entered is not None:
            self._watch.entered.__exit__(None, None, None)
            self._watch.entered = None

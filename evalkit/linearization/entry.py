"""From a model and a batch as users have them to a linearization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evalkit import likelihoods
from evalkit.evaluation.failures import forward_failures
from evalkit.evaluation.given import Inputs, check_batch, given_inputs, given_targets
from evalkit.evaluation.precision import refuse_modes
from evalkit.evaluation.wrapped import evaluated_module
from evalkit.layers.budget import BUDGET, Budget
from evalkit.linearization.linearized import Linearization
from evalkit.linearization.micro_batches import MicroBatches
from evalkit.linearization.shares import How
from evalkit.linearization.split import Given, Split
from evalkit.linearization.split_linearized import SplitBatches, SplitLinearization
from evalkit.next_token import warn_of_labels
from evalkit.settings import check_dtype


def linearize(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    likelihood: str = "categorical",
    micro_batch_size: int | None = None,
    dtype: str | torch.dtype | None = None,
    budget: Budget = BUDGET,
    split: Split | None = None,
) -> Linearization:
    """Run the forward once and return everything linear at this model and batch.

    Args:
        model: any module; its trainable parameters are those with ``requires_grad``. It is left
            as it was: mode, parameters, buffers, gradients and hooks. The linearization shares
            memory with it: linearize again after an optimiser step or another load.
        inputs: what its forward takes: a tensor, a tuple or list (positional) or a mapping
            (keyword), of tensors or arrays. Axis 0 is the sample axis.
        targets: labels or values for the likelihood; see :mod:`evalkit.likelihoods`. Position t of
            the logits is compared with position t of the targets. The loss of a causal language
            model compares it with the label at t + 1: labels as the Trainer takes them need a
            shift to the left, ``evalkit.shifted_labels(labels)``.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        micro_batch_size: run the forward on so many samples at a time, and again for every
            product: results stay the same, memory is that of a micro-batch. None keeps the graph
            of the whole batch.
        dtype: ``"float32"`` or ``"float64"``, of the whole evaluation; None keeps the model's, with
            half precision evaluated in float32.
        budget: how much of per-sample gradients is formed at a time.
        split: the processes that share the samples, in the one that leads; the others have the
            model and the whole batch too, and follow (:meth:`Split.follow`).

    Raises:
        EvalkitError: the inputs do not fit together, the forward fails or is not deterministic,
            samples have no label, the logits are not finite, or torch is in inference mode or
            under autocast.
    """
    # First of all: under inference mode or autocast nothing below would mean what it says.
    refuse_modes()
    meaning = likelihoods.get(likelihood)
    model = evaluated_module(model)
    given, targets = given_inputs(model, inputs), given_targets(targets)
    num_samples = check_batch(given, targets)
    warn_of_labels(model, given, targets)
    precision = None if (name := check_dtype(dtype)) is None else getattr(torch, name)
    if split is not None:
        split.take(Given(model, given, num_samples))
        names = frozenset(n for n, value in model.named_parameters() if value.requires_grad)
        shares = SplitBatches(split, How(names, micro_batch_size, precision, budget))
        return SplitLinearization(shares, meaning, targets)
    with forward_failures(model, given):
        batches = MicroBatches(model, given, num_samples, micro_batch_size, precision, budget)
    return Linearization(batches, meaning, targets)

"""The step that the optimizer of a training takes next, from its state, on this batch."""

from __future__ import annotations

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.likelihoods import IGNORED_LABEL
from evalkit.linearization import Linearization
from evalkit.rounding import gradient_noise
from evalkit.signs import random_signs
from evalkit.updates.optimizer_step import Shares, next_step, unwrapped
from evalkit.updates.registry import method, no_optimizer
from evalkit.updates.types import Rounding, VectorUpdate

_TINY = 1e-6  # what torch.nn.utils.clip_grad_norm_ adds to the norm


@method("optimizer")
def optimizer_step(
    lin: Linearization,
    damping: float,
    decay: bool = True,
    momentum: bool = True,
    clip: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
) -> VectorUpdate:
    """The step of the training's own optimizer: d = theta - theta' of its ``step()`` on a copy.

    The gradient is that of the *mean* loss of the batch, as training has it and as the saved
    moments are of: the sum over N samples divided by N, or by the number of labels where a sample
    has several. The damping plays no part. Parameters that the optimizer does not hold do not move.

    Args:
        lin: the model and batch.
        damping: plays no part.
        decay: false leaves weight decay out.
        momentum: false sets momentum and beta1 to 0: the step on this batch's gradient alone, with
            second moments as saved.
        clip: the largest norm of the gradient, as ``clip_grad_norm_`` takes it; 0 for no limit.
        optimizer: of the training; it is left as it is.

    Raises:
        EvalkitError: there is no optimizer, it is one of another model, or its step needs more than
            gradients.
    """
    if optimizer is None:
        raise no_optimizer("optimizer")
    if clip < 0:
        raise EvalkitError(
            f"expected a clip of at least 0, found {clip:g}; give the largest norm of the gradient "
            "in training, or 0 for no limit"
        )
    inner, names = unwrapped(optimizer), lin.batches.trainable_names()
    _check_of_model(lin, inner)
    shares, count = Shares(momentum, decay), _labels(lin)
    sizes = [value.numel() for value in lin.parameters.values()]

    def step(gradient: Tensor) -> Tensor:
        if clip:
            gradient = gradient * min(1.0, clip / (float(gradient.norm()) + _TINY))
        parts = zip(lin.parameters.items(), gradient.split(sizes), strict=True)
        given = {name: part.view_as(value) for (name, value), part in parts}
        found = next_step(inner, names, lin.parameters, given, shares)
        if not all(part.isfinite().all() for part in found.values()):
            raise EvalkitError(
                f"expected a finite step of {type(inner).__name__}, found NaN or infinity; its "
                "state or the gradient of the batch is not finite: score a checkpoint from before "
                "the training diverged"
            )
        still = {name: torch.zeros_like(part) for name, part in given.items()}
        return lin.flattened({**still, **found})

    mean = lin.gradient.double() / count
    d = step(mean)
    # How far rounding of the gradient moves d: Adam divides by second moments, which may be small.
    size = float(gradient_noise(lin).norm()) / count / lin.num_params**0.5
    signs = random_signs(mean.shape, torch.Generator().manual_seed(0), mean)
    deviation = step(mean + size * signs) - d
    slope = abs(float(deviation @ lin.gradient.double()))
    return VectorUpdate(d, rounding=Rounding(float(deviation.norm()), slope, lambda: deviation))


def _labels(lin: Linearization) -> int:
    """Return the number that a training divides the summed loss by."""
    several = lin.logits.dim() > 2 and lin.targets.dim() == lin.logits.dim() - 1
    if not several or lin.targets.is_floating_point():
        return lin.num_samples
    return int((lin.targets != IGNORED_LABEL).sum())


def _check_of_model(lin: Linearization, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer with parameters that are not the model's, or without any that count."""
    known = {id(value) for value in lin.batches.model.parameters()}
    names, found = lin.batches.trainable_names(), False
    for value in (value for group in optimizer.param_groups for value in group["params"]):
        if id(value) not in known:
            raise EvalkitError(
                "expected an optimizer of the parameters of the model that is scored, found one "
                f"with a parameter of shape {tuple(value.shape)} that is not the model's; pass a "
                "model and its own optimizer"
            )
        found = found or names.get(id(value)) in lin.parameters
    if not found:
        raise EvalkitError(
            "expected an optimizer of parameters that are scored, found one of none of them; leave "
            "trainable (requires_grad) what the training trains"
        )

"""One sample alone against the same sample in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import Subject
from evalkit.errors import EvalkitError, reason
from evalkit.evaluation.determinism import nearly
from evalkit.evaluation.forward import Evaluation
from evalkit.evaluation.given import Inputs
from evalkit.evaluation.modules import ModuleCall, watched
from evalkit.linearization.sample_axis import ROUNDING, long_leaves, part_of, split_leaves
from evalkit.results.marks import percent

_NAME = "companions"
_MIXED = (
    "take means and sums within a sample, and never along axis 0 (GroupNorm or LayerNorm in place "
    "of statistics of the batch)"
)
_SLOW = "then per-sample gradients take one backward each, and F is of this batch as a whole"


def companions(subject: Subject) -> Finding:
    """Find whether the logits of a sample depend on which others are in the batch.

    Args:
        subject: whose few samples are run together and one by one.
    """
    subject = subject.on_cpu()
    few = subject.few
    if few.size < 2:
        return Finding(_NAME, "ok", "a batch of one sample has none")
    evaluated = subject.evaluated()
    split = sample_leaves(evaluated, few.inputs, few.size)
    together = evaluated.run(few.inputs)
    alone = []
    for row in range(few.size):
        try:
            alone.append(evaluated.run(part_of(few.inputs, split, [row])))
        except Exception as error:  # of a forward that takes no single sample
            return _not_alone(reason(error))
    if any(one.shape != together[:1].shape for one in alone):
        return _other_shape(together, alone[0])
    single = torch.cat(alone)
    pairs = zip(together, single, strict=True)
    moved = [row for row, (a, b) in enumerate(pairs) if not nearly(b[None], a[None], ROUNDING)]
    far = float((together - single).abs().max() / together.abs().max().clamp_min(1e-30))
    by = f"by up to {percent(far)}" if math.isfinite(far) else "not even finite"
    numbers = {"samples": few.size, "changed": len(moved), "largest_change": far}
    if not moved:
        said = f"{counted(few.size, 'sample')} have the same logits alone and together"
        return Finding(_NAME, "ok", said, numbers=numbers)
    culprit = first_to_mix(evaluated, few.inputs, part_of(few.inputs, split, [moved[0]]), moved[0])
    where = "" if culprit is None else f", from {culprit} on"
    said = (
        f"{len(moved)} of {counted(few.size, 'sample')} have other logits alone than in the batch, "
        f"{by}{where}: samples influence each other; {_SLOW}"
    )
    return Finding(_NAME, "warn", said, _cure(culprit), numbers)


def sample_leaves(evaluated: Evaluation, inputs: Inputs, samples: int) -> tuple[int, ...]:
    """Return the places of the inputs with a sample axis, all that are long enough in doubt."""
    try:
        return split_leaves(evaluated, inputs, samples)
    except EvalkitError:
        return long_leaves(inputs, samples)


def first_to_mix(
    evaluated: Evaluation, inputs: Inputs, alone: Inputs, row: int
) -> ModuleCall | None:
    """Return the first call that gives a sample another output beside others, for the same input.

    Args:
        evaluated: the model.
        inputs: of several samples.
        alone: those of one of them.
        row: which one.
    """
    runs: list[list[ModuleCall]] = []
    for given in (inputs, alone):
        calls: list[ModuleCall] = []
        with watched(evaluated.model, calls.append):
            evaluated.run(given)
        runs.append(calls)
    for one, other in zip(*runs, strict=False):
        if one.name != other.name or not one.inputs:
            continue
        same_inputs = _alike(one.inputs, other.inputs, row)
        if same_inputs and _alike(one.outputs, other.outputs, row) is False:
            return one
    return None


def _alike(batch: tuple[Tensor, ...], alone: tuple[Tensor, ...], row: int) -> bool | None:
    """Return whether one sample has the same values in both, None where it is not to be found."""
    if len(batch) != len(alone):
        return None
    found = [_same(a, b, row) for a, b in zip(batch, alone, strict=True)]
    if False in found:
        return False
    return None if None in found else True


def _same(batch: Tensor, alone: Tensor, row: int) -> bool | None:
    if batch.dim() != alone.dim():
        return None
    axes = [
        axis for axis, (a, b) in enumerate(zip(batch.shape, alone.shape, strict=True)) if a != b
    ]
    if len(axes) > 1 or (axes and alone.shape[axes[0]] != 1):
        return None
    # The axis on which there are several, or one, is that of the samples, wherever it is.
    part = batch.select(axes[0], row).unsqueeze(axes[0]) if axes else batch
    if not part.is_floating_point():
        return bool(torch.equal(part, alone))
    return nearly(part, alone, ROUNDING)


def _cure(culprit: ModuleCall | None) -> str:
    if culprit is not None and sequence_first(culprit.module):
        return (
            f"build {culprit} with batch_first=True, as it takes axis 0 to be the sequence, or "
            "move the sample axis to axis 1 before it and back behind it"
        )
    return _MIXED


def sequence_first(module: nn.Module) -> bool:
    """Return whether a module, or one inside, takes axis 0 to be the positions of a sequence."""
    return any(getattr(inner, "batch_first", True) is False for inner in module.modules())


def _not_alone(found: str) -> Finding:
    """Return the finding that nothing is told here; the row sums of the Gram matrix tell it."""
    said = f"no sample can be run by itself ({found}); see products"
    return Finding(_NAME, "ok", said)


def _other_shape(together: Tensor, alone: Tensor) -> Finding:
    shapes = f"shape {tuple(alone.shape)}, where a batch has {tuple(together.shape)}"
    axes = [axis for axis, length in enumerate(alone.shape) if axis and length == 1]
    if len(alone) == 1 or not axes:
        return _not_alone(f"its logits are of {shapes}")
    cure = (
        f"the model is sequence-first: let it return logits.transpose(0, {axes[0]}), or build its "
        "layers with batch_first=True"
    )
    said = f"a sample alone has logits of {shapes}: the samples are not on axis 0"
    return Finding(_NAME, "warn", said, cure)

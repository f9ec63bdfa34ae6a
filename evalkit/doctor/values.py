"""Whether all numbers of a forward are finite, in the model's own precision too."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import Subject
from evalkit.evaluation.forward import Evaluation
from evalkit.evaluation.given import Inputs
from evalkit.evaluation.modules import ModuleCall, described, watched
from evalkit.evaluation.precision import HALF

_NAME = "values"


def values(subject: Subject) -> Finding:
    """Find whether inputs, parameters and what modules return are finite.

    A model in float16 is evaluated in float32, where numbers beyond 65504 are finite; its own
    training has infinity there.

    Args:
        subject: whose few samples are run.
    """
    evaluated, inputs = subject.evaluated(), subject.few.inputs
    for finding in (_of_inputs(inputs), _of_parameters(subject.model)):
        if finding is not None:
            return finding
    largest, broken = _largest_outputs(evaluated, inputs)
    if broken is not None:
        return Finding(
            _NAME,
            "fail",
            f"numbers that are infinite or NaN come out of {broken}, whose inputs are finite",
            "correct that module (a division by zero, a logarithm of zero, an exponential), or "
            "scale what goes in",
        )
    halves = HALF & {value.dtype for value in subject.model.parameters()}
    # What a forward casts to by itself is kept in the precision of the evaluation, too.
    casts = not halves and evaluated.mode.changed and evaluated.precision == torch.float32
    limit = torch.finfo(torch.float16).max
    over = [name for name, value in largest.items() if value > limit]
    numbers = {"largest": max(largest.values(), default=0.0), "limit": limit}
    if over and (torch.float16 in halves or casts):
        asks = "which the model is in" if halves else "where its forward casts to that"
        said = (
            f"{over[0]} gives numbers of up to {largest[over[0]]:.3g}; float16, {asks}, overflows "
            f"at {limit:g}, so that scores, found in float32, are not of the model that is trained"
        )
        cure = "keep the model in bfloat16 or float32, or scale what goes into that module"
        return Finding(_NAME, "warn", said, cure, numbers)
    said = "inputs, parameters and all that modules return are finite"
    if halves:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in halves))
        said += f"; the model is in {names}, and evaluated in "
        said += str(evaluated.precision).removeprefix("torch.")
    return Finding(_NAME, "ok", said, numbers=numbers)


def _of_inputs(inputs: Inputs) -> Finding | None:
    """Return what is wrong with the inputs, None where nothing is."""
    leaves, _ = tree_flatten_with_path(inputs)
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        bad = int((~leaf.isfinite()).sum())
        if not bad:
            continue
        name = f"inputs{''.join(map(str, path))}"
        cure = "leave such samples out, or replace the numbers, in the data of the task"
        overflow = leaf.dtype == torch.float16 and bool(leaf.isinf().any())
        if overflow:
            cure = "keep the data in float32, or scale it before it is made float16"
        why = f": float16 ends at {torch.finfo(torch.float16).max:g}" if overflow else ""
        said = f"{counted(bad, 'number')} of {name} {_are(bad)} infinite or NaN{why}"
        return Finding(_NAME, "fail", said, cure, {"bad": bad})
    return None


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _of_parameters(model: nn.Module) -> Finding | None:
    """Return what is wrong with parameters and buffers, None where nothing is."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in named:
            # A mask is minus infinity where nothing is looked at, which is what it is for.
            wrong = value.isnan() if kind == "buffer" else ~value.isfinite()
            if value.is_floating_point() and (bad := int(wrong.sum())):
                half = value.dtype == torch.float16
                cure = (
                    "convert the weights from a copy in float32 or bfloat16: float16 ends at "
                    f"{torch.finfo(torch.float16).max:g}"
                    if half
                    else "take a checkpoint from before the training diverged"
                )
                said = f"{counted(bad, 'number')} of {kind} '{name}' {_are(bad)} infinite or NaN"
                return Finding(_NAME, "fail", said, cure, {"bad": bad})
    return None


def _largest_outputs(evaluated: Evaluation, inputs: Inputs) -> tuple[dict[str, float], str | None]:
    """Return the largest number that each module returns, and the first that makes a bad one."""
    largest: dict[str, float] = {}
    broken: list[str] = []

    def after(call: ModuleCall) -> None:
        if torch._C._are_functorch_transforms_active():  # numbers of many calls in one
            return
        found = list(_sizes(call.outputs))
        if found and not all(map(torch.isfinite, found)):
            if not broken and all(map(torch.isfinite, _sizes(call.inputs))):
                broken.append(str(call))
        elif found:
            name = str(call)
            largest[name] = max([largest.get(name, 0.0), *map(float, found)])

    with watched(evaluated.model, after):
        logits = evaluated.run(inputs)
    if not broken and not logits.isfinite().all():
        broken.append(described("", evaluated.model))
    return largest, broken[0] if broken else None


def _sizes(tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield the largest absolute number of each tensor, masks of minus infinity left out."""
    for value in tensors:
        if value.is_floating_point() and value.numel():
            value = value.detach()
            yield value.where(value != -torch.inf, 0.0).abs().max()

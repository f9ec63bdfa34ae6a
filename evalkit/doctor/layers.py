"""How the per-sample gradients of each parameter are had, and which parameter has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.linearization import Linearization
from evalkit.linearization.adjoint import differentiating
from evalkit.linearization.gram import scaled_cotangents
from evalkit.linearization.per_sample import (
    CannotVectorizeError,
    defining_gradients,
    vectorized_gradients,
)
from evalkit.linearization.recording import Recording
from evalkit.linearization.ruled_rows import BROADCAST, row_kinds

_NAME = "parameters"
SHOWN = 3
"""Names that a sentence has."""
LONGEST = 40
"""Characters of a name in a sentence."""


def layers(lin: Linearization) -> Finding:
    """Find which parameters have a layer rule, share a broadcast, fall back, or do nothing.

    Args:
        lin: of the batch.
    """
    recording = lin.batches[0].recording
    unused, still = without_gradient(lin)
    kinds = row_kinds(recording) if lin.route is None else {}
    used = [name for name in recording.parameters if name not in unused]
    broadcast = [name for name in used if kinds.get(name) == BROADCAST]
    formed = [name for name in used if name not in kinds]
    ruled = len(used) - len(broadcast) - len(formed)
    numbers: dict[str, Any] = {
        "ruled": [name for name in used if name in kinds and name not in broadcast],
        "broadcast": broadcast,
        "fall_back": formed,
        "unused": list(unused),
        "without_gradient_here": list(still),
    }
    parts = [f"{ruled} of {counted(len(recording.parameters), 'tensor')} by layer rules"]
    parts += [f"{len(broadcast)} by broadcasts ({_names(broadcast)})"] if broadcast else []
    if formed:
        steps = numbers["fall_back_steps"] = _steps(lin, recording, formed)
        parts.append(
            f"{len(formed)} fall{'s' if len(formed) == 1 else ''} back to per-sample gradients "
            f"({_names(formed)}), about {counted(math.ceil(steps), 'training step')} for a Gram "
            "matrix"
        )
    if still:
        parts.append(f"{len(still)} with a gradient of zero here ({_names(still)})")
    said, cure = ", ".join(parts), ""
    if unused:
        them = "it" if len(unused) == 1 else "them"
        said = (
            f"{counted(len(unused), 'trained parameter')} that no logit depends on "
            f"({_names(unused)}); {said}"
        )
        cure = (
            f"freeze {them} (requires_grad_(False)) or remove {them}, or use {them} in the forward "
            "if that was forgotten"
        )
    return Finding(_NAME, "warn" if unused else "ok", said, cure, numbers)


def _names(names: Sequence[str]) -> str:
    """Return names as a sentence has them: a few, of long ones the end."""
    ends = [name if len(name) <= LONGEST else f"...{name[-LONGEST:]}" for name in names]
    shown = list(dict.fromkeys(ends))[:SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def without_gradient(lin: Linearization) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parameters that no logit depends on, and those whose gradient is zero here.

    A part of LoRA as initialised is such: what multiplies it is zero.
    """
    unused = still = tuple(lin.parameters)
    generator = torch.Generator().manual_seed(0)
    for batch in lin.batches:
        recording = batch.recording
        logits = recording.logits
        u = torch.randn(logits.shape, generator=generator).to(logits)
        with differentiating(recording, False):
            found = torch.autograd.grad(
                logits, list(recording.parameters.values()), u, retain_graph=True, allow_unused=True
            )
        pulled = dict(zip(recording.parameters, found, strict=True))
        unused = tuple(name for name in unused if pulled[name] is None)
        still = tuple(n for n in still if pulled[n] is None or not bool(pulled[n].any()))
        if not still:
            break
    return unused, tuple(name for name in still if name not in unused)


def _steps(lin: Linearization, recording: Recording, names: list[str]) -> float:
    """Return the training steps that forming some parameters' gradients takes, roughly.

    Rows are formed in blocks that fit the budget, a block again for each pair of them; by
    vectorisation all rows take about a step, by definition each takes one.

    Args:
        lin: of the batch.
        recording: its first forward pass.
        names: the parameters.
    """
    size = sum(recording.parameters[name].numel() for name in names)
    blocks = math.ceil(lin.num_samples / max(1, recording.budget.held // size))
    c = scaled_cotangents(lin.logit_gradients[None], lin.logits.dtype)[0]
    each = 1.0
    if lin.route is defining_gradients or not _vectorizes(recording, c, names):
        each = float(lin.num_samples)
    return each * (blocks + 1) / 2


def _vectorizes(recording: Recording, cotangents: torch.Tensor, names: list[str]) -> bool:
    """Return whether one sample's gradients can be had by vectorisation."""
    here = cotangents[:, : len(recording.logits)]
    try:
        first = torch.zeros(1, dtype=torch.long, device=here.device)
        vectorized_gradients(recording, here, names, first)
    except CannotVectorizeError:
        return False
    return True

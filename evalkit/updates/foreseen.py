"""What methods by layers need, told before the first score."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from evalkit.curvature import Source, foreseen
from evalkit.errors import EvalkitError
from evalkit.given_settings import defaults_of
from evalkit.linearization import Linearization
from evalkit.machine import free_memory, gigabytes
from evalkit.settings import Others
from evalkit.updates.parser import parse
from evalkit.updates.registry import registered


def by_layers(methods: Sequence[str]) -> tuple[foreseen.Asked, ...]:
    """Return the structures among methods: those that are told what becomes of other parameters."""
    found = []
    for text in methods:
        name, written = parse(text)
        function = registered(name)
        if "others" not in inspect.signature(function).parameters:
            continue
        settings = {**defaults_of(function), **written}
        known = Source.__dataclass_fields__.keys() & settings.keys()
        source = Source(**{key: settings[key] for key in known})
        found.append(foreseen.Asked(name, source, settings.get("sharing", "expand")))
    return tuple(found)


def check_needs(lin: Linearization, methods: Sequence[str], others: Others) -> int:
    """Return the bytes that methods by layers are expected to take, 0 without any.

    Args:
        lin: the model and batch.
        methods: names, with settings if wanted.
        others: what is made of parameters without factors.

    Raises:
        EvalkitError: labels take too many cotangents, no layer has factors, or there is not so
            much memory.
    """
    asked = by_layers(methods)
    if not asked:
        return 0
    needed = foreseen.memory(lin, asked, others)
    free = free_on(lin.logits.device)
    if free is not None and needed > free:
        names = ", ".join(dict.fromkeys(one.structure for one in asked))
        raise EvalkitError(
            f"expected room for the matrices of {names}, {gigabytes(needed)} of memory, found "
            f"{gigabytes(free)} free; freeze the largest layers (requires_grad_(False)), ask for "
            "fewer methods or labels at a time, or take methods on the whole matrix, as ief"
        )
    return needed


def free_on(device: torch.device) -> int | None:
    """Return the bytes that may still be taken on a device, None where that is not told."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()

"""Lines of Markdown tables, and what they were measured on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from evalkit.machine import memory_gib, processor
from evalkit.version import __version__


def machine(device: str, *others: str) -> str:
    """Return the machine and the versions of torch and other packages in one line."""
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    versions = (f"{name} {version(name)}" for name in ("torch", *others))
    packages = ", ".join((f"evalkit {__version__}", *versions))
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {memory_gib():.0f} GiB{gpu}; "
        f"Python {platform.python_version()}, {packages}."
    )


def lines(*names: str) -> str:
    """Return the head of a table."""
    return line(*names) + line(*["---"] * len(names))


def line(*cells: str) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cells) + " |\n"

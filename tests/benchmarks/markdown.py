"""Lines of Markdown tables, and what they were measured on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from evalkit.machine import memory_gib, processor
from evalkit.version import __version__


def machine(device: str, *others: str) -> str:
    """Return the machine and the versions of torch and other packages that are there, in a line."""
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    versions = (f"{name} {found}" for name in ("torch", *others) if (found := _version(name)))
    packages = ", ".join((f"evalkit {__version__}", *versions))
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {memory_gib():.0f} GiB{gpu}; "
        f"Python {platform.python_version()}, {packages}."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def lines(*names: str) -> str:
    """Return the head of a table."""
    return line(*names) + line(*["---"] * len(names))


def line(*cells: str) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cells) + " |\n"


def with_section(report: str, section: str) -> str:
    """Return a report with a section in the place of the one with its title, or at the end."""
    parts = _sections(report)
    places = [place for place, part in enumerate(parts) if _title(part) == _title(section)]
    if places:
        parts[places[0]] = section
    else:
        parts.append(section)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def kept(report: Path, text: str, *titles: str) -> str:
    """Return a new text of a report with the sections of some titles that the old one has."""
    for section in _sections(report.read_text("utf-8") if report.exists() else ""):
        if _title(section) in {title.strip() for title in titles}:
            text = with_section(text, section)
    return text


def _sections(report: str) -> list[str]:
    """Return what stands before the first title, and each section."""
    return re.split(r"(?m)^(?=## )", report)


def _title(section: str) -> str:
    return section.split("\n", 1)[0]

"""The benchmark's tables as Markdown, with what they were measured on."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

from evalkit.machine import memory_gib, processor
from evalkit.version import __version__
from tests.benchmarks.marks import Verdict
from tests.benchmarks.measure import Memory, Row

HEAD = """# Benchmarks

`make bench` measures this table; costs are in training steps (one forward and backward of the same
model on the same batch), medians of ratios measured in turns, in one process for each problem;
products in several, whose medians these are.
Memory is the peak of a process above what it holds with model and batch loaded.

"""


def machine(device: str) -> str:
    """Return the machine and the versions in one line."""
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    others = (f"{name} {version(name)}" for name in ("torch", "curvlinops-for-pytorch"))
    packages = ", ".join((f"evalkit {__version__}", *others))
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {memory_gib():.0f} GiB{gpu}; "
        f"Python {platform.python_version()}, {packages}."
    )


def as_markdown(
    rows: Sequence[Row], memories: Sequence[Memory], verdicts: Sequence[Verdict], where: str
) -> str:
    """Return the whole report."""
    parts = [HEAD + where + "\n", "## Marks\n", lines("problem", "mark", "measured", "")]
    for one in verdicts:
        state = "reached" if one.reached else "**missed**"
        parts[-1] += line(one.problem, one.mark, f"{one.measured:.2f}", state)
    parts += ["## Cost in training steps\n"]
    parts += [lines("problem", "work", "evalkit", "peer", "peer's cost", "peer / evalkit", "")]
    for row in rows:
        known = not math.isnan(row.peer_steps)
        parts[-1] += line(
            row.problem,
            row.work,
            f"{row.steps:.2f}",
            row.peer,
            f"{row.peer_steps:.2f}" if known else "",
            f"{row.ratio:.2f}" if known else "",
            row.note,
        )
    if memories:
        parts += ["## Memory of sgd, ef, ief, sf in MB\n"]
        parts += [lines("problem", "evalkit", "gradients formed", "ratio")]
        for item in memories:
            ratio = f"{item.formed / item.ours:.1f}"
            parts[-1] += line(item.problem, f"{item.ours:.0f}", f"{item.formed:.0f}", ratio)
    return "\n".join(parts)


def lines(*names: str) -> str:
    """Return the head of a table."""
    return line(*names) + line(*["---"] * len(names))


def line(*cells: str) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cells) + " |\n"

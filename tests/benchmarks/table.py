"""The benchmark's tables as Markdown, with what they were measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.benchmarks.markdown import line, lines
from tests.benchmarks.marks import Verdict
from tests.benchmarks.measure import Memory, Row

HEAD = """# Benchmarks

`make bench` measures this table; costs are in training steps (one forward and backward of the same
model on the same batch), medians of ratios measured in turns, in one process for each problem;
products in several, whose medians these are.
Memory is the peak of a process above what it holds with model and batch loaded.

"""


MARKS, COSTS, MEMORY = (
    "## Marks",
    "## Cost in training steps",
    "## Memory of sgd, ef, ief, sf in MB",
)


def as_markdown(
    rows: Sequence[Row], memories: Sequence[Memory], verdicts: Sequence[Verdict], where: str
) -> str:
    """Return the whole report."""
    parts = [HEAD + where + "\n", mark_section(verdicts), cost_section(rows)]
    return "\n".join([*parts, memory_section(memories)] if memories else parts)


def mark_section(verdicts: Sequence[Verdict]) -> str:
    """Return the table of marks."""
    text = f"{MARKS}\n\n" + lines("problem", "mark", "measured", "")
    for one in verdicts:
        state = "reached" if one.reached else "**missed**"
        text += line(one.problem, one.mark, f"{one.measured:.2f}", state)
    return text


def cost_section(rows: Sequence[Row]) -> str:
    """Return the table of costs."""
    text = f"{COSTS}\n\n"
    text += lines("problem", "work", "evalkit", "peer", "peer's cost", "peer / evalkit", "")
    for row in rows:
        known = not math.isnan(row.peer_steps)
        text += line(
            row.problem,
            row.work,
            f"{row.steps:.2f}",
            row.peer,
            f"{row.peer_steps:.2f}" if known else "",
            f"{row.ratio:.2f}" if known else "",
            row.note,
        )
    return text


def memory_section(memories: Sequence[Memory]) -> str:
    """Return the table of memory, empty without one."""
    if not memories:
        return ""
    text = f"{MEMORY}\n\n" + lines("problem", "evalkit", "gradients formed", "ratio")
    for item in memories:
        known = not math.isnan(item.formed)
        text += line(
            item.problem,
            f"{item.ours:.0f}",
            f"{item.formed:.0f}" if known else "",
            f"{item.formed / item.ours:.1f}" if known else "",
        )
    return text

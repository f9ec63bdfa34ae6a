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
            known = not math.isnan(item.formed)
            parts[-1] += line(
                item.problem,
                f"{item.ours:.0f}",
                f"{item.formed:.0f}" if known else "",
                f"{item.formed / item.ours:.1f}" if known else "",
            )
    return "\n".join(parts)

"""The committed report, some of whose rows are measured again or for the first time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tests.benchmarks.marks import verdicts
from tests.benchmarks.measure import Memory, Row
from tests.benchmarks.table import COSTS, MARKS, MEMORY, cost_section, mark_section, memory_section

T = TypeVar("T")


def merged(
    text: str, label: str, rows: Sequence[Row], memories: Sequence[Memory], where: str
) -> str:
    """Return a report with rows in the place of those of the same work, or after their problem's.

    All other rows stay, marks are judged again, and a line says where the new rows were measured.

    Args:
        text: the report as it is.
        label: what was measured.
        rows: what was found.
        memories: what was found of memory.
        where: the machine and the versions.
    """
    sections = re.split(r"(?m)^(?=## )", text)
    known = {section.split("\n", 1)[0]: section for section in sections[1:]}
    all_rows = _joined(
        [_row(cells) for cells in _cells(known.get(COSTS, ""))],
        rows,
        lambda row: (row.problem, row.work, row.peer),
        lambda row: row.problem,
    )
    all_memories = _joined(
        [_memory(cells) for cells in _cells(known.get(MEMORY, ""))],
        memories,
        lambda one: one.problem,
        lambda one: one.problem,
    )
    found = {
        MARKS: mark_section(verdicts(all_rows, all_memories)),
        COSTS: cost_section(all_rows),
        MEMORY: memory_section(all_memories),
    }
    others = {title: section for title, section in known.items() if title not in found}
    head = re.sub(rf"(?m)^{re.escape(label)}: .*\n\n?", "", sections[0]).rstrip("\n")
    head += f"\n\n{label}: {where}\n\n"
    return head + "\n".join([*(one for one in found.values() if one), *others.values()])


def _joined(
    old: Sequence[T],
    new: Iterable[T],
    key: Callable[[T], object],
    group: Callable[[T], object],
) -> list[T]:
    """Return old items, new ones in the place of those with their key or after their group."""
    found = list(old)
    for item in new:
        same = [place for place, one in enumerate(found) if key(one) == key(item)]
        if same:
            found[same[0]] = item
            continue
        beside = [place for place, one in enumerate(found) if group(one) == group(item)]
        found.insert(beside[-1] + 1 if beside else len(found), item)
    return found


def _cells(section: str) -> list[list[str]]:
    """Return the cells of a table without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _row(cells: Sequence[str]) -> Row:
    problem, work, steps, peer, peer_steps, _, note = cells
    return Row(problem, work, float(steps), peer, _number(peer_steps), note)


def _memory(cells: Sequence[str]) -> Memory:
    problem, ours, formed, _ = cells
    return Memory(problem, float(ours), _number(formed))


def _number(cell: str) -> float:
    return float(cell) if cell else float("nan")

"""The committed table of costs keeps its rows when a few are measured again."""

from __future__ import annotations

import math
from pathlib import Path

from tests.benchmarks.committed import merged
from tests.benchmarks.marks import MLP, verdicts
from tests.benchmarks.measure import Memory, Row
from tests.benchmarks.table import COSTS, MEMORY, as_markdown

OTHER = Row("other", "F v", 1.25, "curvlinops", 2.5, "five processes")
ROWS = [Row(MLP, "J v", 0.6), Row(MLP, "J v", 0.6, "torch.func.linearize", 0.8), OTHER]
MEMORIES = [Memory(MLP, 128, 13063), Memory("other", 462, math.nan)]


def report(rows: list[Row], memories: list[Memory]) -> str:
    return as_markdown(rows, memories, verdicts(rows, memories), "a machine, torch 1.")


def test_rows_take_their_places_and_all_others_stay() -> None:
    new = [Row(MLP, "J v", 0.7), Row(MLP, "kfac", 5.0, "KFACLinearOperator", 200.0, "once")]
    found = merged(report(ROWS, MEMORIES), f"{MLP}, structured", new, [], "another, torch 2.")
    wanted = report([new[0], ROWS[1], new[1], OTHER], MEMORIES)
    where = f"a machine, torch 1.\n\n{MLP}, structured: another, torch 2.\n"
    assert found == wanted.replace("a machine, torch 1.\n", where)
    assert "| MLP 10.5M | kfac in at most 12 steps | 5.00 | reached |" in found


def test_a_second_merge_replaces_the_first() -> None:
    old = report(ROWS, MEMORIES) + "\n## Commands\n\n| a | b |\n"
    once = merged(old, MLP, [Row(MLP, "kfac", 5.0)], [Memory(MLP, 100, 13063)], "another.")
    again = merged(once, MLP, [Row(MLP, "kfac", 13.0)], [Memory(MLP, 100, 13063)], "a third.")
    assert "another." not in again
    assert "a third." in again
    assert "| MLP 10.5M | kfac in at most 12 steps | 13.00 | **missed** |" in again
    assert again.count("| kfac |") == 1
    assert "| other | F v | 1.25 | curvlinops |" in again
    assert again.endswith("## Commands\n\n| a | b |\n")


def test_the_committed_table_is_read_as_it_was_written() -> None:
    text = (Path(__file__).parents[1] / "reports" / "benchmarks.md").read_text(encoding="utf-8")
    found = merged(text, "nothing", [], [], "here.")
    # Ratios follow from costs, which the table rounds to two digits.
    assert costs(found) == costs(text)


def costs(text: str) -> list[list[str]]:
    table = text.partition(COSTS)[2].partition(MEMORY)[0]
    return [line.split("|")[1:6] for line in table.splitlines()]

"""The section of the benchmarks' report that has the seconds of commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import commands
from tests.benchmarks.commands import ALONE, BESIDE, TITLE, Command, Timed

REPORT = "# Benchmarks\n\n## Marks\n\n| a | b |\n"
QUICK = Command("`quick`", lambda folder, count: [0.5] * count, 3, {ALONE: 1.0, BESIDE: 0.4})


def section(scale: float = 1.0) -> str:
    times = {ALONE: 0.5, BESIDE: 0.6}
    return commands.as_section([Timed(QUICK, key, (scale * t,)) for key, t in times.items()])


def test_marks_are_judged_by_the_median_of_each_row() -> None:
    alone, beside = section().splitlines()[-2:]
    assert alone == "| `quick` | alone | 0.5 | 0.5 | 0.5 | 1 | reached |"
    assert beside.endswith("| 0.4 | **missed** |")


def test_a_section_takes_the_place_of_the_one_before() -> None:
    first = commands.with_section(REPORT, section())
    assert first.startswith(REPORT)
    again = commands.with_section(first, section(2.0))
    assert again.count(TITLE) == 1
    assert again == commands.with_section(REPORT, section(2.0))


def test_other_rows_leave_the_section(tmp_path: Path) -> None:
    report = tmp_path / "benchmarks.md"
    assert commands.kept(report, REPORT) == REPORT
    report.write_text(commands.with_section(REPORT, section()))
    assert commands.kept(report, "# New\n") == commands.with_section("# New\n", section())


def test_commands_are_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "benchmarks.md"
    report.write_text(REPORT)
    monkeypatch.setattr(benchmarks, "REPORT", report)
    monkeypatch.setattr(
        commands, "measured", lambda: [Timed(QUICK, one, (0.5,)) for one in QUICK.marks]
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "commands", "--write"])
    benchmarks.main()
    assert report.read_text() == commands.with_section(REPORT, section_of_equal_times())
    assert "`quick`" in capsys.readouterr().out


def section_of_equal_times() -> str:
    return commands.as_section([Timed(QUICK, one, (0.5,)) for one in QUICK.marks])

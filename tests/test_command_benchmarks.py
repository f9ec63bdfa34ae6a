"""The section of the benchmarks' report that has the seconds of commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import commands, optimizers
from tests.benchmarks.commands import ALONE, BESIDE, TITLE, Command, Timed
from tests.benchmarks.markdown import kept, with_section
from tests.benchmarks.marks import MLP
from tests.benchmarks.optimizers import IEF, Cost

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
    first = with_section(REPORT, section())
    assert first.startswith(REPORT)
    again = with_section(first, section(2.0))
    assert again.count(TITLE) == 1
    assert again == with_section(REPORT, section(2.0))


def test_other_rows_leave_the_section(tmp_path: Path) -> None:
    report = tmp_path / "benchmarks.md"
    assert kept(report, REPORT, TITLE) == REPORT
    report.write_text(with_section(REPORT, section()))
    assert kept(report, "# New\n", TITLE) == with_section("# New\n", section())


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
    assert report.read_text() == with_section(REPORT, section_of_equal_times())
    assert "`quick`" in capsys.readouterr().out


def test_steps_of_optimizers_have_a_section_before_that_of_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "benchmarks.md"
    report.write_text(with_section(with_section(REPORT, optimizers.TITLE + "old"), section()))
    monkeypatch.setattr(benchmarks, "REPORT", report)
    costs = (Cost(MLP, "Adam", 2.0, 300, (2.0, 300)), Cost(MLP, IEF, 1.5, 450, (2.0, 300)))
    monkeypatch.setattr(optimizers, "measured", lambda name: costs if name == MLP else ())
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "optimizers", "--write"])
    benchmarks.main()
    text = report.read_text()
    assert "old" not in text
    assert text.index(optimizers.TITLE) < text.index(TITLE)
    marks = "time at most 1.3: reached; memory at most 1.3: **missed**"
    assert f"| {MLP} | 64 | IEF | 1.50 | 450 | 0.75 | 1.50 | {marks} |" in text


def section_of_equal_times() -> str:
    return commands.as_section([Timed(QUICK, one, (0.5,)) for one in QUICK.marks])

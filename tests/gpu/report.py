"""Sections of the report: how the tests ended, and what became of the parts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.markdown import line, lines, with_section
from tests.gpu.passed import FAILED, PASSED, SKIPPED
from tests.gpu.running import Ended

HEAD = """# Benchmarks on a GPU

`make gpu` measures these tables: [how to run it](../docs/guides/gpu.md). Costs are in training
steps (one forward and backward of the same model on the same batch), medians of ratios measured in
turns, in one process for each problem. Memory is the peak above model and batch.

"""
TESTS, PARTS = "## Tests\n", "## Parts\n"
_OUTCOMES = (PASSED, SKIPPED, FAILED)


def section_of_tests(outcomes: Mapping[str, str], where: str) -> str:
    """Return how the tests of each file ended, with the names of those that failed."""
    counts: dict[str, Counter[str]] = {}
    for name, outcome in outcomes.items():
        counts.setdefault(Path(name.partition("::")[0]).stem, Counter())[outcome] += 1
    text = f"{TESTS}\n{where}\n\n" + lines("tests/cuda", *_OUTCOMES)
    for file, found in sorted(counts.items()):
        text += line(file, *(str(found[outcome]) for outcome in _OUTCOMES))
    failed = [name for name, outcome in outcomes.items() if outcome == FAILED]
    return text + "".join(f"\n- failed: `{name}`" for name in failed) + ("\n" if failed else "")


def section_of_parts(ended: Sequence[Ended], where: str) -> str:
    """Return what became of the parts: done, failed, cut off, left out or not begun."""
    text = f"{PARTS}\n{where}\n\n" + lines("part", "", "seconds", "")
    for one in ended:
        took = f"{one.seconds:.0f}" if one.seconds else ""
        text += line(one.part, one.state, took, one.told)
    return text


def put(report: Path, *sections: str) -> None:
    """Write sections into a report, in the place of those that it has, the parts last."""
    text = report.read_text(encoding="utf-8") if report.exists() else HEAD
    text = re.sub(rf"(?ms)^{PARTS}.*?(?=^## |\Z)", "", text)
    for section in sections:
        text = with_section(text, section)
    report.write_text(text, encoding="utf-8")

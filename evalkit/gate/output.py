"""What a gate found, for people and machines: a terminal table, Markdown and JUnit XML."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Sequence

import junitparser
from rich import box
from rich.table import Table
from rich.text import Text

from evalkit.counts import plural
from evalkit.gate.comparison import VERDICTS, Check, Comparison, Verdict
from evalkit.results.intervals import EFFICIENCY
from evalkit.results.marks import UNRELIABLE_SIGN
from evalkit.results.spreads import format_number, format_percent

HEAD = (
    "verdict",
    "checkpoint",
    "method",
    "damping",
    "metric",
    "obtained",
    "expected",
    "difference",
    "interval",
    "batches",
    "reason",
)
_NUMBERS = frozenset({"damping", "obtained", "expected", "difference", "interval", "batches"})
_COLORS: dict[Verdict, str] = {
    "worse": "bold red",
    "not comparable": "bold magenta",
    "new": "cyan",
    "improved": "green",
    "same": "",
}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def headline(check: Check) -> str:
    """Return the outcome in one sentence, with a count per verdict."""
    counts = Counter(comparison.verdict for comparison in check.comparisons)
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    outcome = "passed" if check.passed else "failed"
    undecided = check.undecided
    if undecided:
        batches = sorted({comparison.batches for comparison in undecided})
        few = " to ".join(map(str, dict.fromkeys((batches[0], batches[-1]))))
        listed += (
            f", {len(undecided)} of them beyond the tolerance but undecided by {few} "
            f"{plural(batches[-1], 'batch')}: score more to tell"
        )
    if check.within_error:
        listed += (
            f", {len(check.within_error)} of them beyond the tolerance but within the stated error"
        )
    if check.doubtful:
        listed += f"; {len(check.doubtful)} rest on marked scores ({UNRELIABLE_SIGN})"
    notes = "".join(f"; {note}" for note in check.notes)
    return f"Gate {outcome} for {check.task}: {listed} (tolerance {check.tolerance:g}){notes}."


def cells(comparison: Comparison) -> tuple[str, ...]:
    """Return the texts of a row, in the order of ``HEAD``."""
    share = comparison.metric == EFFICIENCY.name
    signed = _points if share else _signed
    number = format_percent if share else format_number
    low, high = signed(comparison.low), signed(comparison.high)
    return (
        comparison.verdict + (UNRELIABLE_SIGN if comparison.doubt else ""),
        comparison.checkpoint,
        comparison.method,
        _unless_nan(comparison.damping, f"{comparison.damping:g}"),
        comparison.metric,
        _unless_nan(comparison.obtained, number(comparison.obtained)),
        _unless_nan(comparison.expected, number(comparison.expected)),
        signed(comparison.difference),
        f"[{low}, {high}]" if low and high else "",
        str(comparison.batches) if comparison.batches else "",
        "; ".join(text for text in (comparison.reason, comparison.doubt) if text),
    )


def _unless_nan(value: float, text: str) -> str:
    return "" if math.isnan(value) else text


def _signed(value: float) -> str:
    return _unless_nan(value, f"{value:+.3f}")


def _points(share: float) -> str:
    """Return a difference of efficiencies in percentage points, ``-4.5%``."""
    return _unless_nan(share, f"{share:+.1%}")


def terminal_table(check: Check) -> Table | None:
    """Return every comparison that is not the same, worst first, then what is so with a word.

    That is what is undecided, within the stated error, or rests on marked scores. None where there
    is nothing of all this.
    """
    shown = [comparison for comparison in check.comparisons if comparison.verdict != "same"]
    same = (*check.undecided, *check.within_error, *check.doubtful)
    shown += dict.fromkeys(comparison for comparison in same if comparison.verdict == "same")
    if not shown:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in HEAD:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=True)
    for comparison in shown:
        verdict, *rest = cells(comparison)
        table.add_row(Text(verdict, _COLORS[comparison.verdict]), *map(Text, rest))
    return table


def markdown(check: Check) -> str:
    """Return the outcome as GitHub-flavoured Markdown: what changed, then the rest folded away."""
    changed = [comparison for comparison in check.comparisons if comparison.verdict != "same"]
    same = [comparison for comparison in check.comparisons if comparison.verdict == "same"]
    parts = [f"### {_escaped(headline(check))}"]
    if check.remarks:
        parts.append("\n".join(f"- {_escaped(remark)}" for remark in check.remarks))
    if changed:
        parts.append(_markdown_table(changed))
    if same:
        parts.append(f"<details><summary>{len(same)} the same</summary>")
        parts.append(_markdown_table(same))
        parts.append("</details>")
    return "\n\n".join(parts) + "\n"


def _markdown_table(comparisons: Sequence[Comparison]) -> str:
    rows = [HEAD, tuple("--:" if name in _NUMBERS else "---" for name in HEAD)]
    rows += [tuple(map(_escaped, cells(comparison))) for comparison in comparisons]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, within a cell of a table too."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", text)


def junit(check: Check) -> bytes:
    """Return JUnit XML: a test case per comparison, in a suite named after the task.

    Failures are the comparisons that fail the gate; new rows are skipped tests.
    """
    suite = junitparser.TestSuite(_for_xml(f"evalkit check {check.task}"))
    for comparison in check.comparisons:
        suite.add_testcase(_test_case(comparison))
    suite.update_statistics()
    document = junitparser.JUnitXml()
    document.add_testsuite(suite)
    document.update_statistics()
    file = io.BytesIO()
    document.write(file, pretty=True)
    return file.getvalue()


def _test_case(comparison: Comparison) -> junitparser.TestCase:
    texts = dict(zip(HEAD, map(_for_xml, cells(comparison)), strict=True))
    damping = f"damping {texts['damping']}" if texts["damping"] else ""
    parts = (texts["method"], damping, texts["metric"])
    case = junitparser.TestCase(" ".join(part for part in parts if part), texts["checkpoint"])
    message = ", ".join(f"{name} {text}" for name, text in texts.items() if text)
    if comparison.failed:
        case.result = [junitparser.Failure(message, comparison.verdict)]
    elif comparison.verdict == "new":
        case.result = [junitparser.Skipped(message)]
    else:
        case.system_out = message
    return case


def _for_xml(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)

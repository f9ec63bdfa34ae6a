"""What the gate prints and writes, and how the command ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import junitparser
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from evalkit.cli import main
from evalkit.gate.comparison import METRICS, Check, Comparison, Verdict
from evalkit.gate.figure import plot_differences, write_differences
from evalkit.gate.output import HEAD, headline, junit, markdown, terminal_table
from tests.support.gates import Made, printed


def row(
    verdict: Verdict, method: str = "ef", checkpoint: str = "first", **more: float | str | int
) -> Comparison:
    numbers = {"obtained": 0.25, "expected": 0.125, "difference": 0.125, "low": 0.1, "high": 0.15}
    return Comparison(checkpoint, method, 1e-12, "log ratio", verdict, **{**numbers, **more})


def check_of(*comparisons: Comparison, notes: tuple[str, ...] = ()) -> Check:
    names = tuple(dict.fromkeys(comparison.checkpoint for comparison in comparisons))
    return Check("digits-mlp", 0.05, names, comparisons, notes)


ALL_KINDS = check_of(
    row("worse"),
    Comparison("last", "all", math.nan, "", "not comparable", reason="not in the run"),
    Comparison("first", "sf", 1e-12, "", "new", reason="not in the baseline"),
    row("improved", "ngd", difference=-0.2, low=-0.3, high=-0.1),
    row("same", "ief", difference=0.001),
    notes=("dtype float64 instead of float32",),
)


def test_the_headline_counts() -> None:
    assert headline(ALL_KINDS) == (
        "Gate failed for digits-mlp: 1 worse, 1 not comparable, 1 new, 1 improved, 1 same "
        "(tolerance 0.05); dtype float64 instead of float32."
    )
    assert headline(check_of(row("same"), row("improved"))).startswith("Gate passed")


def test_the_terminal_shows_what_is_not_the_same() -> None:
    lines = printed(ALL_KINDS)
    assert tuple(lines[0].split()) == HEAD
    assert len(lines) == 5
    assert lines[1].split() == [
        *("worse", "first", "ef", "1e-12", "log", "ratio"),
        *("0.250", "0.125", "+0.125", "[+0.100,", "+0.150]"),
    ]
    assert lines[2].split("  ")[0] == "not comparable"
    assert lines[2].endswith("not in the run")
    assert terminal_table(check_of(row("same", difference=0.01))) is None


def test_efficiency_is_in_percent_and_batches_are_said() -> None:
    efficiency = Comparison(
        *("first", "ef", 1e-12, "efficiency", "worse", 0.524, 0.569, -0.045, -0.061, -0.029),
        batches=8,
    )
    [_, line] = printed(check_of(efficiency))
    assert line.split()[5:] == ["52%", "57%", "-4.5%", "[-6.1%,", "-2.9%]", "8"]


def test_what_is_undecided_is_said() -> None:
    undecided = row("same", "ief", difference=0.09, low=-0.1, batches=8, reason="holds zero")
    found = check_of(row("same"), undecided)
    assert headline(check_of(undecided)) == (
        "Gate passed for digits-mlp: 1 same, 1 of them beyond the tolerance but undecided by 8 "
        "batches: score more to tell (tolerance 0.05)."
    )
    assert len(printed(found)) == 3
    assert "holds zero" in printed(found)[2]


def test_markdown_holds_every_row_and_folds_those_that_are_the_same() -> None:
    text = markdown(ALL_KINDS)
    changed, same = text.split("<details>")
    assert [row[0] for row in cells_of(changed)] == [
        *("verdict", "worse", "not comparable", "new", "improved")
    ]
    assert [row[0] for row in cells_of(same[same.index("|") :])] == ["verdict", "same"]
    assert text.startswith("### Gate failed for digits-mlp: 1 worse")
    assert "| worse | first | ef | 1e-12 | log ratio | 0.250 |" in changed


def cells_of(text: str) -> list[list[str]]:
    """Return the rows of all tables of a Markdown text, each cell as it is shown."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in children))
    return rows


@pytest.mark.parametrize("name", ["a|b", "<b>x</b>", "[a](b)", "`a`", "*a*", "a\\", "#1", "~~a~~"])
def test_names_are_no_markup(name: str) -> None:
    head, shown = cells_of(markdown(check_of(row("worse", method=name))))
    assert tuple(head) == HEAD
    assert shown[:4] == ["worse", "first", name, "1e-12"]


def test_junit_has_a_case_per_comparison() -> None:
    document = junitparser.JUnitXml.fromstring(junit(ALL_KINDS))
    (suite,) = document
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (5, 2, 1, 0)
    cases = list(suite)
    assert [(case.classname, case.name) for case in cases[:3]] == [
        ("first", "ef damping 1e-12 log ratio"),
        ("last", "all"),
        ("first", "sf damping 1e-12"),
    ]
    assert [case.result[0].type for case in cases[:2]] == ["worse", "not comparable"]
    assert "difference +0.125" in cases[0].result[0].message
    assert "difference +0.001" in cases[-1].system_out


@pytest.mark.parametrize("name", ['<"&>', "\x00\x1b", "Größe", "\uffff"])
def test_junit_is_xml_whatever_the_names(name: str) -> None:
    root = ElementTree.fromstring(junit(check_of(row("worse", method=name))))
    (case,) = root.iter("testcase")
    assert case.attrib["name"].endswith("log ratio")


def kinds(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_the_figure_is_written_and_stays_the_same(tmp_path: Path) -> None:
    files = write_differences(ALL_KINDS, tmp_path / "new" / "gate.png")
    assert [file.name for file in files] == ["gate.png", "gate.svg"]
    before = [file.read_bytes() for file in files]
    assert before[0].startswith(b"\x89PNG")
    write_differences(ALL_KINDS, tmp_path / "new" / "gate.png")
    assert [file.read_bytes() for file in files] == before
    write_differences(ALL_KINDS, tmp_path / "new" / "v1.5")
    assert kinds(tmp_path / "new") == ["gate.png", "gate.svg", "v1.5.png", "v1.5.svg"]


def drawn(comparisons: Sequence[Comparison]) -> Figure:
    figure = Figure()
    plot_differences(check_of(*comparisons).table, figure.subplots(), METRICS[0], 0.05)
    return figure


def test_the_figure_shows_differences_intervals_and_failures() -> None:
    rows = [row("worse"), row("same", checkpoint="last", difference=0.01, low=0.0, high=0.02)]
    (ax,) = drawn(rows).axes
    lines = [line for line in ax.lines if line.get_transform() == ax.transData]
    (curve, rings) = [line for line in lines if len(line.get_xdata()) and line.get_ydata()[0] != 0]
    assert curve.get_ydata().tolist() == [0.125, 0.01]
    assert rings.get_ydata().tolist() == [0.125]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first", "last"]
    ends = [segment.tolist() for segment in ax.collections[-1].get_segments()]
    assert [[low[1], high[1]] for low, high in ends] == [[0.1, 0.15], [0.0, 0.02]]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_the_figure_puts_infinite_differences_at_the_edge(value: float) -> None:
    (ax,) = drawn([row("worse", difference=value, low=value, high=value)]).axes
    edge = ax.get_ylim()[1 if value > 0 else 0]
    assert any(line.get_ydata()[0] == edge for line in ax.lines)


def test_the_figure_of_nothing_is_empty(tmp_path: Path) -> None:
    nothing = Comparison("all", "all", math.nan, "", "not comparable", reason="seed 1 instead of 0")
    files = write_differences(check_of(nothing), tmp_path / "gate")
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with runs 'good' and 'bad', and the baseline of the good one."""
    Made().write(tmp_path / "good")
    Made({"ef": (5.0, 6.0, 7.0, 8.0)}).write(tmp_path / "bad")
    assert main(check_command(tmp_path, "good", "--update-baseline")) == 0
    return tmp_path


def check_command(folder: Path, run: str, *more: str) -> list[str]:
    return ["check", str(folder / run), "--baseline", str(folder / "baseline.csv"), *more]


def test_the_command_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(check_command(folder, "good")) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Gate passed for digits-mlp: 4 same")
    assert kinds(folder / "good" / "figures") == ["differences.png", "differences.svg"]


def test_the_command_fails_with_what_is_worse(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "baseline.csv").read_bytes()
    outputs = ("junit", "markdown", "figure")
    options = [part for name in outputs for part in (f"--{name}", str(folder / f"gate-{name}"))]
    assert main(check_command(folder, "bad", *options)) == 1
    output = capsys.readouterr().out
    assert "worse" in output
    assert "--update-baseline" in output.splitlines()[-1]
    assert (folder / "baseline.csv").read_bytes() == before
    for name in ("gate-junit", "gate-markdown"):
        assert "worse" in (folder / name).read_text(encoding="utf-8")
    assert {"gate-figure.png", "gate-figure.svg"} <= set(kinds(folder))
    assert not (folder / "bad" / "figures").exists()
    assert main(check_command(folder, "bad", "--tolerance", "5")) == 0


def test_an_update_prints_the_diff_and_lets_the_run_pass(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(check_command(folder, "bad", "--update-baseline")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "-first,ef,1e-12,0,0.5,1,yes,0.5" in lines
    assert "+first,ef,1e-12,0,5,0.1,yes,0.5" in lines
    assert main(check_command(folder, "bad")) == 0
    assert main(check_command(folder, "bad", "--update-baseline")) == 0
    assert "up to date" in capsys.readouterr().out


BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no run": ("none", (), "none"),
    "no baseline": ("good", ("--baseline", "{tmp}/none.csv"), "--update-baseline"),
    "a table for a baseline": (
        "good",
        ("--baseline", "{tmp}/good/scores.csv"),
        "# evalkit baseline: 1",
    ),
    "tolerance no number": ("good", ("--tolerance", "low"), "'low'"),
    "negative tolerance": ("good", ("--tolerance", "-1"), "tolerance"),
    "two jobs at once": ("good", ("--update-baseline", "--junit", "x"), "--junit"),
    "nowhere to write": ("good", ("--junit", "{tmp}/none/gate.xml"), "none/gate.xml"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_input_is_one_sentence(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run, more, hint = BAD[name]
    capsys.readouterr()
    given = [part.format(tmp=folder) for part in more]
    command = check_command(folder, run)
    if "--baseline" in given:  # an option counts once
        place = command.index("--baseline")
        del command[place : place + 2]
    assert main([*command, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evalkit: error: ")
    assert hint in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_help_shows_examples_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    output = capsys.readouterr().out
    assert "Examples:" in output
    assert "0 no regression, 1 regression or not comparable, 2 unusable input" in output


def test_a_baseline_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run"]) == 2
    assert "--baseline" in capsys.readouterr().err

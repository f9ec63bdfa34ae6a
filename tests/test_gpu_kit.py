"""The kit for a GPU ends in time, goes on where it stopped, and writes down what became of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.architectures import ARCHITECTURES, FULL, TINY
from tests.benchmarks.large import TITLE, Row, section
from tests.gpu.parts import REPORT, Kit, Part, parts
from tests.gpu.passed import outcomes
from tests.gpu.report import PARTS, TESTS, put, section_of_parts, section_of_tests
from tests.gpu.running import CUT_OFF, DONE, FAILED, LEFT_OUT, WAITING, Ended, Kept, run

ROOT = Path(__file__).parents[1]
TWO = """
def test_a(): pass
def test_b(): assert not __import__("os").environ.get("BROKEN")
def test_c(): __import__("pytest").skip("why")
"""


def kit(folder: Path, device: str = "cpu", scale: str = TINY) -> Kit:
    return Kit(device, scale, folder, 1)


def part(name: str, program: str, *needs: str, seconds: int = 20) -> Part:
    return Part(name, lambda kit: ["-c", program.replace("DIR", str(kit.folder))], seconds, needs)


def test_parts_end_in_time_and_are_gone_on_with(tmp_path: Path) -> None:
    again = "import time, pathlib as p; d = p.Path('DIR/begun'); b = d.exists(); d.touch()"
    chosen = [
        part("good", "open('DIR/count', 'a').write('1')"),
        part("bad", "raise SystemExit('a | b')"),
        part("lacking", "", "no_such_package"),
        part("long", f"{again}; time.sleep(0 if b else 60)", seconds=1),
    ]
    kept = Kept(tmp_path, "here")
    run(chosen, kit(tmp_path), kept, 60)
    found = {name: one.state for name, one in kept.ended.items()}
    assert found == {"good": DONE, "bad": FAILED, "lacking": LEFT_OUT, "long": CUT_OFF}
    assert kept.ended["bad"].told.endswith("ends: a / b")
    assert kept.ended["lacking"].told == "without no_such_package"
    kept = Kept(tmp_path, "here")
    run(chosen[::3], kit(tmp_path), kept, 60)
    assert kept.ended["long"].state == DONE
    assert (tmp_path / "count").read_text() == "1"
    assert Kept(tmp_path, "another machine").fresh


def test_a_part_does_not_begin_without_time(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "here")
    run([part("late", "")], kit(tmp_path), kept, 1)
    assert kept.ended["late"].state == WAITING
    assert "| late | not begun |  | no time was left |" in section_of_parts(
        [*kept.ended.values()], ""
    )


def test_tests_that_passed_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_two.py").write_text(TWO)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = tmp_path / "tests.tsv"

    def tested() -> str:
        start = [sys.executable, "-m", "pytest", "-p", "tests.gpu.passed", "--passed", str(kept)]
        options = ["-q", "-p", "no:cacheprovider", "test_two.py"]
        return subprocess.run(
            [*start, *options], cwd=tmp_path, capture_output=True, text=True
        ).stdout

    monkeypatch.setenv("BROKEN", "yes")
    assert "1 failed, 1 passed, 1 skipped" in tested()
    wanted = {"test_two.py::test_a": "passed", "test_two.py::test_c": "skipped"}
    assert outcomes(kept) == {**wanted, "test_two.py::test_b": "failed"}
    assert "- failed: `test_two.py::test_b`" in section_of_tests(outcomes(kept), "here")
    monkeypatch.delenv("BROKEN")
    assert "1 passed, 2 deselected" in tested()
    assert outcomes(kept) == {**wanted, "test_two.py::test_b": "passed"}
    assert "| test_two | 2 | 1 | 0 |" in section_of_tests(outcomes(kept), "here")


def test_sections_take_their_places_and_that_of_the_parts_is_last(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    for state in (CUT_OFF, DONE):
        put(
            report,
            section_of_tests({"a.py::b": "passed"}, "x"),
            section_of_parts([Ended("p", state)], "x"),
        )
        row = Row("T5", "ef", 0, "a card", 3, 0.01, 1.8, 1, 2048.0)
        put(report, section([row, Row("T5", "ef", 2, "a card", 3, 0.01, None, 1, None)], FULL))
        put(report, section_of_parts([Ended("p", state)], "x"))
    text = report.read_text()
    places = [text.index(title) for title in (TESTS, TITLE, PARTS)]
    assert places == sorted(places)
    assert [text.count(title) for title in (TESTS, TITLE, PARTS)] == [1, 1, 1]
    assert "| T5 | 3 | ef | whole | 10 | 1.8 | 180 | 2 | 3 |" in text
    assert "| T5 | 3 | ef | 2 | 10 | does not fit |  |  |  |" in text
    assert "| p | done |" in text


def test_figures_of_a_rehearsal_stay_out_of_the_reports(tmp_path: Path) -> None:
    for device, scale in (("cpu", FULL), ("cuda", TINY), ("other", FULL)):
        assert kit(tmp_path, device, scale).report.parent == tmp_path
    assert kit(tmp_path, "cuda", FULL).report == REPORT


def test_every_test_of_a_card_is_in_a_part(tmp_path: Path) -> None:
    named = " ".join(word for one in parts(FULL) for word in one.command(kit(tmp_path)))
    files = [path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py")]
    assert len(files) >= 7
    assert [name for name in files if f"tests/cuda/{name}" not in named] == []


def test_the_papers_architectures_have_its_parameters() -> None:
    """On no device, so that nothing is allocated; the head of ViT is beside the paper's count."""
    import torch

    counts = {}
    for one in ARCHITECTURES:
        with torch.device("meta"):
            found = one.make(FULL, "meta").model
        trained = {n: p.numel() for n, p in found.named_parameters() if p.requires_grad}
        head = sum(count for name, count in trained.items() if "classifier" in name)
        counts[one.name] = sum(trained.values()) - head
    assert counts == {
        "T5-base, LoRA": 884_736,
        "T5-base, prompt": 15_360,
        "ViT-B/16, LoRA": 313_344,
    }

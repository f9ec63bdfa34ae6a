"""``evalkit status``: what is done, running, left and failed, by process, and the time left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.storage import locks, run_status
from evalkit.storage.lost_rows import lost_rows
from evalkit.storage.run_folder import read_run
from evalkit.storage.writers import read_record
from evalkit.study.store import Store
from tests.support.drawn_units import rows_of, store, units
from tests.support.refusals import sentence


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def two(run: Path) -> Iterator[list[Store]]:
    """Provide two processes: the first stored a batch and scores one, the other failed."""
    several = [store(run, name) for name in ("rank-0000", "rank-0001")]
    first, second, third, _ = units()
    several[0].beginning(first)
    several[0].put(first, rows_of(first))
    several[0].beginning(second)
    several[1].fail(third, "checkpoint 'step-2', batch 0: expected memory, found none")
    yield several
    for one in several:
        one.release()


def status(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["status", str(run), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def snapshot(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }


def test_what_is_done_running_left_and_failed(
    run: Path, two: list[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    found = status(run, capsys)
    counts = [found[name] for name in ("total", "done", "running", "left", "failed")]
    assert counts == [4, 1, 1, 1, 1]
    assert found["reasons"] == {"expected memory, found none": 1}
    first, second = found["processes"]
    assert (first["writer"], first["state"], first["done"]) == ("rank-0000", "running", 1)
    assert (first["checkpoint"], first["batch"]) == ("step-1", 1)
    assert first["seconds_running"] >= 0
    assert (second["writer"], second["done"], second["failed"]) == ("rank-0001", 0, 1)
    assert second["checkpoint"] is None
    each = found["seconds_per_batch"]
    assert found["seconds_left"] == pytest.approx(each * 2 / 2)
    assert snapshot(run) == before


def test_a_process_that_was_killed_is_gone(
    run: Path, two: list[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    for lock in two[0]._writer._locks:
        lock.release()
    found = status(run, capsys)
    assert [one["state"] for one in found["processes"]] == ["gone", "running"]
    assert (found["running"], found["left"]) == (0, 2)
    two[1].close(1.0)
    found = status(run, capsys)
    assert [one["state"] for one in found["processes"]] == ["gone", "ended"]
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "1 of 4 batches done, 0 running, 2 left, 1 failed" in " ".join(said.split())
    assert "Nothing runs; the same 'evalkit score' command goes on" in said


def test_a_clock_that_was_set_back_does_not_matter(
    run: Path, two: list[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "parts" / "rank-0000" / "writer.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "since": "2999-01-01T00:00:00+00:00"}))
    first = status(run, capsys)["processes"][0]
    assert (first["state"], first["seconds_running"]) == ("running", 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"units": -1, "seconds": "x", "since": 3, "pid": 1e3}', '{"batch": true}'],
)
def test_a_record_of_another_form_is_read_as_far_as_it_goes(
    run: Path, two: list[Store], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "parts" / "rank-0000" / "writer.json").write_text(text)
    found = status(run, capsys)
    assert (found["done"], found["running"], found["failed"]) == (1, 0, 1)
    assert main(["status", str(run)]) == 0


def test_a_process_alone_and_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = store(run)
    for unit in units()[:2]:
        alone.put(unit, rows_of(unit))
    alone.beginning(units()[2])
    found = status(run, capsys)
    (one,) = found["processes"]
    assert (one["writer"], one["state"], one["done"]) == ("alone", "running", 2)
    assert main(["status", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 batches done, 1 running, 1 left, 0 failed; about" in said
    assert "step-2, batch 0" in said
    for unit in units()[2:]:
        alone.put(unit, rows_of(unit))
    alone.close(1.0)
    found = status(run, capsys)
    assert (found["done"], found["processes"]) == (4, [])
    assert found["finished"] is not None


def test_without_locks_the_state_is_unknown(
    run: Path,
    two: list[Store],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(locks, "fcntl", None)
        found = status(run, capsys)
    assert {one["state"] for one in found["processes"]} == {"unknown"}


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = sentence(capsys, ["status", str(tmp_path / "none")])
    assert "expected a run folder" in text
    assert "expected run.json" in sentence(capsys, ["status", str(tmp_path)])


def test_reports_tell_what_failed_by_reason(run: Path) -> None:
    first, *others = units()
    one = store(run)
    one.put(first, rows_of(first))
    for number, unit in enumerate(others):
        place = f"checkpoint '{unit.cell.checkpoint}', batch {unit.cell.batch}: "
        one.fail(unit, f"{place}expected memory" if number else f"{place}expected\na file")
    one.close(1.0)
    assert lost_rows(read_run(run)) == (
        "3 batches were not scored, or not by every method, and what lacks is in no mean: 2 x "
        "'expected memory', 1 x 'expected a file'; the same 'evalkit score' command tries again"
    )
    from evalkit.report.page.render import _summary

    assert "3 batches were not scored" in _summary(read_run(run), str)["failed_cells"]


def test_status_reads_processes_before_tables(
    run: Path, two: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends between the two counts once, as done."""
    read = run_status.read_all

    def put_first(folder: Path) -> Any:
        two[0].put(units()[1], rows_of(units()[1]))
        return read(folder)

    monkeypatch.setattr(run_status, "read_all", put_first)
    found = run_status.run_status(run)
    assert (found.done, found.running, found.left, found.failed) == (2, 0, 1, 1)
    assert read_record(run / "parts" / "rank-0000") is not None

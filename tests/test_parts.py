"""A RUN that several processes write: its parts, their union, and what becomes of both."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import EvalkitError
from evalkit.storage import locks
from evalkit.storage.run_folder import finished_cells, read_provenance, read_run
from evalkit.storage.writers import WRITER_FILE, Writer, nobody_writes, opening
from evalkit.study.store import Store
from tests.support.drawn_units import left, provenance, rows_of, store, units
from tests.support.refusals import refusal


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def write_alone(run: Path) -> dict[str, bytes]:
    with store(run) as one:
        for unit in units():
            one.put(unit, rows_of(unit))
        one.close(1.0)
    return tables(run)


def tables(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(run).items() if name.endswith(".csv")}


def test_parts_become_the_tables_of_one_process(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run = tmp_path / "run"
    several = [store(run, name) for name in ("rank-0001", "rank-0000")]
    for number, unit in enumerate(units()):
        several[number % 2].put(unit, rows_of(unit))
        assert len(finished_cells(run)) == number + 1
    several[0].close(1.0)
    assert (run / "parts").is_dir()
    assert len(read_run(run).scores) == 16
    several[1].close(1.0)
    assert tables(run) == whole
    assert read_provenance(run)["finished"] is not None
    assert sorted(path.name for path in run.iterdir()) == ["batches.csv", "run.json", "scores.csv"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Provide the tables that a process alone writes."""
    return write_alone(tmp_path_factory.mktemp("whole"))


class Killed(BaseException):
    """What ends a process in the middle of something."""


def kill(one: Store) -> None:
    """Free the locks of a store and do nothing else, as the kernel does."""
    for lock in one._writer._locks:
        lock.release()
    one._writer._locks = []


def tear(place: Path, before: dict[str, int], draw: random.Random) -> None:
    """Cut what was appended last, at some byte: scores are written first, batches then."""
    sizes = {name: (place / name).stat().st_size for name in before}
    total = sum(sizes[name] - before[name] for name in before)
    kept = draw.randrange(total + 1)
    for name in before:
        here = min(kept, sizes[name] - before[name])
        os.truncate(place / name, before[name] + here)
        kept -= here


def interrupted_start(run: Path, draw: random.Random) -> None:
    """Let one or several processes put some units, in some order, and some of them be killed."""
    names = draw.choice([[None], ["rank-0000"], ["rank-0000", "rank-0001"], ["shard-1-of-3"]])
    several = [store(run, name) for name in names]
    for one in several:
        mine = list(left(one))
        draw.shuffle(mine)
        for unit in mine[: draw.randrange(len(mine) + 1)]:
            one.beginning(unit)
            if draw.random() < 0.2:
                one.fail(unit, "out of\nmemory")
                continue
            one.hold()
            place = one._writer.place
            before = {name: (place / name).stat().st_size for name in TORN}
            one.put(unit, rows_of(unit))
            if draw.random() < 0.2:
                tear(place, before, draw)
                kill(one)
                break
        else:
            if draw.random() < 0.5:
                one.close(1.0)
        kill(one)


TORN = ("scores.csv", "batches.csv")


def stopped_close(run: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last process be killed while it puts the tables together, or removes the parts."""
    left_over = iter(range(draw.randrange(6)))
    replace = os.replace

    def may_end(*_: Any) -> None:
        if next(left_over, None) is None:
            raise Killed

    def replaced(source: Any, target: Any) -> None:
        may_end()
        replace(source, target)

    def removed(folder: Path, ignore_errors: bool = False) -> None:
        for path in sorted(folder.rglob("*"), key=lambda _: draw.random()):
            if path.is_file() and draw.random() < 0.5:
                path.unlink()
        raise Killed

    one = store(run, "rank-0009")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        patch.setattr(shutil, "rmtree", removed)
        with contextlib.suppress(Killed):
            one.close(1.0)
    kill(one)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_order_and_the_interruptions_the_bytes_are_the_same(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    run = tmp_path / "run"
    for _ in range(draw.randrange(1, 5)):
        interrupted_start(run, draw)
        if run.exists() and draw.random() < 0.5:
            cells = finished_cells(run)
            stopped_close(run, draw, monkeypatch)
            assert finished_cells(run) == cells
    last = store(run, draw.choice([None, "rank-0000"]))
    for unit in left(last):
        last.put(unit, rows_of(unit))
    last.hold()
    if draw.random() < 0.5:
        stopped = tmp_path / "run"
        kill(last)
        stopped_close(stopped, draw, monkeypatch)
        last = store(run, "rank-0004")
    last.close(1.0)
    assert tables(run) == whole
    assert read_provenance(run)["finished"] is not None
    assert sorted(path.name for path in run.iterdir()) == ["batches.csv", "run.json", "scores.csv"]


def test_what_failed_is_told_until_it_is_scored(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run = tmp_path / "run"
    first, *others = units()
    several = [store(run, name) for name in ("rank-0000", "rank-0001")]
    several[0].fail(first, "expected memory,\nfound none")
    for unit in others:
        several[1].put(unit, rows_of(unit))
    for one in several:
        one.close(1.0)
    assert (run / "failures.csv").read_text() == (
        'checkpoint,step,progress,batch,reason\nstep-1,1,0.5,0,"expected memory, found none"\n'
    )
    assert not (run / "parts").exists()
    assert read_provenance(run)["finished"] is None
    assert len(read_run(run).failures) == 1
    again = store(run)
    assert left(again) == (first,)
    again.put(first, rows_of(first))
    assert read_run(run).failures.empty
    again.close(1.0)
    assert tables(run) == whole


def test_parts_stay_while_units_are_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = store(run, "shard-1-of-2")
    one.put(units()[0], rows_of(units()[0]))
    one.close(1.0)
    assert (run / "parts" / "shard-1-of-2").is_dir()
    assert finished_cells(run) == {("step-1", 0)}


def test_a_second_start_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    alone = store(run)
    alone.put(units()[0], rows_of(units()[0]))
    who = f"process {os.getpid()} on "
    for name in (None, "rank-0000"):
        text = refusal(lambda n=name: store(run, n))
        assert f"found '{run}' written by {who}" in text
        assert "wait until it has ended, end it first, or choose another folder" in text
    alone.release()
    rank = store(run, "rank-0000")
    assert f"written by rank-0000, {who}" in refusal(lambda: store(run))
    assert "'rank-0000' no other process writes" in refusal(lambda: store(run, "rank-0000"))
    other = store(run, "rank-0001")
    rank.release()
    other.release()
    store(run).release()


def test_a_run_that_appears_meanwhile_is_joined_or_refused(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run, unit = tmp_path / "run", units()[0]
    early, callback = store(run), Store(run, provenance())
    write_alone(run)
    assert "another process has made meanwhile" in refusal(
        lambda: callback.put(unit, rows_of(unit))
    )
    early.put(unit, rows_of(unit))
    assert left(early) == ()
    early.close(1.0)
    assert tables(run) == whole


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 101])
def test_a_writer_has_the_name_of_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvalkitError, match="expected a writer named by letters"):
        store(tmp_path / "run", name)


def put_some(run: Path, name: str | None, ready: Any, told: Any) -> None:
    ready.wait()
    try:
        with store(run, name) as one:
            for unit in units():
                one.put(unit, rows_of(unit))
            one.close(1.0)
            told.put("done")
    except EvalkitError as error:
        told.put(str(error))


@pytest.mark.parametrize("names", [(None, None), ("rank-0000", "rank-0001")])
def test_two_processes_open_a_new_folder_at_once(
    tmp_path: Path, whole: dict[str, bytes], names: tuple[str | None, str | None]
) -> None:
    fork = multiprocessing.get_context("fork")
    ready, told = fork.Barrier(2), fork.Queue()
    run = tmp_path / "run"
    both = [fork.Process(target=put_some, args=(run, name, ready, told)) for name in names]
    for process in both:
        process.start()
    said = sorted(told.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    # Whoever comes second while the first is alone and writes is refused.
    assert said[0] == "done"
    assert said[1] == "done" or (names[0] is None and "expected a run folder" in said[1])
    assert tables(run) == whole


def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    run = tmp_path / "run"
    one = store(run)
    one.put(units()[0], rows_of(units()[0]))
    assert "has no locks" in one.notes[0]
    one.release()


def test_a_full_disk_leaves_whole_lines_and_the_unit_can_be_put_again(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first, second, *_ = units()
    one = store(run)
    one.put(first, rows_of(first))
    before = tables(run)
    for number in range(2):
        calls = iter(range(number))

        def full(descriptor: int, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "No space left on device" in refusal(lambda: one.put(second, rows_of(second)))
        assert tables(run) == before
    for unit in units()[1:]:
        one.put(unit, rows_of(unit))
    one.close(1.0)
    assert tables(run) == whole


def test_a_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = store(run, "rank-0000")
    one.put(units()[0], rows_of(units()[0]))
    path = run / "parts" / "rank-0000" / "scores.csv"
    path.write_text(path.read_text().replace("sgd", "sgd,", 1))
    assert str(path) in refusal(lambda: read_run(run))


def test_checkpoints_that_were_added_place_the_rows_of_parts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = store(run, "rank-0000")
    for unit in units():
        one.put(unit, rows_of(unit))
    kill(one)
    one.note({"checkpoints": [{"name": "step-1", "step": 5, "progress": 0.25}]})
    assert set(read_run(run).batches["progress"]) == {0.25, 1.0}


def test_a_writer_that_cannot_tidy_up_frees_its_locks_all_the_same(tmp_path: Path) -> None:
    """A folder in the place of a file cannot be unlinked, as nothing can on a full or lost disk."""
    (tmp_path / WRITER_FILE).mkdir()
    (tmp_path / WRITER_FILE / "kept").touch()
    for _ in range(2):
        writer = Writer(tmp_path, None)
        with opening(tmp_path):
            writer.begin()
        writer.end()
        assert not writer.writes
    with opening(tmp_path), nobody_writes(tmp_path) as free:
        assert free

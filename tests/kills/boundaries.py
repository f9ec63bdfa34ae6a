"""A store that is killed, or gets an error, at every change of a file: does it go on?"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from evalkit.errors import EvalkitError
from evalkit.storage.run_folder import finished_cells, read_provenance
from tests.support.drawn_units import left, rows_of, store, units
from tests.support.killed import before_changes, contents, copies

WRITERS = (None, "rank-0000", "shard-1-of-2")
Work = Callable[[Path], None]


class Killed(BaseException):
    """Ends a process in the middle of something."""


def finish(run: Path, writer: str | None = None) -> None:
    """Put what is left, as a start does that nothing ends."""
    with store(run, writer) as one:
        for unit in left(one):
            one.beginning(unit)
            one.put(unit, rows_of(unit))
        one.close(1.0)


def halves(run: Path) -> None:
    """Let two processes put a half each, one of which fails a unit at first, and close."""
    several = [store(run, name) for name in ("rank-0000", "rank-0001")]
    try:
        for number, unit in enumerate(units()):
            one = several[number % 2]
            one.beginning(unit)
            if number == 2:
                one.fail(unit, "expected memory, found none; buy some")
            one.put(unit, rows_of(unit))
        for one in several:
            one.close(1.0)
    finally:
        for one in several:
            one.release()


def check_kills(work: Work, folder: Path, whole: dict[str, bytes], every: int = 1) -> int:
    """Kill a work at its changes, go on, and compare; some of what goes on is killed as well.

    Args:
        work: writes the whole run.
        folder: empty.
        whole: the tables that it must end with.
        every: 1 for each of the states that a kill may leave, 2 for half of them, ...

    Returns:
        How many states it went on from.

    Raises:
        AssertionError: a finished cell is lost, or a table differs.
    """
    draw = random.Random(0)
    taken = copies(folder / "run", lambda: work(folder / "run"), folder)
    check_whole(folder / "run", whole)
    done: set[tuple[str, int]] = set()
    for number, run in enumerate(taken):
        if number % every:
            continue
        known = cells(run)
        assert known >= done, f"{run.name} has lost {done - known}"
        done = known
        if number % 24:
            finish(run, draw.choice(WRITERS))
        else:
            place = folder / f"again-{number}"
            again = draw.choice(copies(run, lambda run=run: finish(run), place))  # type: ignore[misc]
            assert cells(again) >= known, f"{again.name} has lost {known - cells(again)}"
            finish(again)
            check_whole(again, whole)
            shutil.rmtree(place)
        check_whole(run, whole)
    return len(taken[::every])


def check_errors(work: Work, folder: Path, whole: dict[str, bytes], every: int = 1) -> int:
    """Let a disk be full, or an interrupt come, in place of a change; the same process goes on.

    Args:
        work, folder, whole, every: as of :func:`check_kills`, of the changes.

    Returns:
        How many changes failed.

    Raises:
        AssertionError: the error is not told, or a table differs.
    """
    numbers = (number for number in range(10_000) if number % every == 0)
    for count, (number, kind) in enumerate(_kinds(numbers)):
        run = folder / f"{kind.__name__}-{number}"
        if (told := _ended(work, run, number, kind)) is None:
            return count
        assert "No space left on device" in told, told
        finish(run)
        check_whole(run, whole)
        shutil.rmtree(run)
    raise AssertionError("the work does not end")


def _kinds(numbers: Iterator[int]) -> Iterator[tuple[int, type[BaseException]]]:
    for place, number in enumerate(numbers):
        yield number, (Killed, OSError)[place % 2]


def _ended(work: Work, run: Path, number: int, kind: type[BaseException]) -> str | None:
    """Return what ended a work whose change of this number failed, None where it has fewer."""
    calls = iter(range(number))
    failed = False

    def tell() -> None:
        nonlocal failed
        if not failed and next(calls, None) is None:
            failed = True
            raise kind(28, "No space left on device")

    try:
        with before_changes(tell):
            work(run)
    except (Killed, EvalkitError, OSError) as error:
        return str(error)
    return "No space left on device, and it went on" if failed else None


def check_whole(run: Path, whole: dict[str, bytes]) -> None:
    """Check the files of a run that has come to its end.

    Raises:
        AssertionError: they are not those of a run that nothing interrupted.
    """
    found = contents(run)
    found.pop("run.json")
    assert found == whole, f"{run.name}: {', '.join(found)} differ from {', '.join(whole)}"
    provenance = read_provenance(run)
    assert provenance["finished"] is not None
    assert provenance["seconds"] >= 0


def whole_tables(run: Path) -> dict[str, bytes]:
    """Return the tables of a run that nothing interrupts."""
    finish(run)
    return {name: data for name, data in contents(run).items() if name != "run.json"}


def cells(run: Path) -> set[tuple[str, int]]:
    """Return the finished cells of a run, none where there is no run yet."""
    return finished_cells(run) if (run / "run.json").exists() else set()

"""Runs parts in processes of their own, each for so long at most, and keeps what became of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from tests.gpu.parts import Kit, Part

ROOT = Path(__file__).parents[2]
DONE, FAILED, CUT_OFF, LEFT_OUT, WAITING = "done", "failed", "cut off", "left out", "not begun"
_ENDING = 10.0
"""Seconds that a part has to end by itself once it is interrupted."""
_LEAST = 5.0
"""Seconds that must be left for a part to begin."""


@dataclass(frozen=True)
class Ended:
    """What became of a part.

    Attributes:
        part: its name.
        state: one of those above.
        seconds: that it took, over all starts.
        told: why it is not done, empty where it is.
    """

    part: str
    state: str
    seconds: float = 0.0
    told: str = ""


class Kept:
    """What became of the parts on one machine, in a file; another machine begins anew.

    Args:
        folder: of the kit.
        where: the machine, its device and its packages.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self._path, self._where = folder / "parts.json", where
        self.ended: dict[str, Ended] = {}
        if self._path.exists():
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if known["where"] == where:
                self.ended = {one["part"]: Ended(**one) for one in known["ended"]}
        self.fresh = not self.ended

    def add(self, ended: Ended) -> None:
        """Keep what became of a part."""
        self.ended[ended.part] = ended
        kept = {"where": self._where, "ended": [asdict(one) for one in self.ended.values()]}
        self._path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def of(self, part: Part) -> Ended:
        """Return what became of a part so far."""
        return self.ended.get(part.name, Ended(part.name, WAITING))


def missing(needs: Sequence[str], site: Path | None) -> list[str]:
    """Return the packages that are neither installed nor carried."""
    places = [*sys.path, *([str(site)] if site else [])]
    return [name for name in needs if PathFinder.find_spec(name, places) is None]


def run(
    chosen: Sequence[Part],
    kit: Kit,
    kept: Kept,
    limit: float,
    site: Path | None = None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run the parts that are not done, one after another, as long as there is time.

    Args:
        chosen: in their order.
        kit: how they are run.
        kept: what became of them before; what becomes of them is added.
        limit: seconds for all of them.
        site: where carried packages are.
        after: called after each part.
    """
    until = time.monotonic() + limit
    for part in chosen:
        before = kept.of(part)
        if before.state == DONE:
            continue
        lacking = missing(part.needs, site)
        left = until - time.monotonic()
        if lacking:
            kept.add(Ended(part.name, LEFT_OUT, before.seconds, f"without {', '.join(lacking)}"))
        elif left < _LEAST + _ENDING:
            if before.state == WAITING:
                kept.add(Ended(part.name, WAITING, 0.0, "no time was left"))
        else:
            most = min(part.seconds, left - _ENDING)
            print(f"{part.name}, at most {most:.0f} s ...", flush=True)
            kept.add(_run(part, kit, most, before.seconds, site))
            print(f"  {kept.of(part).state} {kept.of(part).told}".rstrip(), flush=True)
        after()


def _run(part: Part, kit: Kit, most: float, before: float, site: Path | None) -> Ended:
    """Run one part and return what became of it."""
    log = kit.folder / (re.sub(r"\W+", "-", part.name) + ".log")
    places = [str(ROOT), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command(kit)],
            cwd=ROOT,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(most)
        except subprocess.TimeoutExpired:
            status = None
            _end(process)
        except KeyboardInterrupt:
            _end(process)
            raise
    took = before + time.monotonic() - start
    if status is None:
        return Ended(part.name, CUT_OFF, took, f"after {most:.0f} s; the next start goes on")
    if status == 0:
        return Ended(part.name, DONE, took)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    print(*lines[-15:], sep="\n", flush=True)
    told = lines[-1][:120].replace("|", "/") if lines else "nothing"
    return Ended(part.name, FAILED, took, f"status {status}, {log.name} ends: {told}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a part and all that it has started; end what does not end by itself."""
    for sent in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(_ENDING if sent == signal.SIGINT else None)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

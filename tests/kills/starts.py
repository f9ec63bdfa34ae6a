"""A small study in a folder, and how processes that score it are started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from evalkit.errors import EvalkitError
from evalkit.storage.run_folder import finished_cells, read_provenance
from tests.support.small_studies import save_checkpoint

ROOT = Path(__file__).parents[2]
"""Where the task of a study finds the tests' own models, whatever folder a start is made in."""
CHECKPOINTS, BATCHES = 4, 6
TABLES = ("scores.csv", "batches.csv")
TASK = """
import time
import torch
import evalkit
from tests.support.small_studies import tensors

class Slow(torch.nn.Linear):
    \"\"\"Takes time, so that there is some to kill in.\"\"\"

    def forward(self, x):
        time.sleep(0.03)
        return super().forward(x)

def build():
    return Slow(8, 3)

task = evalkit.Task(model=build, data=tensors, name="small")
"""


class Starts:
    """Starts of one study.

    Args:
        folder: of the task, the checkpoints and the runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mine.py").write_text(TASK)
        for step in range(CHECKPOINTS):
            save_checkpoint(folder / "checkpoints", step)

    def command(self, run: str, *more: str) -> list[str]:
        """Return the command that scores into a run."""
        asked = ["-m", "evalkit", "score", str(self.folder / "checkpoints")]
        asked += ["--task", f"{self.folder / 'mine.py'}:task", "--batches", str(BATCHES)]
        asked += ["--batch-size", "8", "--methods", "sgd,ief,ef", "--damping", "1e-12,1e-3"]
        return [*asked, "--out", str(self.folder / run), *more]

    def alone(self, run: str, threads: int, *more: str) -> subprocess.Popen[str]:
        """Start a process, which forks others where it may have several threads."""
        return self._start([sys.executable, *self.command(run, *more)], threads)

    def torchrun(self, run: str, ranks: int) -> subprocess.Popen[str]:
        """Start ranks by torchrun."""
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
        launcher += [f"--master-port={free_port()}"]
        return self._start([sys.executable, *launcher, *self.command(run)], 1)

    def ranks(self, run: str, ranks: int) -> list[subprocess.Popen[str]]:
        """Start ranks as other launchers do, so that nobody ends them all when one is killed."""
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        return [
            self._start(
                [sys.executable, *self.command(run)],
                1,
                shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]

    def _start(
        self, command: list[str], threads: int, more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        environment |= dict(more or {})
        log = (self.folder / "log").open("a")
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )

    def write_whole(self) -> float:
        """Score into ``whole`` without an interruption, and return the seconds that it took."""
        began = time.monotonic()
        if self.alone("whole", 1).wait() != 0:
            raise SystemExit((self.folder / "log").read_text())
        return time.monotonic() - began

    def cells(self, run: str) -> set[tuple[str, int]]:
        """Return the finished cells of a run, none where there is no run yet."""
        folder = self.folder / run
        return finished_cells(folder) if (folder / "run.json").exists() else set()

    def is_finished(self, run: str) -> bool:
        """Return whether a run says that it has all that it was asked for."""
        try:
            return read_provenance(self.folder / run).get("finished") is not None
        except EvalkitError:
            return False

    def fault(self, run: str) -> str:
        """Return what differs from the run without an interruption, empty for nothing."""
        whole, found = self.folder / "whole", self.folder / run
        if not self.is_finished(run):
            return f"{run} is not finished"
        for name in TABLES:
            if (whole / name).read_bytes() != (found / name).read_bytes():
                return f"{run}/{name} differs"
        left = self.left(run)
        return f"{run} has {', '.join(left)} left" if left else ""

    def left(self, run: str) -> list[str]:
        """Return the names of what a run without an interruption does not have."""
        whole, found = (
            {path.name for path in (self.folder / name).iterdir()} for name in ("whole", run)
        )
        return sorted(found - whole)


def free_port() -> int:
    """Return a port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """Return the processes that one has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]

"""An empty environment outside of the repository, and what is read of the repository from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = "constraints.txt"
_WATCH = """
import os, sys

_log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def _watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path == {root!r} or path.startswith({root!r} + os.sep):
            os.write(_log, os.fsencode(path) + b"\\n")

sys.addaudithook(_watch)
"""
"""Notes every file and folder of the repository that Python opens, modules that it imports too."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment and an empty working folder beside it.

    Attributes:
        folder: that holds both, outside of the repository.
    """

    folder: Path

    @property
    def scripts(self) -> Path:
        """Where its python and its commands lie."""
        return self.folder / "venv" / "bin"

    @property
    def working(self) -> Path:
        """The folder that commands run in."""
        return self.folder / "working"

    @property
    def log(self) -> Path:
        """What was read of the repository, a line each."""
        return self.folder / "read.txt"

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, without a way that leads to the repository."""
        kept = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        return subprocess.run(
            [str(self.scripts / words[0]), *words[1:]],
            cwd=self.working,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *asked: str) -> None:
        """Install packages, in the versions that are tested together."""
        options = ("--quiet", "--disable-pip-version-check")
        pinned = ("--constraint", str(self.folder / CONSTRAINTS))
        done = self.run(("python", "-m", "pip", "install", *options, *pinned, *asked))
        if done.returncode:
            raise SystemExit(f"expected to install {' '.join(asked)}, found\n{done.stderr}")

    def reads(self) -> list[str]:
        """Return the files and folders of the repository that were read."""
        noted = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return sorted(set(noted.splitlines()))


def build_wheel(folder: Path) -> Path:
    """Build the source distribution, and from it the wheel, and return where that lies.

    Args:
        folder: of both, where those of before are removed.
    """
    for old in folder.glob("evalkit_fisher-*"):
        old.unlink()
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"expected to build a wheel, found\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def empty_environment(folder: Path, python: str) -> Environment:
    """Return an environment that holds pip alone, and watches what is read of the repository."""
    made = Environment(folder)
    made.working.mkdir()
    shutil.copy(ROOT / CONSTRAINTS, folder)
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    watch = _WATCH.format(log=str(made.log), root=str(ROOT))
    (packages / "sitecustomize.py").write_text(watch, encoding="utf-8")
    return made

"""The machine: what a result was computed with, and how its memory is used."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from signal import SIGKILL

_PACKAGES = ("torch", "numpy", "scipy", "pandas", "safetensors")
_PACKAGES_IN_USE = ("transformers", "peft", "datasets")
"""Of use to some tasks only."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on, by name."""
    used = [name for name in _PACKAGES_IN_USE if name in sys.modules]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in (*_PACKAGES, *used)},
    }


def _version(name: str) -> str:
    """Return what a package says of itself, or its metadata, which may leave out the build."""
    # Torch for a GPU says 2.13.0+cu130 where its metadata says 2.13.0.
    said = getattr(sys.modules.get(name), "__version__", None)
    return version(name) if said is None else str(said)


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the memory of the machine in GiB, None where the system does not tell it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def free_memory() -> int | None:
    """Return the bytes that this process may still take, None where the system does not tell it.

    They are what Linux holds available, files that it keeps in memory included, or the limit of the
    container where that is less.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        listed = Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1]
        found.append(int(listed.split()[0]) * 1024)
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def let_threads_sleep() -> None:
    """Let the threads of torch sleep while they wait, where torch is not loaded yet.

    Otherwise each looks for work without a pause, on cores that other threads and processes then
    wait for: beside a busy process the four scores of a small model take several times as long.
    """
    if "torch" not in sys.modules:  # OpenMP reads it when it is loaded
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def own_processes() -> int:
    """Return how many processes a command may use, as many as it has cores.

    It may where the process is its own, so that torch is not loaded yet, and can be forked.
    """
    if "torch" in sys.modules or sys.platform != "linux":
        return 1
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Let this process be ended when the one that forked it ends, on Linux."""
    set_death_signal = 1  # as prctl.h numbers it
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(set_death_signal, SIGKILL)


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, where the C library is glibc.

    Taking the memory of an activation from the system again, page by page, costs more than most of
    what is then done with it. glibc keeps blocks of up to 32 MiB, at most its largest threshold,
    and gives back what exceeds 512 MiB.
    """
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(trim_threshold, 512 << 20)
    mallopt(mmap_threshold, 32 << 20)


def gigabytes(count: int) -> str:
    """Return a number of bytes as sentences say it."""
    return f"{count / 2**30:.3g} GiB"

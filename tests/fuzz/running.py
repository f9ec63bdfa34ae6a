"""One input after another: made, read and judged; in a process of its own that may be ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evalkit.errors import EvalkitError
from tests.fuzz import guards
from tests.fuzz.archives import changed_weights
from tests.fuzz.mutations import changed_bytes, changed_json, changed_place, changed_table
from tests.fuzz.readers import READERS, Reader, whole_input

LONGEST = 3000
"""Letters of a sentence: paths are long, and everything that is quoted is cut."""
ALLOWED = 6 * 2**30
"""Bytes beyond what a process has, which no input may ask for."""
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".distcp", ".metadata")


@dataclass(frozen=True)
class Finding:
    """An input that was not read as it should be.

    Attributes:
        reader: that read it.
        number: of the input; with the seed it is made again.
        kind: what is the same of inputs that one fault explains.
        told: all of it.
    """

    reader: str
    number: int
    kind: str
    told: str


def make(reader: Reader, rng: random.Random, home: Path, folder: Path) -> str:
    """Write a changed input to a folder; returns what was changed."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / guards.OUTSIDE).mkdir(parents=True)
    (folder / guards.OUTSIDE / "secret.pt").write_bytes(b"secret")
    place = folder / "given"
    shutil.copytree(whole_input(reader.name, home), place, symlinks=True)
    told = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        told.append(_change(reader, rng, place))
    return ", ".join(told)


def _change(reader: Reader, rng: random.Random, place: Path) -> str:
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in files if not reader.only or path.name.endswith(reader.only)] or files
    if not files:
        return "nothing left to change"
    path = rng.choice(files)
    said = str(path.relative_to(place)).encode("utf-8", "backslashreplace").decode()
    if rng.random() < 0.06:
        return f"{changed_place(rng, path)} at {said}"
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(changed_json(rng, data))
    elif path.suffix == ".csv":
        path.write_bytes(
            changed_table(rng, data) if rng.random() < 0.85 else changed_bytes(rng, data)
        )
    elif path.name.endswith(_WEIGHTS) and rng.random() < 0.85:
        path.write_bytes(changed_weights(rng, data))
    else:
        path.write_bytes(changed_bytes(rng, data))
    return f"changed {said}"


def judge(reader: Reader, number: int, folder: Path) -> tuple[Finding | None, bool]:
    """Read a folder, and return what was wrong with how it was read, and whether it was taken."""
    np.random.seed(0)  # noqa: NPY002 (what libraries draw from)
    size = guards.size_of(folder)
    before = guards.forget_peak()
    finding, taken = None, False
    with warnings.catch_warnings(), guards.watched(folder / "given") as watch:
        warnings.simplefilter("ignore")
        try:
            reader.read(folder / "given")
            taken = True
        except EvalkitError as error:
            finding = _of_sentence(reader, number, str(error))
        except guards.Hang as error:
            finding = _of_error(reader, number, error, "hang")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            finding = _of_error(reader, number, error, type(error).__name__)
    if watch.offences:
        told = watch.offences[0].replace(str(folder), "FOLDER")
        finding = Finding(
            reader.name, number, f"offence: {told[:100]}", "; ".join(watch.offences[:5])
        )
    used = guards.peak() - before
    if finding is None and used > max(guards.ALWAYS, guards.FACTOR * size):
        told = f"{used / 2**20:.0f} MiB for a folder of {size / 2**20:.2f} MiB"
        finding = Finding(reader.name, number, "memory", told)
    return finding, taken


def _of_sentence(reader: Reader, number: int, text: str) -> Finding | None:
    wrong = "\n" in text or "Traceback" in text or len(text) > LONGEST or not text
    with contextlib.suppress(UnicodeEncodeError):
        text.encode("utf-8")
        if not wrong:
            return None
    return Finding(reader.name, number, f"sentence: {text[:60]!r}", text[:2000])


def _of_error(reader: Reader, number: int, error: BaseException, kind: str) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/evalkit/" in frame.filename]
    where = own[-1] if own else frames[-1]
    place = f"{where.filename.split('/evalkit/')[-1]}:{where.lineno}"
    if isinstance(error, AssertionError):
        place = str(error)[:160]
    told = "".join(traceback.format_exception(error))[-3000:]
    return Finding(reader.name, number, f"{kind} at {place}", told)


def run_one(
    reader: Reader, seed: int, number: int, home: Path, folder: Path
) -> tuple[Finding | None, bool]:
    """Make an input, read it, and return what was wrong, and whether it was taken."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    told = make(reader, rng, home, folder)
    found, taken = judge(reader, number, folder)
    if found is not None:
        found = Finding(found.reader, number, found.kind, f"{told}\n{found.told}")
    return found, taken


def _work(pipe: Any, name: str, seed: int, numbers: range, home: str) -> None:
    torch.set_num_threads(1)
    guards.bound_memory(ALLOWED)
    with guards.scratch() as scratch:
        for number in numbers:
            pipe.send(("begins", number))
            pipe.send(
                ("ends", run_one(READERS[name], seed, number, Path(home), Path(scratch) / "x"))
            )
    pipe.send(("done", None))
    pipe.close()


def run_reader(
    name: str, seed: int, count: int, home: Path
) -> Iterator[tuple[Finding | None, bool]]:
    """Yield what :func:`run_one` returns of each input; a crash ends another process than this."""
    whole_input(name, home)
    context = multiprocessing.get_context("fork")
    number = 0
    while number < count:
        ours, theirs = context.Pipe()
        numbers = range(number, min(count, number + 500))
        worker = context.Process(target=_work, args=(theirs, name, seed, numbers, str(home)))
        worker.start()
        theirs.close()
        try:
            while True:
                if not ours.poll((guards.WAITED + 2) * guards.SECONDS):
                    raise EOFError
                kind, value = ours.recv()
                if kind == "begins":
                    number = value
                elif kind == "ends":
                    yield value
                    number += 1
                else:
                    break
        except (EOFError, ConnectionResetError):
            alive = worker.is_alive()
            worker.kill()
            worker.join()
            told = "does not end" if alive else f"ends the process ({worker.exitcode})"
            yield Finding(name, number, told, told), False
            number += 1
        worker.join()
        ours.close()

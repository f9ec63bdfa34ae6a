"""How code of the user is run: its errors in one sentence, its random numbers from a seed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from evalkit.errors import EvalkitError, TooLittleMemoryError, memory_sentence

_MESSAGE_LENGTH = 200


@contextmanager
def user_code(what: str, file: str | Path | None = None) -> Iterator[None]:
    """Turn an exception of code that evalkit did not write into one sentence.

    Args:
        what: the code, as the sentence calls it (``"the model of task 'mine'"``).
        file: the file that the line number should refer to; default: where it was raised.

    Raises:
        EvalkitError: the code raised; errors that are sentences already pass unchanged.
    """
    try:
        yield
    except EvalkitError:
        raise
    except (Exception, SystemExit) as error:
        if (sentence := memory_sentence(error)) is not None:
            raise TooLittleMemoryError(sentence) from error
        message = " ".join(str(error).split())[:_MESSAGE_LENGTH] or "no message"
        place = _place(error, file)
        raise EvalkitError(
            f"expected {what} to run, found {type(error).__name__}: {message} ({place}); "
            "correct that code"
        ) from error


def _place(error: BaseException, file: str | Path | None) -> str:
    """Return ``file, line n`` for the innermost frame in ``file``, or the innermost frame."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == Path(file)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's ambient generators within the block and restore their state afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python; they are as they were afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (what collators draw from)
    with seeded(seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002

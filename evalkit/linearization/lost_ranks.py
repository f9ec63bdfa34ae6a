"""What is said where another process of a group is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from evalkit.errors import EvalkitError, shortened


class LostRankError(EvalkitError):
    """Another process of the group is gone: nothing can be asked of the others any more."""


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Say in one sentence that another process is gone or does not answer.

    Raises:
        LostRankError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        # The place in torch's own code, and what it guesses of causes, are left out.
        said = re.sub(r"^\[[^\]]*\] *", "", str(error).split("\n")[0]).split(". ")[0]
        raise LostRankError(
            "expected all processes of the group to go on together, found one that has ended or "
            f"does not answer ({shortened(said, 200)}); look at what it said, and start the "
            "command again"
        ) from error


def out_of_step(error: BaseException) -> LostRankError:
    """Return what is said once a call has ended half-way, so that others may wait within it."""
    return LostRankError(
        "expected all processes of the group to end a call together, found that this one left it "
        f"({type(error).__name__}); start the command again"
    )

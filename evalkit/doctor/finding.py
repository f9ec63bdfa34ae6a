"""What a check has found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from evalkit.errors import EvalkitError, memory_sentence, reason

Verdict = Literal["fail", "warn", "ok"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""From what stops a score, by what should be changed, to what is well."""


@dataclass(frozen=True)
class Finding:
    """What one check says.

    Attributes:
        name: what was looked at.
        verdict: ``"fail"``, it cannot be scored; ``"warn"``, it can, and something should be
            changed; or ``"ok"``.
        finding: one sentence of what was found.
        cure: what to do, empty where nothing is.
        numbers: what the sentence rests on, by name: numbers, texts, and lists of them.
    """

    name: str
    verdict: Verdict
    finding: str
    cure: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def refused(name: str, error: EvalkitError) -> Finding:
    """Return the finding that a refusal is: "expected X, found Y; do Z" has its cure at the end."""
    said, _, cure = str(error).rpartition("; ")
    return Finding(name, "fail", said or cure, cure if said else "")


def looked_at(name: str, check: Callable[[], Finding]) -> Finding:
    """Return what a check finds; what it raises is a finding too.

    Args:
        name: what the finding is called where the check raises.
        check: to be made.
    """
    try:
        return check()
    except EvalkitError as error:
        return refused(name, error)
    except Exception as error:  # of the model, of its data, or of the check itself
        if (sentence := memory_sentence(error)) is not None:
            return refused(name, EvalkitError(sentence))
        said = f"expected this check to run, found {reason(error)}"
        return Finding(name, "fail", said, "give the same command with --debug, and report it")

"""JSON objects in files that another program or a person may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError, shortened
from evalkit.storage.files import check_regular

DEEPEST = 64
"""Levels of nesting: far more than any file that is meant, far fewer than Python's stack."""
_LARGEST = 2**64


def read_object(path: Path, advice: str = "copy or save the file again") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        advice: the end of an error sentence.

    Raises:
        EvalkitError: the file cannot be read, or holds something else.
    """
    check_regular(path, advice)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EvalkitError(f"expected JSON in '{path}', found {_said(error)}; {advice}") from error
    return parse_object(text, path, advice)


def parse_object(text: str, path: Path, advice: str) -> dict[str, Any]:
    """Return the JSON object that a text holds.

    What it holds can be written, printed and calculated with: texts are Unicode, whole numbers have
    at most 64 bits, nothing is nested without end, and each name of an object stands there once.

    Args:
        text: the content.
        path: how errors call it.
        advice: the end of an error sentence.

    Raises:
        EvalkitError: it is something else.
    """
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise EvalkitError(f"expected JSON in '{path}', found {_said(error)}; {advice}") from error
    if not isinstance(content, dict):
        raise EvalkitError(
            f"expected a JSON object in '{path}', found {type(content).__name__}; {advice}"
        )
    _check(content, path, advice)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of two entries of one name it would depend on the reader which counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two entries {shortened(ascii(twice))} of one object")
    return made


def _said(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _check(content: dict[str, Any], path: Path, advice: str) -> None:
    """Refuse entries that Python reads, but that cannot be written, printed or calculated with."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and abs(value) >= _LARGEST:
                digits = f"one of about {int(value.bit_length() * 0.30103) + 1} digits"
                raise EvalkitError(
                    f"expected whole numbers of at most 64 bits in '{path}', found {digits}; "
                    f"{advice}"
                )
            elif isinstance(value, str) and not is_unicode(value):
                raise EvalkitError(
                    f"expected texts that are Unicode in '{path}', found "
                    f"{shortened(ascii(value))}; {advice}"
                )
        if not inner:
            return
        level = inner
    raise EvalkitError(
        f"expected at most {DEEPEST} levels of nesting in '{path}', found more; {advice}"
    )


def is_unicode(text: str) -> bool:
    """Return whether a text can be written in UTF-8: one with a lone surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(value: object) -> str:
    """Return a text, such as a path, with what UTF-8 cannot write as escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")

"""Types of the values that options hold, with errors that say what was found."""

from __future__ import annotations

from typing import Any

import click

from evalkit.errors import shortened


class CommaSeparated(click.ParamType):
    """Values separated by commas, each of one type, as a tuple.

    Args:
        kind: converts one value (``str`` or ``float``).
        name: how help and errors call the option's value.
    """

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        try:
            return tuple(self.kind(part) for part in parts)
        except ValueError:
            found = shortened(str(value))
            self.fail(f"expected numbers separated by commas, found '{found}'", param, ctx)


class Number(click.ParamType):
    """One number; the error says what was found.

    Args:
        kind: ``int`` or ``float``.
    """

    name = "number"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self.kind(value)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            self.fail(f"expected {wanted}, found '{shortened(str(value))}'", param, ctx)


class SettingText(click.ParamType):
    """``NAME=VALUE``, as a pair."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name.strip() or not equals:
            self.fail(f"expected NAME=VALUE, found '{value}'", param, ctx)
        return name.strip(), text.strip()


class PastText(click.ParamType):
    """``TASK=CHECKPOINT``, as a pair."""

    name = "TASK=CHECKPOINT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        task, _, path = str(value).partition("=")
        if not task.strip() or not path.strip():
            self.fail(
                f"expected a past task with its checkpoint, TASK=CHECKPOINT, found "
                f"'{shortened(str(value))}'",
                param,
                ctx,
            )
        return task.strip(), path.strip()

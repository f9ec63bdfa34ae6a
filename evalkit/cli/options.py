"""Option types that several commands share."""

from __future__ import annotations

from typing import Any

import click


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
            self.fail(f"expected numbers separated by commas, found '{value}'", param, ctx)


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
            self.fail(f"expected {wanted}, found '{value}'", param, ctx)

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


class Whole(click.ParamType):
    """A whole number; the error says what was found."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected a whole number, found '{value}'", param, ctx)


class Real(click.ParamType):
    """A number; the error says what was found."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return float(value)
        except ValueError:
            self.fail(f"expected a number, found '{value}'", param, ctx)

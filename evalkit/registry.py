"""Named things: added once, found by exact name, near names suggested otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from evalkit.errors import EvalkitError, shortened

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the part of an error sentence that helps with an unknown ``name``.

    Args:
        name: what the user wrote.
        known: the names that exist.

    Returns:
        ``did you mean 'x' or 'y'?`` for near names, otherwise the list of known names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(item) for item in near) + "?"
    return "known: " + ", ".join(names)


def unknown(kind: str, name: str, hint: str, extended: bool = False) -> EvalkitError:
    """Return the error that nothing of a kind has a name.

    Args:
        kind: what was looked for, as the sentence says it (``"method"``).
        name: what the user wrote.
        hint: the result of :func:`suggest`, or another part that helps.
        extended: whether files of the user add to the kind, so that one may not be imported yet.
    """
    if extended:
        hint += f"{'' if hint.endswith('?') else ';'} `import FILE` adds your own"
    return EvalkitError(f"unknown {kind} '{shortened(name)}'; {hint}")


class Registry(Generic[T]):
    """Named entries of one kind, in the order in which they were added.

    Args:
        kind: what an entry is, as error sentences say it (``"method"``).
        extended: whether files of the user add to it.
    """

    def __init__(self, kind: str, extended: bool = False) -> None:
        self.kind = kind
        self.extended = extended
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Add ``entry`` under ``name``.

        Raises:
            EvalkitError: the name is taken.
        """
        if name in self._entries:
            raise EvalkitError(
                f"expected a new {self.kind} name, found '{name}', which is registered already; "
                "choose another name"
            )
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            EvalkitError: there is none; near names are suggested.
        """
        if name not in self._entries:
            hint = suggest(str(name), self._entries)
            raise unknown(self.kind, str(name), hint, self.extended)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return every name, in the order in which they were added."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

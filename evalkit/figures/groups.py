"""Which methods share a panel: all of them, or a family each where there are many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from evalkit.names import MANY, by_family

REFERENCES = ("sgd", "ngd")
"""Methods that every panel shows, in grey where they are not what it is about."""


@dataclass(frozen=True)
class Group:
    """The methods of one panel.

    Attributes:
        title: what they have in common; empty for all methods.
        methods: what the panel is about.
        quiet: what it repeats in grey.
    """

    title: str
    methods: tuple[str, ...]
    quiet: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """All methods of the panel."""
        return self.methods + self.quiet


def groups_of(methods: Iterable[str]) -> tuple[Group, ...]:
    """Return the panels that methods are drawn in.

    One while there are at most :data:`evalkit.names.MANY`; else one for each family, and several
    even ones for a family with more, each with :data:`REFERENCES` where they were scored.

    Args:
        methods: as scored; repeated ones count once.
    """
    given = tuple(dict.fromkeys(methods))
    if len(given) <= MANY:
        return (Group("", given),)
    quiet = tuple(method for method in REFERENCES if method in given)
    groups = []
    for family, members in by_family(given).items():
        own = [method for method in members if method not in quiet]
        parts = math.ceil(len(own) / MANY)
        for part in range(parts):
            ends = (part * len(own) // parts, (part + 1) * len(own) // parts)
            title = family if parts == 1 else f"{family} ({part + 1} of {parts})"
            groups.append(Group(title, tuple(own[slice(*ends)]), quiet))
    return tuple(groups)

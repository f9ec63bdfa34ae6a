"""Numbers of things as sentences say them."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """Return a number of things: 1 sample, 1,437 samples, 20 batches."""
    return f"{count:,} {plural(count, thing)}"


def plural(count: int, thing: str) -> str:
    """Return what so many things are called, as where a verb or an adjective is beside them."""
    ending = "es" if thing.endswith(("tch", "ss")) else "s"
    return thing if count == 1 else f"{thing}{ending}"

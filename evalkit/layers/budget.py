"""How much of per-sample gradients is formed at a time: memory that buys time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How much is formed at a time, wherever per-sample gradients meet each other.

    Sums over blocks of another size differ in the last digit and in nothing else, so the defaults
    are the same on every machine; tests pass smaller ones, so that tiny cases have several blocks.

    Attributes:
        elements: float64 numbers in one intermediate array: 128 MiB.
        formed: numbers in gradients that are formed at once: 24 MiB in float32, which a process
            that keeps freed memory keeps.
        doubled: numbers that are brought to float64 at once: 8 MiB, so that they are multiplied
            from a cache.
        held: numbers in per-sample gradients that are formed and held at once: 512 MiB in float32.
        channels: output channels that a convolution on a CPU works on together.
        pair: multiplications of a matrix product that take as long as one of two rows that are
            gathered from a table, as those of embeddings are.
    """

    elements: int = 1 << 24
    formed: int = 6 << 20
    doubled: int = 1 << 20
    held: int = 1 << 27
    channels: int = 16
    pair: int = 16


BUDGET = Budget()
"""The budget of every linearization that is not given another."""

"""Memory bounds made so small that even tiny cases are worked on in several blocks."""

from __future__ import annotations

import pytest

import evalkit.layers.convolution
import evalkit.layers.rows
import evalkit.linearization.per_sample


def shrink(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Let at most so many numbers be formed at once, wherever gradients are formed."""
    for name in ("ELEMENTS_AT_ONCE", "FORMED_AT_ONCE", "DOUBLED_AT_ONCE"):
        monkeypatch.setattr(evalkit.layers.rows, name, elements)
    monkeypatch.setattr(evalkit.layers.rows, "FEWEST_ROWS", 1)
    monkeypatch.setattr(evalkit.layers.convolution, "FORMED_AT_ONCE", elements)
    monkeypatch.setattr(evalkit.layers.convolution, "CHANNELS_TOGETHER", 1)
    monkeypatch.setattr(evalkit.linearization.per_sample, "HELD_AT_ONCE", elements)

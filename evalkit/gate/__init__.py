"""The gate: scores of a run against a committed baseline, for people and for CI."""

from evalkit.gate.check import check

__all__ = ["check"]

"""Scores from the dense reference."""

from __future__ import annotations

from torch import Tensor

from tests.support import dense
from tests.support.vectors import cosine

NGD = "ngd:tolerance=1e-12:max_iterations=2000"


def expected_row(expected: dense.Dense, d: Tensor) -> dict[str, float]:
    """The numeric columns of ``score`` for direction ``d``."""
    g = expected.gradient
    return {
        "gamma": expected.gamma(d),
        "ratio": expected.gamma(d) / expected.gamma(g),
        "efficiency": expected.gamma_floor / expected.gamma(d),
        "fisher_norm": float((d @ expected.fisher @ d).sqrt()),
        "slope": float(d @ g),
        "norm": float(d.norm()),
        "cosine_sgd": cosine(d, g),
    }

"""Exact gammas: as many bits as float64's digits take, and dampings whose limit is that of zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flint import arb

from tests.support.exact import Batch, Unknown, bits, cotangents, dot, gamma

CERTAIN = 1e-17
"""Relative radius at which a gamma is known: below the rounding of scores."""
LIMIT = 1e-9
"""Relative difference of gammas at lambda and lambda^2 from which on the latter is the limit."""
FEWEST_BITS, MOST_BITS = 256, 1 << 12
SMALLEST = 96
"""Minus the power of two of the first damping that stands in for zero."""


def exact_gamma(make: Callable[[int], Batch], method: str, damping: float) -> float:
    """Return gamma to the digits of float64, with as many bits as that takes.

    Undamped, it is the limit of dampings that fall until gamma stays.

    Args:
        make: returns the batch in so many bits.
        method: name.
        damping: lambda >= 0.
    """
    if damping or method == "sgd":
        return _known(make, method, lambda: arb(damping))
    power, before = SMALLEST + _smallness(make, method), 0.0
    while power < MOST_BITS:
        found = _known(make, method, partial(_power_of_two, -power))
        if abs(found - before) <= LIMIT * found:
            return found
        before, power = found, 2 * power
    raise Unknown(f"gamma of {method} has no limit at damping 0 that {MOST_BITS} bits show")


def _smallness(make: Callable[[int], Batch], method: str) -> int:
    """Return how many powers of two lie between one and the smallest squared gradient.

    Of ``ngd`` it is the smallest eigenvalue that a gradient alone gives F.
    """
    with bits(MOST_BITS):  # so that 1 - p of drawn labels keeps digits
        one = make(MOST_BITS)
        outputs, least = len(one.residual[0]), 0
        for place, row in enumerate([*one.residual, *(one.sampled if method == "sf" else ())]):
            n = place % one.samples
            block = range(n * outputs, (n + 1) * outputs)
            size = sum((abs(one.kernel[i, i]) for i in block), arb(0)) * dot([row], [row])
            if method == "ngd" and one.floor_terms and one.floor_terms[n] > 1:
                size /= one.floor_terms[n]  # F has G_n G_n^T / f_n of a sample, or more
            if size > 0:
                least = max(least, -int(float((size.log() / arb(2).log()).mid())))
    return least


def _power_of_two(power: int) -> arb:
    return arb(2) ** power


def _known(
    make: Callable[[int], Batch],
    method: str,
    damping: Callable[[], arb],
) -> float:
    count = FEWEST_BITS
    while count <= MOST_BITS:
        with bits(count):
            try:
                one = make(count)
                found = gamma(one, cotangents(one, method, damping()))
                if found.is_finite() and found.rad() <= CERTAIN * abs(found.mid()):
                    return float(found.mid())
            except (Unknown, ZeroDivisionError):
                pass
        count *= 2
    raise Unknown(f"gamma of {method} is not known with {MOST_BITS} bits")

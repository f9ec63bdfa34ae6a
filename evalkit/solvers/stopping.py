"""When a solver of (F + lambda I) x = g stops."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalkit.errors import EvalkitError
from evalkit.settings import MAX_ITERATIONS

TOLERANCE = 1e-6
FLOOR_TOLERANCE = 0.0


@dataclass(frozen=True)
class Stopping:
    """The iterations and the two tolerances of a solver; either tolerance ends it.

    Attributes:
        max_iterations: the most iterations of CG.
        tolerance: |g - (F + lambda I) x| <= tolerance |g| is near enough.
        floor_tolerance: gamma <= (1 + floor_tolerance) gamma_floor is; 0 leaves it out.

    Raises:
        EvalkitError: a setting is out of range.
    """

    max_iterations: int = MAX_ITERATIONS
    tolerance: float = TOLERANCE
    floor_tolerance: float = FLOOR_TOLERANCE

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise EvalkitError(
                f"expected max_iterations of at least 1, found {self.max_iterations}; allow one "
                "iteration"
            )
        for name in ("tolerance", "floor_tolerance"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise EvalkitError(
                    f"expected {name} to be a finite number of at least 0, found {value}; choose "
                    "one"
                )

    def goal(self, gamma_floor: float) -> float | None:
        """Return the gamma that is near enough to the floor, None where none is."""
        return (1 + self.floor_tolerance) * gamma_floor if self.floor_tolerance > 0 else None

    @property
    def error(self) -> float:
        """The relative error of 1 / gamma^2 that is near enough."""
        # What is missed of the quadratic model goes with the square of the residual.
        error = self.tolerance**2
        if self.floor_tolerance > 0:
            error = max(error, 1 - (1 + self.floor_tolerance) ** -2)
        return min(max(error, 1e-30), 0.5)

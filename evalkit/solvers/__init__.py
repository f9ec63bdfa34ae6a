"""Solvers of (F + lambda I) x = g: one algorithm a file, one record for what they return."""

from evalkit.solvers.choice import CHOICES, Choice, natural_gradient, solve
from evalkit.solvers.solved import NaturalGradient, Solved
from evalkit.solvers.stopping import FLOOR_TOLERANCE, MAX_ITERATIONS, TOLERANCE, Stopping

__all__ = [
    "CHOICES",
    "FLOOR_TOLERANCE",
    "MAX_ITERATIONS",
    "TOLERANCE",
    "Choice",
    "NaturalGradient",
    "Solved",
    "Stopping",
    "natural_gradient",
    "solve",
]

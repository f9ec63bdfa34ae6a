"""Solvers of (F + lambda I) x = g: one algorithm a file, one record for what they return.

``cg`` steps through a ``system`` whose vectors are kept in one of two ``spaces``, with or without
one of the ``preconditioners``, until ``stopping`` ends it. ``direct`` solves in ``logit_space``,
made of the tangent ``kernel``, as a preconditioner is of its ``sketch``. ``solved`` is what
they return, ``choice`` takes the one that costs least.
"""

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

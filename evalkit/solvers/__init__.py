"""Solvers of (F + lambda I) x = g: one algorithm a file, one record for what they return."""

from evalkit.solvers.choice import CHOICES, Choice, natural_gradient, solve
from evalkit.solvers.solved import NaturalGradient, Solved

__all__ = ["CHOICES", "Choice", "NaturalGradient", "Solved", "natural_gradient", "solve"]

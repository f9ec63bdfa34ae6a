"""Optimisers along exact EF, iEF, SF, FGN and Polyak directions, or along any method's.

``recorded`` makes a linearization of the one forward of a training step, ``base`` is what every
optimiser does with a direction, ``weights`` the convention of the mean loss; ``weighted``,
``sampled`` and ``preconditioned`` are the optimisers, ``weighted_loss`` the way to put any other
optimiser behind the same direction.
"""

from evalkit.optim.base import ClosureOptimizer
from evalkit.optim.preconditioned import Preconditioned
from evalkit.optim.recorded import StepError
from evalkit.optim.sampled import SF
from evalkit.optim.weighted import EF, FGN, IEF, Polyak
from evalkit.optim.weighted_loss import WeightedLoss

__all__ = [
    "EF",
    "FGN",
    "IEF",
    "SF",
    "ClosureOptimizer",
    "Polyak",
    "Preconditioned",
    "StepError",
    "WeightedLoss",
]

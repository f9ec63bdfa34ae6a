"""Properties of random small models and batches, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

from tests.properties import laws, scores, steps, structured
from tests.support.strategies import Plan, plans

EXTREME = (0, 0, 3, 6, 13, -20, -100)
"""Powers of two that bring logits of order one to 1e4 and to 1e-30."""


@dataclass(frozen=True)
class Property:
    """What holds of every plan.

    Attributes:
        check: raises where it does not.
        plans: of which it holds.
        examples: how many the suite draws.
    """

    check: Callable[[Plan], None]
    plans: SearchStrategy[Plan]
    examples: int


PROPERTIES: dict[str, Property] = {
    "scores": Property(scores.check_scores, plans(exact=True, powers=EXTREME), 2),
    "batch": Property(scores.check_batch, plans(exact=True, powers=EXTREME), 8),
    "products": Property(laws.check_products, plans(), 15),
    "directions": Property(laws.check_directions, plans(ties=False), 8),
    "table": Property(laws.check_table, plans(powers=EXTREME), 8),
    "orders": Property(laws.check_orders, plans(), 6),
    "one layer": Property(structured.check_one_layer, plans(), 8),
    "one input": Property(structured.check_one_layer, plans(ties=False).map(structured.single), 4),
    "whole": Property(structured.check_whole, plans(ties=False), 3),
    "steps": Property(steps.check_steps, plans(ties=False), 3),
}

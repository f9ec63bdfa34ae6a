"""Any registered method as an optimiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.linearization import ByParameter, Linearization
from evalkit.optim.base import ClosureOptimizer, Direction
from evalkit.optim.recorded import step_failures
from evalkit.settings import DEFAULT_DAMPING, Others, check_others
from evalkit.updates.calling import compute
from evalkit.updates.parser import parse
from evalkit.updates.registry import check_dampings, registered, takes_optimizer, takes_past
from evalkit.updates.types import CotangentUpdate, VectorUpdate

_OWN = {"ef": "EF", "ief": "IEF", "sf": "SF", "fgn": "FGN", "polyak": "Polyak"}


class Preconditioned(ClosureOptimizer):
    """An optimiser along the direction of any registered method, users' own included.

    d = (F / N + lambda I)^-1 g / N, F what the method approximates the Fisher matrix of the summed
    loss by: the method's direction at damping N lambda, which is as it is for the mean loss. A step
    costs what the method costs, which for ``ngd`` is many products with the Fisher matrix. All
    other arguments are those of :class:`evalkit.optim.ClosureOptimizer`.

    Args:
        method: its name, with settings if wanted: ``"kfac:labels=improved"``.
        others: what methods by layers make of parameters without factors.
        settings: ``normalise`` and the like.

    Raises:
        EvalkitError: the method is unknown, cannot be damped so, has an optimiser of its own, or
            needs past tasks; or an argument is out of range.
    """

    _kept = (*ClosureOptimizer._kept, "method", "others")

    def __init__(
        self,
        params: Any,
        method: str,
        lr: float,
        damping: float = DEFAULT_DAMPING,
        likelihood: str = "categorical",
        *,
        others: Others = "block",
        **settings: Any,
    ) -> None:
        name = parse(method)[0]
        registered(name)
        check_dampings(name, [damping])
        if name in _OWN:
            raise EvalkitError(
                f"expected a method without an optimiser of its own, found '{method}'; take "
                f"evalkit.optim.{_OWN[name]}, whose damping is that of the paper"
            )
        if name == "sgd" or takes_past(name) or takes_optimizer(name):
            advice = "take torch.optim.SGD" if name == "sgd" else "choose another method"
            raise EvalkitError(
                f"expected a method that preconditions the gradient of a batch, found '{method}'; "
                f"{advice}"
            )
        if settings.get("gram") == "batch":
            raise EvalkitError(
                f"expected `gram` 'rank' for '{method}', found 'batch'; the samples of all "
                "processes are one system for EF, IEF, SF, FGN and Polyak alone"
            )
        self.method, self.others = method, check_others(others)
        super().__init__(params, lr, damping, likelihood, **settings)

    def direction(self, lin: Linearization) -> Direction:
        """Return d for the mean loss by the names of the linearization's parameters."""
        damping = lin.num_samples * self.damping
        with step_failures():
            update = compute(self.method, lin, damping, self.draw, others=self.others)
        if isinstance(update, CotangentUpdate) and update.terms:
            return lin.weighted_gradients([(t.cotangents, t.weights) for t in update.terms])
        if isinstance(update, VectorUpdate) and isinstance(update.vector, ByParameter):
            parts = update.vector.parts
            return {n: p if isinstance(p, Tensor) else p.formed() for n, p in parts.items()}
        return lin.by_name(update.direction(lin))

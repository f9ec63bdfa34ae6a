"""EF, iEF, FGN and Polyak's step as optimisers: the gradient of a weighted sum of the losses."""

from __future__ import annotations

from typing import Any, ClassVar

from evalkit.linearization import Linearization
from evalkit.optim.base import ClosureOptimizer, Direction
from evalkit.optim.weights import sample_weights
from evalkit.settings import DEFAULT_DAMPING


class Weighted(ClosureOptimizer):
    """An optimiser along d = sum_n w_n G_n, w of :func:`evalkit.optim.weights.sample_weights`.

    No (N, P) matrix is formed for layers with a rule: the output gradients of one backward make the
    Gram matrix and, weighted, the direction.

    Args:
        params, lr, damping, likelihood, others: as for
            :class:`evalkit.optim.base.ClosureOptimizer`.
    """

    method: ClassVar[str]
    """Its name among the methods."""

    def __init__(
        self,
        params: Any,
        lr: float,
        damping: float = DEFAULT_DAMPING,
        likelihood: str = "categorical",
        **others: Any,
    ) -> None:
        super().__init__(params, lr, damping, likelihood, **others)

    def direction(self, lin: Linearization) -> Direction:
        """Return d for the mean loss by the names of the linearization's parameters."""
        r = lin.logit_gradients
        weights = sample_weights(lin, self.method, self.damping, self.whole(lin, r.unsqueeze(0)))
        return lin.weighted_gradients([(r, weights)])


class IEF(Weighted):
    """Improved empirical Fisher (paper, Algorithm 2 and eq. 8).

    d = (G / N)^T (K / N^2 + lambda I)^-1 s / N^2, s_n = |r_n|^2. The paper takes lr 50 and damping
    1e-12 for prompt tuning and for a perceptron, lr 100 and damping 1e-7 for LoRA.
    """

    method = "ief"


class EF(Weighted):
    """Empirical Fisher (paper, Algorithm 1 and eq. 5).

    d = (G / N)^T (K / N^2 + lambda I)^-1 1. The paper normalises it, with a learning rate that
    falls linearly to 0.
    """

    method = "ef"


class FGN(Weighted):
    """Fast Gauss-Newton (arXiv 2605.06081): d = (G / N)^T (K / N^2 + lambda I)^-1 f / N.

    f_n = r_n^T S_n^+ r_n. With one output per sample, or two classes, and no r_n = 0, the
    undamped direction is the exact natural gradient of the batch.
    """

    method = "fgn"


class Polyak(Weighted):
    """Polyak's step for every sample at once: d = (G / N)^T (K / N^2 + lambda I)^-1 l / N.

    An undamped step of lr 1 would bring every loss to zero to first order.
    """

    method = "polyak"

"""Sampled Fisher as an optimiser."""

from __future__ import annotations

from typing import Any

import torch

from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization
from evalkit.optim.base import ClosureOptimizer, Direction
from evalkit.optim.recorded import step_failures
from evalkit.optim.whole_batch import drawn_together
from evalkit.settings import DEFAULT_DAMPING
from evalkit.updates.calling import compute
from evalkit.updates.sf import right_side
from evalkit.updates.types import CotangentUpdate


class SF(ClosureOptimizer):
    """Sampled Fisher (paper, Algorithm 3 and eq. 47-49).

    d = (Gs^T Gs / (K N^2) + lambda I)^-1 g / N with gradients Gs of K labels per sample that the
    model draws anew at each step. With lambda_sum = N^2 lambda that is 1 / (N lambda) times the
    direction of the method ``sf``, which leaves a factor lambda_sum out. The paper normalises it,
    with a learning rate that falls linearly to 0. All other arguments are those of
    :class:`evalkit.optim.ClosureOptimizer`.

    Args:
        labels_per_sample: K.

    Raises:
        EvalkitError: an argument is out of range, or there is no damping and nothing normalises.
    """

    _kept = (*ClosureOptimizer._kept, "labels_per_sample")

    def __init__(
        self,
        params: Any,
        lr: float,
        damping: float = DEFAULT_DAMPING,
        likelihood: str = "categorical",
        *,
        labels_per_sample: int = 1,
        **others: Any,
    ) -> None:
        if not damping and not others.get("normalise"):
            raise EvalkitError(
                "expected a damping above 0 for SF, whose undamped direction has no length, found "
                "0; raise the damping, or set `normalise`"
            )
        super().__init__(params, lr, damping, likelihood, **others)
        self.labels_per_sample = labels_per_sample

    def direction(self, lin: Linearization) -> Direction:
        """Return d for the mean loss by the names of the linearization's parameters."""
        if self.gram == "batch" and self.ranks.size > 1:
            return self._of_all(lin)
        damping, count = self.damping, lin.num_samples
        draws = self.labels_per_sample
        with step_failures():
            update = compute("sf", lin, count**2 * damping, self.draw, labels_per_sample=draws)
        assert isinstance(update, CotangentUpdate)
        scale = 1 / (count * damping) if damping else 1.0
        return lin.weighted_gradients([(t.cotangents, scale * t.weights) for t in update.terms])

    def _of_all(self, lin: Linearization) -> Direction:
        """Return d for the samples of all processes, formulas as in :func:`evalkit.updates.sf.sf`.

        With h one where a label drawn is that of the data, and g = Gs^T h + g', the direction is
        (g' + Gs^T b) / (N lambda), b = (Gs Gs^T + K N^2 lambda I)^-1 (K N^2 lambda h - Gs g').
        """
        draws, damping = self.labels_per_sample, self.damping
        drawn = drawn_together(lin, self.draw, draws, self.ranks)
        r = lin.logit_gradients
        whole = self.whole(lin, torch.stack([r, *drawn]))
        assert whole is not None
        same = torch.stack([(one == r).flatten(1).all(1) for one in drawn])
        h = whole.gathered((same & (same.cumsum(0) == 1)).double())
        rest, count = 1 - h.sum(0), whole.num_samples
        ridge = draws * count**2 * damping
        slopes = whole.gram[1:, :, 0].reshape(-1, count) @ rest
        right = right_side(h.flatten(), slopes, ridge, draws, not rest.any())
        b = whole.factor(1).solve(right, ridge).view(draws, count)
        scale = 1 / (count * damping) if damping else 1.0
        terms = zip((r, *drawn), (rest, *b), strict=True)
        return lin.weighted_gradients([(c, scale * w[whole.here]) for c, w in terms])

"""Softmax with cross-entropy."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.likelihoods.base import IGNORED_LABEL, Likelihood, check_labels, sum_positions


def _log_odds_against(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return t = log((1 - p_y) / p_y) and the mask of positions with a label, both (N, ...).

    t = logsumexp_{c != y} z_c - z_y. Loss, residual and floor are functions of t that lose no
    digit for a saturated sample, where 1 - p_y vanishes beside p_y.
    """
    z = logits.double()
    labelled = targets != IGNORED_LABEL
    index = targets.where(labelled, 0).unsqueeze(-1)
    others = z.scatter(-1, index, -math.inf).logsumexp(-1)
    return others - z.gather(-1, index).squeeze(-1), labelled


def _centred(logits: Tensor, targets: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and u - E_p[u], with both zero where there is no label: like logits.

    u is first shifted by its value at the most likely class. S is blind to the shift, and the
    mean of what remains is a sum of small terms: nothing cancels when p is nearly one-hot.
    """
    p = logits.double().softmax(-1)
    p = p.masked_fill((targets == IGNORED_LABEL).unsqueeze(-1), 0.0)
    u = vectors.double()
    u = u - u.gather(-1, p.argmax(-1, keepdim=True))
    return p, u - (p * u).sum(-1, keepdim=True)


class Categorical(Likelihood):
    """Softmax with cross-entropy: p = softmax(z), l = -log p_y, S = diag(p) - p p^T.

    Targets are integers of shape (N, ...), one class per label position, -100 for none.
    """

    name: ClassVar[str] = "categorical"

    def check(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise EvalkitError(
                f"expected integer class targets for the categorical likelihood, found "
                f"{targets.dtype}; pass class indices, or choose another likelihood"
            )
        if logits.dim() < 2 or logits.shape[-1] < 2:
            raise EvalkitError(
                f"expected logits (N, ..., C) with at least 2 classes, found "
                f"{tuple(logits.shape)}; for one output choose the bernoulli likelihood"
            )
        if targets.shape != logits.shape[:-1]:
            raise EvalkitError(
                f"expected targets of shape {tuple(logits.shape[:-1])} for logits "
                f"{tuple(logits.shape)} (classes last), found {tuple(targets.shape)}; reshape the "
                "targets, or move the class axis of the logits to the end"
            )
        targets = targets.to(device=logits.device, dtype=torch.int64)
        labelled = targets != IGNORED_LABEL
        check_labels(labelled)
        wrong = labelled & ((targets < 0) | (targets >= logits.shape[-1]))
        if wrong.any():
            raise EvalkitError(
                f"expected classes from 0 to {logits.shape[-1] - 1} or {IGNORED_LABEL}, found "
                f"{int(targets[wrong][0])}; correct the targets or the model's number of classes"
            )
        return targets

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        t, labelled = _log_odds_against(logits, targets)
        losses = torch.logaddexp(t, torch.zeros_like(t))
        return sum_positions(losses.where(labelled, 0.0))

    def logit_gradients(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return r = p - e_y, its entry at y as -(1 - p_y) = -sigmoid(t): like logits."""
        t, labelled = _log_odds_against(logits, targets)
        index = targets.where(labelled, 0).unsqueeze(-1)
        r = logits.double().softmax(-1).scatter(-1, index, -t.sigmoid().unsqueeze(-1))
        return r.where(labelled.unsqueeze(-1), 0.0)

    def fisher_product(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Return S u = p * (u - E_p[u]): like logits."""
        p, centred = _centred(logits, targets, vectors)
        return p * centred

    def fisher_quadratic(self, logits: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Return u^T S u = Var_p(u), a sum of squares: (N,)."""
        p, centred = _centred(logits, targets, vectors)
        return sum_positions((p * centred.square()).sum(-1))

    def fisher_trace(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return sum_c p_c (1 - p_c) with 1 - p_k of the most likely class k as a sum: (N,)."""
        q, _, root = self._roots(logits, targets)
        p = q.square()
        return sum_positions((p * (1 - p + root.square())).sum(-1))

    def fisher_root(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return B with S = B B^T and no column for the most likely class k: (N, ..., C, C).

        S sees differences u - u_k only. On the other classes it is diag(p) - p p^T = W W^T with
        q = sqrt(p) and W = diag(q) (I - q q^T / (1 + sqrt(p_k))), since 1 - |q|^2 = p_k. Nothing
        cancels when p is nearly one-hot. B = W - sqrt(p_k) e_k q^T carries W to all classes.
        """
        q, top, root = self._roots(logits, targets)
        w = torch.diag_embed(q) - (q * q / (1 + root)).unsqueeze(-1) * q.unsqueeze(-2)
        return w - (top * root).unsqueeze(-1) * q.unsqueeze(-2)

    def solve_root(self, logits: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """Return W^-1 v = (I + q q^T / (sqrt(p_k) (1 + sqrt(p_k)))) diag(q)^-1 v off class k."""
        q, _, root = self._roots(logits, targets)
        scaled = (values / q).where(q > 0, 0.0)
        return scaled + q * (q * scaled).sum(-1, keepdim=True) / (root * (1 + root))

    def _roots(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (zero at k and where there is no label), the indicator of k, and sqrt(p_k)."""
        p = logits.double().softmax(-1)
        k = p.argmax(-1, keepdim=True)
        top = torch.zeros_like(p).scatter(-1, k, 1.0)
        labelled = (targets != IGNORED_LABEL).unsqueeze(-1)
        q = p.sqrt().where((top == 0) & labelled, 0.0)
        return q, top, p.gather(-1, k).sqrt()

    def sample_targets(self, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        labelled = targets != IGNORED_LABEL
        cumulative = logits[labelled].double().softmax(-1).cumsum(-1)
        draws = torch.rand(
            (len(cumulative), 1), generator=generator, dtype=torch.float64, device=generator.device
        ).to(logits.device)
        # Scaled by the last entry, so that rounding in the sum can never step past the last class.
        drawn = torch.searchsorted(cumulative, draws * cumulative[..., -1:], right=True)
        return targets.masked_scatter(labelled, drawn)

    def floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return r^T S^+ r = 1 / p_y - 1 = exp(t), summed over positions: (N,)."""
        t, labelled = _log_odds_against(logits, targets)
        return sum_positions(t.exp().where(labelled, 0.0))

    def log_floor_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        t, labelled = _log_odds_against(logits, targets)
        return t.where(labelled, -math.inf).view(len(t), -1).logsumexp(1)

    def target_probabilities(self, logits: Tensor, targets: Tensor) -> Tensor:
        t, labelled = _log_odds_against(logits, targets)
        probabilities = (-t).sigmoid().where(labelled, 0.0)
        return sum_positions(probabilities) / sum_positions(labelled.double())

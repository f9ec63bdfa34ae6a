"""The gamma indicator: how much Fisher length a direction spends per unit of descent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from evalkit.linearization import Linearization
from evalkit.reductions import power_of_two


@dataclass(frozen=True)
class Indicator:
    """The two numbers that make gamma(d).

    Attributes:
        fisher_norm: sqrt(d^T F d).
        slope: d^T g, positive for a descent update theta - eta d.
    """

    fisher_norm: float
    slope: float

    @property
    def gamma(self) -> float:
        """gamma(d) = sqrt(d^T F d) / |d^T g| (paper, eq. 15); inf where d^T g or F d is zero.

        d^T g is zero where F d is: what a sum that cancels leaves of it is rounding.

        Smaller is better: 1 / (2 gamma^2) is the largest loss reduction of the local quadratic
        model along d. It depends neither on the length nor on the sign of d.
        """
        return self.fisher_norm / abs(self.slope) if self.slope and self.fisher_norm else math.inf


def indicator(lin: Linearization, jvp: Tensor) -> Indicator:
    """Return the indicator of a direction d from J d, without a Fisher-vector product.

    Args:
        lin: the model and batch.
        jvp: J d, like logits.
    """
    scale = power_of_two(jvp.double())  # squares of what is small or large keep their digits
    quadratic, slope = indicator_terms(lin, jvp / scale)
    return Indicator(math.sqrt(float(quadratic)) * float(scale), float(slope * scale))


def indicator_terms(lin: Linearization, jvp: Tensor) -> tuple[Tensor, Tensor]:
    """Return d^T F d and d^T g as tensors without axes, so that a GPU need not be waited for.

    d^T F d = sum_n (J_n d)^T S_n (J_n d), a sum of squares that cannot be negative, and
    d^T g = sum_n r_n^T J_n d, both in float64.

    Args:
        lin: the model and batch.
        jvp: J d, like logits.
    """
    quadratic = lin.likelihood.fisher_quadratic(lin.logits, lin.targets, jvp).sum()
    return quadratic, lin.sample_dots(lin.logit_gradients, jvp).sum()


def gamma(lin: Linearization, direction: Tensor) -> float:
    """Return gamma(d) of a direction in parameter space: one JVP.

    Args:
        lin: the model and batch.
        direction: d, (P,).

    Raises:
        EvalkitError: d does not have length P.
    """
    return indicator(lin, lin.jvp(direction)).gamma

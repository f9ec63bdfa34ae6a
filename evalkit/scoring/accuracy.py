"""How far a score may be from that of exact arithmetic: an estimate to its first order.

With gamma = sqrt(q) / |s|, q = d^T F d and s = d^T g, changes delta d and delta s give

    |delta gamma| / gamma <= sqrt(delta d^T F delta d / q) + |delta s| / |s|.

|delta d|^2 tr F is the most that delta d^T F delta d can be, for a single direction that F knows
alone. Rounding moves the inputs and output gradients of layers entry by entry, so that a layer with
w x w weights has about w independent directions, as many as the root of the number of weights:
delta d^T F delta d is taken to be |delta d|^2 tr F / sqrt(P). Where the estimate reaches one, d may
point anywhere and a first order says nothing more: the error is infinite.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from evalkit.doubts import MARKED
from evalkit.indicator import Indicator, indicator
from evalkit.linearization import Linearization
from evalkit.rounding import fisher_trace, gradient_noise, underflows, vanishes
from evalkit.updates import CotangentUpdate, Update, VectorUpdate
from evalkit.updates.types import Rounding

SAFETY = 8.0
"""What first-order estimates with random signs are multiplied by."""

LEAST = 64.0
"""Units of rounding that no score is without, beside those of the largest logit: r_n of a confident
sample is exponential in its logits."""


SMALLEST = sys.float_info.min / sys.float_info.epsilon
"""Below this, numbers of a score are rounded to whole numbers of the smallest one there is."""


@dataclass(frozen=True)
class Error:
    """Estimates of the relative error of a gamma.

    Attributes:
        total: the sum of all there is.
        curable: the part that an evaluation with more digits would lower.
    """

    total: float
    curable: float


def score_error(
    lin: Linearization, update: Update, found: Indicator, length: float, floor_ratio: float
) -> Error:
    """Return an estimate of the relative error of gamma.

    Args:
        lin: the model and batch.
        update: d.
        found: its Fisher norm and slope.
        length: |d|.
        floor_ratio: gamma_floor / gamma, which exact arithmetic keeps at most 1.
    """
    rounding = update.rounding
    if not (found.fisher_norm and found.slope):
        given = isinstance(update, VectorUpdate) and rounding is None and update.report is None
        value = 0.0 if length == 0 and (given or vanishes(lin)) else math.inf
        return Error(value, value)
    entries = Rounding(0.0, 0.0)
    if rounding is None:
        rounding = _of_entries(lin, update, length)
    elif not isinstance(update, CotangentUpdate):  # J d and d^T g are made of the entries of d
        entries = _of_entries(lin, update, length)
        rounding = replace(
            rounding, moved=rounding.moved + entries.moved, slope=rounding.slope + entries.slope
        )
    spread = math.sqrt(fisher_trace(lin) / math.sqrt(lin.num_params))
    along = rounding.moved * spread
    if SAFETY * along > MARKED * found.fisher_norm and rounding.deviation is not None:
        # What moves most of d may be what F sees least of: one product tells.
        drawn = indicator(lin, lin.jvp(rounding.deviation().to(lin.logits.dtype))).fisher_norm
        along = min(along, drawn + entries.moved * spread)
    relative = SAFETY * (along / found.fisher_norm + rounding.slope / abs(found.slope))
    relative += (LEAST + float(lin.logits.abs().max())) * lin.unit
    relative = max(relative, floor_ratio - 1)
    least = min(found.fisher_norm, abs(found.slope), length)
    known = math.isfinite(relative) and math.isfinite(found.fisher_norm + found.slope + length)
    if not known or relative >= 1 or underflows(lin) or least < SMALLEST:
        relative = math.inf
    report = update.report
    left = report.error * (1 + min(relative, 1.0)) if report else 0.0  # each of what the other is
    return Error(relative + left, relative + (left if report and report.curable else 0.0))


def _of_entries(lin: Linearization, update: Update, length: float) -> Rounding:
    """Return how far rounding moves an update that is given as it is meant, entry by entry.

    A sum of gradients moves with each of them; a vector moves J d by a part of |J| |d|.
    """
    norms, noise = lin.gradient_norms, gradient_noise(lin)
    relative = float(noise.norm()) / max(float(norms.norm()), 1e-300)
    if isinstance(update, CotangentUpdate):
        r = lin.logit_gradient_norms
        sizes = lin.sample_dots(update.cotangents, update.cotangents).sqrt() / r.where(r > 0, 1.0)
        moved = float((sizes * noise).norm())
    else:
        moved = relative * length
    return Rounding(moved=moved, slope=moved * lin.gradient_norm + length * float(noise.norm()))

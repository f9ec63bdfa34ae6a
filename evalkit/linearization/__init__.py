"""One model on one batch, linearised: Jacobian products, Fisher products, Gram matrices.

From the ground up, on the forward of :mod:`evalkit.evaluation`: what it does is recorded
(``broadcasts``, ``recorder``, ``recording``) and checked (``graph_ends``, ``adjoint``,
``sample_axis``), differentiated again and again (``tangents``), split into ``micro_batches``, and
made into inner products of per-sample gradients (``ruled_rows``, ``per_sample``, ``gram``), some of
whose output gradients are ``kept`` (``weighted_outputs``); a forward that is the caller's is a
``callers_forward``; ``factors`` hands out what each layer's rows are made of.
``linear_maps`` and, on them, ``linearized`` hold what the rest of evalkit works with, ``entry`` the
way to it; ``by_parameter`` is a vector that need not be formed.
"""

from evalkit.linearization.by_parameter import ByParameter
from evalkit.linearization.entry import linearize
from evalkit.linearization.factors import FormedRows, LayerFactors
from evalkit.linearization.linearized import Linearization

__all__ = ["ByParameter", "FormedRows", "LayerFactors", "Linearization", "linearize"]

"""One model on one batch, linearised: Jacobian products, Fisher products, Gram matrices.

From the ground up: models and batches are taken as users have them (``wrapped``, ``given``,
``outputs``, ``failures``), what a forward does is recorded (``recorder``, ``forward``,
``recording``), differentiated again and again (``tangents``), split into
``micro_batches``, and made into inner products of per-sample gradients (``ruled_rows``,
``per_sample``, ``gram``) and the tangent kernel (``kernel``, ``sketch``). ``linearized`` holds what
the rest of evalkit works with.
"""

from evalkit.linearization.linearized import Linearization, linearize

__all__ = ["Linearization", "linearize"]

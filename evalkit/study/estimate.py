"""How long scores will take, and how many outputs a batch has, from its gradient alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from evalkit import likelihoods
from evalkit.linearization import Linearization
from evalkit.names import base_name

_PRODUCTS_OF_A_BATCH = 3.7
_PRODUCTS = {"sgd": 0.5, "ngd": 25.0}
_PRODUCTS_OF_ANOTHER = 1.3
"""Of a method at one damping, in times of one J v and one J^T u, as measured on models of a million
parameters; further dampings share most of them."""
_OWN_SECONDS = 0.05
"""Of a method, whatever the model: solves in the space of samples, rows that are found again."""


def cell_seconds(products: float, methods: Sequence[str], dampings: int) -> float:
    """Return the time that a batch is expected to take: a rough number.

    Args:
        products: seconds that one J v and one J^T u take.
        methods: names, with settings if wanted.
        dampings: how many each is scored at.
    """
    names = [base_name(method) for method in methods]
    each = sum(_PRODUCTS.get(name, _PRODUCTS_OF_ANOTHER) for name in names)
    shared = _PRODUCTS_OF_A_BATCH + each * (1 + 0.1 * (dampings - 1))
    return products * shared + _OWN_SECONDS * sum(name != "sgd" for name in names)


def product_seconds(lin: Linearization) -> float:
    """Return the time of one J v and one J^T u, their first calls aside."""
    _ = lin.gradient_jvp
    started = time.perf_counter()
    lin.jvp(lin.vjp(lin.logit_gradients))
    return time.perf_counter() - started


def free_outputs(lin: Linearization) -> int:
    """Return how many outputs of a batch the loss can tell apart: the rank of its output Fisher.

    A softmax over C classes has C - 1 of them, at each label position.
    """
    logits, targets = lin.logits, lin.targets
    labelled = targets != likelihoods.IGNORED_LABEL
    if targets.shape == logits.shape:  # a target for each output
        return int(labelled.sum()) if lin.likelihood.ignores_labels else logits.numel()
    return int(labelled.sum()) * (logits.shape[-1] - 1)

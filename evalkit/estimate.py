"""How long scores will take, and how many outputs a batch has, from its gradient alone."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit import likelihoods
from evalkit.linearization import Linearization

_PASSES = {"sgd": 0.5, "ngd": 20.0}
_PASSES_OF_ANOTHER = 2.0
"""Of a method at one damping, in times of a linearization with its gradient."""
_PASSES_OF_A_BATCH = 1.5


def cell_seconds(passed: float, methods: Sequence[str], dampings: int) -> float:
    """Return the time that a batch is expected to take, a rough number.

    Args:
        passed: seconds that the linearization and the gradient of a batch took.
        methods: names, with settings if wanted.
        dampings: how many each is scored at; further ones cost a fraction.
    """
    each = sum(_PASSES.get(name.split(":")[0], _PASSES_OF_ANOTHER) for name in methods)
    return passed * (_PASSES_OF_A_BATCH + each * (1 + 0.1 * (dampings - 1)))


def free_outputs(lin: Linearization) -> int:
    """Return how many outputs of a batch the loss can tell apart: the rank of its output Fisher.

    A softmax over C classes has C - 1 of them, at each label position.
    """
    logits, targets = lin.logits, lin.targets
    labelled = targets != likelihoods.IGNORED_LABEL
    if targets.shape == logits.shape:  # a target for each output
        return int(labelled.sum()) if lin.likelihood.ignores_labels else logits.numel()
    return int(labelled.sum()) * (logits.shape[-1] - 1)

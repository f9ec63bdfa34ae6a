"""Scores of a model on one batch, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from evalkit.curvature import PastTask
from evalkit.curvature.others import linearized
from evalkit.evaluation.failures import memory_failures
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.scoring.rows import score_linearization
from evalkit.settings import (
    DEFAULT_DAMPING,
    DEFAULT_METHODS,
    Others,
    check_damping,
    check_each_once,
    check_others,
    check_seed,
)
from evalkit.storage.columns import frame_of
from evalkit.storage.rows import Score
from evalkit.updates.parser import parse
from evalkit.updates.registry import (
    check_dampings,
    no_optimizer,
    no_past,
    takes_optimizer,
    takes_past,
)
from evalkit.work import threads_of


def score(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    likelihood: str = "categorical",
    methods: Sequence[str] | str = DEFAULT_METHODS,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    seed: int = 0,
    micro_batch_size: int | None = None,
    dtype: str | torch.dtype | None = None,
    others: Others = "block",
    past: PastTask | Sequence[PastTask] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> pd.DataFrame:
    """Score approximate natural-gradient updates of a model on one batch.

    Args:
        model: any deterministic module; it is left as it was.
        inputs: as in :func:`evalkit.linearize`: a tensor, a tuple or list (positional arguments) or
            a mapping (keyword arguments), of tensors or arrays.
        targets: labels or values, sample axis first; as in :func:`evalkit.linearize`, position t
            of the logits is compared with position t of the targets: shift the labels of a causal
            language model with :func:`evalkit.shifted_labels`.
        likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        methods: names from ``evalkit.methods()``, with settings if wanted
            (``"sf:labels_per_sample=4"``).
        damping: one number or several; each method is scored at each.
        seed: for methods that draw samples.
        micro_batch_size: as in :func:`evalkit.linearize`.
        dtype: as in :func:`evalkit.linearize`.
        others: what is made of parameters without factors, such as normalisations and embeddings:
            ``"block"``, a block for each in methods by layers, ``"gradient"``, the gradient itself
            there, or ``"leave"``: in every row, whatever its method, as if they were frozen.
        past: past tasks, from :func:`evalkit.past_task`, for methods that have them as an input.
        optimizer: of the training, for the method ``optimizer``, which scores the step that it
            takes next from its state; it is left as it is.

    Returns:
        A table with a row per method and damping, methods in the order given; the columns are the
        fields of :class:`evalkit.storage.rows.Score`.

    Raises:
        EvalkitError: something does not fit; the sentence says what to do.
    """
    names, dampings = check_request(methods, damping, past is not None, optimizer is not None)
    known = None if past is None else PastTask.joined(past)
    seed, others = check_seed(seed), check_others(others)
    given = model, inputs, targets, likelihood, micro_batch_size, dtype
    with (
        memory_failures(),
        full_precision(),
        linearized(*given, others) as (lin, _),
        threads_of(lin),
    ):
        rows = score_linearization(
            lin,
            names,
            dampings,
            seed,
            again=dtype is None,
            others=others,
            past=known,
            optimizer=optimizer,
        )
        return frame_of(rows, Score)


def check_request(
    methods: Sequence[str] | str,
    damping: float | Sequence[float],
    past: bool = False,
    optimizer: bool = False,
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return methods and dampings as tuples, before anything expensive is started.

    Args:
        methods: names, with settings if wanted.
        damping: one number or several.
        past: whether there are past tasks.
        optimizer: whether there is the optimizer of the training.

    Raises:
        EvalkitError: a method or setting is unknown, a damping is out of range, one of them is
            given twice, there are none, or a method needs past tasks or an optimizer and has none.
    """
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    # A tensor or array without axes is one number too.
    several: Any = damping if np.ndim(damping) else (damping,)
    dampings = tuple(check_damping(value) for value in several)
    check_each_once("method", names)
    check_each_once("damping", dampings)
    for name in names:
        base = parse(name)[0]
        check_dampings(base, dampings)
        if takes_past(base) and not past:
            raise no_past(base)
        if takes_optimizer(base) and not optimizer:
            raise no_optimizer(base)
    return names, dampings

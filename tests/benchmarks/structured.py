"""What methods by layers cost on one problem, beside curvlinops' KFAC and EKFAC.

Whole scores of one batch with one method, as the rows of the four scores; the peer's factors, their
inverse and its product with the gradient, without a score. ``python -m tests.benchmarks --problem
"MLP 10.5M" --only structured --write`` measures these rows alone and leaves all others of the
report as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

import evalkit
from evalkit.bench.timing import Work
from evalkit.settings import DEFAULT_DAMPING
from tests.benchmarks.measure import DAMPINGS, Row, find, in_steps_once, prepare
from tests.benchmarks.peers import factored_direction
from tests.benchmarks.problems import Problem
from tests.benchmarks.timing import in_fresh_process, in_steps, training_step

Methods = str | tuple[str, ...]
Dampings = float | tuple[float, ...]

REPETITIONS = 3
LAMBDA = 1e-3
"""For methods that are found again in float64 near zero on a model that is not trained."""

THREE = ("kfac", "kfac:labels=empirical", "kfac:labels=improved")
THREE_TOGETHER, TEN_DAMPINGS = "three kinds of kfac", "10 dampings of kfac"
PEERS = {"kfac": "KFACLinearOperator", "ekfac": "EKFACLinearOperator"}
DEFAULTS = ("ief", "kfac", "kfac:labels=improved", "ekfac")
DAMPED = ("block", "kpsvd", "diagonal")
FEW = {"transformer, LoRA": ("kfac",), "CNN, GroupNorm": ("kfac",)}
"""Problems beside the MLP, with the methods that are measured there."""

STRUCTURED = ("MLP 10.5M", *FEW)


def structured(problem: Problem, device: str) -> list[Row]:
    """Return the rows of one problem, measured in a process of its own; none of most problems."""
    if problem.name not in STRUCTURED:
        return []
    return in_fresh_process(_few if problem.name in FEW else _all, problem.name, device)


def _few(name: str, device: str) -> list[Row]:
    costs = _costs(name, device, {text: (text, DEFAULT_DAMPING) for text in FEW[name]})
    return [Row(name, text, steps) for text, steps in costs.items()]


def _all(name: str, device: str) -> list[Row]:
    work: dict[str, tuple[Methods, Dampings]] = {
        **{text: (text, DEFAULT_DAMPING) for text in DEFAULTS},
        **{text: (text, LAMBDA) for text in DAMPED},
        THREE_TOGETHER: (THREE, DEFAULT_DAMPING),
        TEN_DAMPINGS: ("kfac", DAMPINGS),
    }
    costs = _costs(name, device, work)
    batch = find(name).make(device)
    peers = {
        text: in_steps_once(partial(factored_direction, kind, LAMBDA, *batch), _step(batch))
        for text, kind in PEERS.items()
    }
    rows = [
        Row(name, text, costs[text], PEERS[text], peers[text], "the peer once, labels drawn by it")
        if text in PEERS
        else Row(name, text, costs[text], note=f"lambda = {LAMBDA:g}" if text in DAMPED else "")
        for text in (*DEFAULTS, *DAMPED)
    ]
    return [
        *rows,
        Row(name, THREE_TOGETHER, costs[THREE_TOGETHER], "one kind", costs["kfac"]),
        Row(name, TEN_DAMPINGS, costs[TEN_DAMPINGS], "one damping", costs["kfac"]),
    ]


def _costs(
    name: str, device: str, work: Mapping[str, tuple[Methods, Dampings]]
) -> dict[str, float]:
    """Return the cost of whole scores in training steps: of methods, at dampings."""
    prepare()
    batch = find(name).make(device)

    def score(methods: Methods, damping: Dampings) -> None:
        evalkit.score(*batch, methods=methods, damping=damping)

    pieces: dict[str, Work] = {key: partial(score, *one) for key, one in work.items()}
    return in_steps(pieces, _step(batch), REPETITIONS)


def _step(batch: tuple[torch.nn.Module, torch.Tensor, torch.Tensor]) -> Work:
    return partial(training_step, *batch)

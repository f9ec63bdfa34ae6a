"""What is measured on one problem: our work, the peers' on the same, and their memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import evalkit
from evalkit.bench.memory import peak_mebibytes
from evalkit.bench.timing import Work, seconds
from evalkit.linearization.gram import gram_matrix
from evalkit.machine import keep_freed_memory
from tests.benchmarks.peers import (
    Curvlinops,
    gram_with_gradients_formed,
    scores_with_gradients_formed,
)
from tests.benchmarks.problems import PROBLEMS, REHEARSED, Problem
from tests.benchmarks.timing import in_fresh_process, in_steps, peak_megabytes, training_step

REPETITIONS = 5
PRODUCT_REPETITIONS = 15
PROCESSES = 5
"""In which products are measured: where memory comes to lie moves their cost by some percent."""

TESTED = "J v with its adjoint test"
REPEATED = "two samples run again"
"""What a linearization does once beside its products; other rows that linearize have both."""

FLOOR_TOLERANCE = 0.01
DAMPINGS = tuple(10.0**k for k in range(-12, -2))
SWEEP = ("ef", "ief", "sf")
KINDS = ("products", "solved", "scores")
"""Of rows, each measured in processes of its own."""


@dataclass(frozen=True)
class Row:
    """One piece of work on one problem.

    Attributes:
        problem: its name.
        work: what was done.
        steps: our cost in training steps.
        peer: who did the same, empty for nobody.
        peer_steps: the peer's cost in training steps.
        note: what a reader needs to judge the row.
    """

    problem: str
    work: str
    steps: float
    peer: str = ""
    peer_steps: float = float("nan")
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times our cost the peer's is."""
        return self.peer_steps / self.steps


@dataclass(frozen=True)
class Memory:
    """Peak memory of the four scores above model and batch, in MB; NaN for what does not fit."""

    problem: str
    ours: float
    formed: float


def find(name: str) -> Problem:
    """Return a problem by name."""
    return next(problem for problem in (*PROBLEMS, REHEARSED) if problem.name == name)


def measure(problem: Problem, device: str, kinds: Collection[str] = KINDS) -> list[Row]:
    """Return the rows of one problem, measured in processes of their own.

    Args:
        problem: what is measured on.
        device: that it runs on.
        kinds: of the rows, those of :data:`KINDS` that are wanted.
    """
    rows: list[Row] = []
    if "products" in kinds and problem.products:
        processes = PROCESSES if device == "cpu" else 1
        products = [in_fresh_process(_products, problem.name, device) for _ in range(processes)]
        rows += _product_rows(problem.name, products)
    if "solved" in kinds and problem.products:
        rows += in_fresh_process(_solved, problem.name, device)
    if "scores" in kinds:
        rows += in_fresh_process(_scores, problem.name, device)
    return rows


def prepare() -> None:
    """Set a fresh process up."""
    warnings.simplefilter("ignore")
    keep_freed_memory()
    torch.manual_seed(0)


def _products(name: str, device: str) -> dict[str, float]:
    """Return the costs of products on a problem by name, for a process of its own."""
    prepare()
    model, inputs, targets = find(name).make(device)
    lin = evalkit.linearize(model, inputs, targets)
    c, v = lin.logit_gradients, torch.randn_like(lin.gradient)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative for the peer
        peer = Curvlinops(model, inputs, targets)
        work: dict[str, Work] = {
            "J v": lambda: lin.jvp(v),
            TESTED: lambda: _tested_product(lin, v),
            REPEATED: lin._batches.refuse_other_logits,
            "Jᵀc": lambda: lin.vjp(c),
            "J Jᵀc": lambda: lin.kernel_product(c),
            "F v": lambda: lin.fvp(v),
            "peer": lambda: peer.fvp(v),
        }
        return in_steps(work, lambda: training_step(model, inputs, targets), PRODUCT_REPETITIONS)


def _tested_product(lin: evalkit.Linearization, v: Tensor) -> Tensor:
    """Return J v with its adjoint test, as the first product of a linearization has it."""
    lin._batches[0].tangents.tested = False
    return lin.jvp(v)


def _product_rows(problem: str, found: Sequence[Mapping[str, float]]) -> list[Row]:
    """Return the medians of what several processes found, beside the peer that of the ratio."""
    names = ("J v", TESTED, REPEATED, "Jᵀc", "J Jᵀc")
    rows = [Row(problem, name, median(one[name] for one in found)) for name in names]
    beside = [Row(problem, "F v", one["F v"], "curvlinops", one["peer"]) for one in found]
    beside.sort(key=lambda row: row.ratio)
    note = f"{len(found)} processes, {beside[0].ratio:.2f} to {beside[-1].ratio:.2f}"
    return [*rows, replace(beside[len(found) // 2], note=note)]


def _solved(name: str, device: str) -> list[Row]:
    """Return the rows of natural gradients and tracing, for a process of its own."""
    prepare()
    problem = find(name)
    model, inputs, targets = problem.make(device)
    lin = evalkit.linearize(model, inputs, targets)
    found = _to_the_floor(lin)
    with sdpa_kernel(SDPBackend.MATH):
        peer = Curvlinops(model, inputs, targets)
        plain = evalkit.natural_gradient(lin, floor_tolerance=FLOOR_TOLERANCE)
        peer_iterations, peer_gamma = _iterations_of_peer(peer, lin, plain.iterations)
        work: dict[str, Work] = {
            "NGD to 1%": lambda: _to_the_floor(evalkit.linearize(model, inputs, targets)),
            "NGD, peer": lambda: peer.natural_gradient(peer_iterations),
        }
        costs = in_steps(work, lambda: training_step(model, inputs, targets), REPETITIONS)
    gamma = evalkit.gamma(lin, found.solution)  # a direct solve has no iterates
    note = (
        f"{found.solver}, {found.iterations} iterations, gamma / floor "
        f"{gamma / found.gamma_floor:.4f}; peer {peer_iterations}, "
        f"{peer_gamma / found.gamma_floor:.4f}"
    )
    ours, peers = costs["NGD to 1%"], costs["NGD, peer"]
    return [
        Row(name, "NGD to 1% of the floor", ours, "curvlinops CG", peers, note),
        _linearize(problem, device),
    ]


def _scores(name: str, device: str) -> list[Row]:
    """Return the rows of scores, and of the Gram matrix, for a process of its own."""
    prepare()
    problem = find(name)
    model, inputs, targets = problem.make(device)
    work: dict[str, Work] = {
        "scores": lambda: evalkit.score(model, inputs, targets),
        "one damping": lambda: evalkit.score(model, inputs, targets, methods=SWEEP),
        "ten dampings": lambda: evalkit.score(
            model, inputs, targets, methods=SWEEP, damping=DAMPINGS
        ),
    }
    if problem.gram:
        lin = evalkit.linearize(model, inputs, targets)
        cotangents = lin.logit_gradients.unsqueeze(0)
        work |= {
            "gram": lambda: gram_matrix(lin.batches, cotangents, lin.route),
            "gram, formed": lambda: gram_with_gradients_formed(model, inputs, targets),
        }

    def step() -> None:
        training_step(model, inputs, targets)

    formed, peer = float("nan"), ""
    with sdpa_kernel(SDPBackend.MATH):
        costs = in_steps(work, step, REPETITIONS)
        if problem.formed:
            peer = "gradients formed"
            scores = lambda: scores_with_gradients_formed(model, inputs, targets)  # noqa: E731
            if device != "cpu":  # where a first call is mostly the choice and loading of kernels
                scores()
            formed = in_steps_once(scores, step)
    ten, one = costs["ten dampings"], costs["one damping"]
    rows = [
        Row(name, "sgd, ef, ief, sf", costs["scores"], peer, formed),
        Row(name, "10 dampings of ef, ief, sf", ten, "one damping", one),
    ]
    if problem.gram:
        note = "of a linearization that is kept; the peer runs its forward"
        rows.append(
            Row(name, "Gram matrix", costs["gram"], "vmap(grad)", costs["gram, formed"], note)
        )
    return rows


def _to_the_floor(lin: evalkit.Linearization) -> evalkit.NaturalGradient:
    """Return the natural gradient with a gamma within the tolerance of the floor."""
    return evalkit.natural_gradient(lin, floor_tolerance=FLOOR_TOLERANCE, solver="auto")


def _iterations_of_peer(
    peer: Curvlinops, lin: evalkit.Linearization, least: int
) -> tuple[int, float]:
    """Return the iterations after which the peer's gamma is as near the floor as ours, and it.

    It is looked for in steps of a tenth, from those of our plain CG to three times as many.
    """
    iterations = least
    while True:
        reached = evalkit.gamma(lin, peer.natural_gradient(iterations))
        if reached <= (1 + FLOOR_TOLERANCE) * lin.gamma_floor or iterations >= 3 * least:
            return iterations, reached
        iterations += max(1, least // 10)


def in_steps_once(work: Work, step: Work) -> float:
    """Return the cost of one call without a warm-up: for work of many seconds."""
    step()
    steps = sorted(seconds(step) for _ in range(5))
    return seconds(work) / steps[2]


def _linearize(problem: Problem, device: str) -> Row:
    """Return J v by ``torch.func.linearize`` beside ours, with the cost of its tracing."""
    model, inputs, targets = problem.make(device)
    lin = evalkit.linearize(model, inputs, targets)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    tangents = {name: torch.randn_like(value) for name, value in parameters.items()}
    vector = torch.cat([value.flatten() for value in tangents.values()])

    def call(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, values, (inputs,))

    def step() -> None:
        training_step(model, inputs, targets)

    with sdpa_kernel(SDPBackend.MATH):
        tracing = in_steps_once(lambda: torch.func.linearize(call, parameters), step)
        _, push = torch.func.linearize(call, parameters)
        work: dict[str, Work] = {"ours": lambda: lin.jvp(vector), "peer": lambda: push(tangents)}
        costs = in_steps(work, step, REPETITIONS)
    note = f"tracing takes the peer {tracing:.0f} steps"
    return Row(problem.name, "J v", costs["ours"], "torch.func.linearize", costs["peer"], note)


def memory(problem: Problem, device: str) -> Memory:
    """Return the memory of the four scores."""
    if device != "cpu":
        return in_fresh_process(_memory_of_gpu, problem.name, device)
    ours = peak_megabytes(_load, problem.name, evalkit.score)
    if not problem.formed:
        return Memory(problem.name, ours, float("nan"))
    return Memory(problem.name, ours, peak_megabytes(_load, problem.name, _formed_scores))


def _memory_of_gpu(name: str, device: str) -> Memory:
    prepare()
    batch = find(name).make(device)

    def peak(work: Callable[..., object]) -> float:
        work(*batch)  # libraries take their workspaces at a first call
        return (peak_mebibytes(partial(work, *batch), torch.device(device)) or 0.0) * 2**20 / 1e6

    return Memory(name, peak(evalkit.score), peak(_formed_scores))


def _load(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    return find(name).make()


def _formed_scores(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        scores_with_gradients_formed(model, inputs, targets)

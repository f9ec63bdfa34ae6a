"""Cost of the engine beside its peer, curvlinops, on four problems, in training steps.

Run ``make bench-engine``. A training step is one forward and backward of the same model on the same
batch; each figure is a median of ratios measured in turns in one process. The peer's operator is
``GGNLinearOperator``, without its check for determinism.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import evalkit
from tests.benchmarks.problems import PROBLEMS, Problem

REPETITIONS = 5
COLUMNS = ("J v", "J'c", "F v", "F v, curvlinops", "JJ'c", "four scores", "NGD to 1%")


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(problem: Problem) -> dict[str, float]:
    """Return the cost of each piece of work, in training steps."""
    from curvlinops import GGNLinearOperator

    model, inputs, targets = problem.make()
    parameters = [value for value in model.parameters() if value.requires_grad]
    loss = nn.CrossEntropyLoss(reduction="sum")
    lin = evalkit.linearize(model, inputs, targets)
    c, v = lin.logit_gradients, torch.randn_like(lin.gradient)
    peer = GGNLinearOperator(
        model, loss, parameters, [(inputs, targets)], check_deterministic=False
    )

    def step() -> None:
        model.zero_grad()
        loss(model(inputs), targets).backward()

    work = dict(
        zip(
            COLUMNS,
            (
                lambda: lin.jvp(v),
                lambda: lin.vjp(c),
                lambda: lin.fvp(v),
                lambda: peer @ v,
                lambda: lin.kernel_product(c),
                lambda: evalkit.score(model, inputs, targets),
                lambda: evalkit.natural_gradient(lin, floor_tolerance=0.01),
            ),
            strict=True,
        )
    )
    for warm in (step, *work.values()):
        warm()
    ratios: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPETITIONS):
        reference = statistics.median(seconds(step) for _ in range(5))
        for name, run in work.items():
            ratios[name].append(seconds(run) / reference)
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; in training steps")
    print(f"{'':20}" + "".join(f"{name:>18}" for name in COLUMNS))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative for the peer
        for problem in PROBLEMS:
            costs = measure(problem)
            print(f"{problem.name:20}" + "".join(f"{costs[name]:>18.2f}" for name in COLUMNS))


if __name__ == "__main__":
    main()

"""Cost of four scores on the paper's 10.5M-parameter MLP, in training steps and in memory.

Run ``make bench``, or ``python -m tests.benchmarks.scores --peer`` to measure the same scores with
per-sample gradients formed, which takes minutes and 13 GB.

Only ratios count: a training step (forward and backward of the same model on the same batch) and
the scores are timed in turns in one process. Memory is the peak of the process above what it
holds with the model and the batch loaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import evalkit
from tests.benchmarks.problems import PROBLEMS

MLP = PROBLEMS[0]
SAMPLES = MLP.samples
METHODS = ("sgd", "ef", "ief", "sf")


def peak_megabytes() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def training_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Run one forward and backward."""
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets, reduction="sum").backward()


def measure(work: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Return the median cost of ``work`` in training steps, and its peak memory in MB."""
    batch = MLP.make()
    before = peak_megabytes()
    work()
    memory = peak_megabytes() - before
    training_step(*batch)
    ratios = []
    for _ in range(repetitions):
        step = statistics.median(seconds(lambda: training_step(*batch)) for _ in range(5))
        ratios.append(seconds(work) / step)
    return statistics.median(ratios), memory


def four_scores() -> tuple[float, float]:
    """Measure ``evalkit.score``."""
    model, inputs, targets = MLP.make()
    return measure(lambda: evalkit.score(model, inputs, targets, methods=METHODS), repetitions=9)


def four_scores_with_gradients_formed() -> tuple[float, float]:
    """Measure the same four gammas with the per-sample gradients formed by ``vmap(grad)``."""
    model, inputs, targets = MLP.make()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, values, (sample.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, target.unsqueeze(0))

    def gradients(labels: Tensor) -> Tensor:
        formed = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, labels)
        return torch.cat([formed.pop(name).flatten(1) for name in parameters], 1)

    def solve(rows: Tensor, right: Tensor) -> Tensor:
        gram = (rows @ rows.T).double()
        damping = 1e-12 * torch.eye(len(gram), dtype=gram.dtype)
        return torch.linalg.lstsq(gram + damping, right.double()[:, None]).solution[:, 0].float()

    def work() -> None:
        logits = model(inputs).detach()
        residual = logits.softmax(-1) - nn.functional.one_hot(targets, 10)
        g_rows = gradients(targets)
        g = g_rows.sum(0)
        directions = [g]
        for right in (torch.ones(SAMPLES), residual.square().sum(1)):
            directions.append(g_rows.T @ solve(g_rows, right))
        del g_rows
        sampled = gradients(torch.multinomial(logits.softmax(-1), 1).squeeze(1))
        directions.append(g - sampled.T @ solve(sampled, sampled @ g))
        del sampled
        lin = evalkit.linearize(model, inputs, targets)
        for direction in directions:
            evalkit.gamma(lin, direction)

    return measure(work, repetitions=1)


def in_fresh_process(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Run a measurement where no earlier one has raised the peak of the memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", action="store_true", help="also form per-sample gradients")
    with_peer = parser.parse_args().peer
    print(f"MLP 3072-2048-2048-10, 10,510,346 parameters, N = {SAMPLES}, {', '.join(METHODS)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = {"evalkit.score": four_scores}
    if with_peer:
        rows["per-sample gradients formed"] = four_scores_with_gradients_formed
    print(f"{'':30}{'training steps':>16}{'peak memory':>16}")
    for name, work in rows.items():
        steps, memory = in_fresh_process(work)
        print(f"{name:30}{steps:>16.1f}{memory:>13.0f} MB")


if __name__ == "__main__":
    main()

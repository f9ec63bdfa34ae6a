"""The marks that the engine is held to, judged from the measured rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.measure import Memory, Row

MLP, CNN, LORA, FULL = "MLP 10.5M", "CNN, GroupNorm", "transformer, LoRA", "transformer, full"
LONG, NARROW, MANY = "transformer, 64 tokens, N = 160", "MLP of width 512", "MLP 10.5M, N = 1280"
STEPS = {MLP: 7.5, LORA: 4.6, CNN: 6.5, FULL: 8, LONG: 9, NARROW: 6, MANY: 6}
"""Training steps that the four scores may take."""
IEF_STEP = {MLP: (1.3, 1.3), LORA: (2.0, math.inf)}
"""How many times the time and the memory of Adam's step one of iEF may take."""


@dataclass(frozen=True)
class Verdict:
    """One mark.

    Attributes:
        problem: its name.
        mark: what is asked for.
        measured: the figure.
        reached: whether it is.
    """

    problem: str
    mark: str
    measured: float
    reached: bool


def verdicts(rows: Sequence[Row], memories: Sequence[Memory]) -> list[Verdict]:
    """Return every mark that can be judged from what was measured."""
    found: list[Verdict] = []

    def judge(
        work: str, limits: dict[str, float], text: str, figure: Callable[[Row], float], most: bool
    ) -> None:
        for row in rows:
            if row.work == work and row.problem in limits and row.peer != "torch.func.linearize":
                limit, value = limits[row.problem], figure(row)
                reached = value <= limit if most else value >= limit
                found.append(Verdict(row.problem, text.format(limit), value, reached))

    def faster(row: Row) -> float:
        return row.ratio

    every = (MLP, CNN, LORA, FULL)
    judge("F v", dict.fromkeys(every, 1.5), "F v in at most {} steps", lambda r: r.steps, True)
    judge(
        "F v", {MLP: 2, CNN: 2, LORA: 2, FULL: 1.5}, "F v {}x faster than curvlinops", faster, False
    )
    judge("F v", {FULL: 1.25}, "F v in at most {} steps", lambda r: r.steps, True)
    judge("F v", {FULL: 1.9}, "F v {}x faster than curvlinops", faster, False)
    for times in (2, 4):
        judge(
            "NGD to 1% of the floor",
            dict.fromkeys(every, times),
            "NGD {}x faster than curvlinops' CG",
            faster,
            False,
        )
    scores = "sgd, ef, ief, sf"
    judge(scores, {LORA: 7.5}, "four scores in at most {} steps", lambda r: r.steps, True)
    judge(scores, STEPS, "four scores in at most {} steps", lambda r: r.steps, True)
    judge(scores, {MLP: 50}, "four scores {}x faster than with gradients formed", faster, False)
    judge(
        "10 dampings of ef, ief, sf",
        {MLP: 2, CNN: 2.2, FULL: 2.2},
        "ten dampings at most {}x one",
        lambda r: 1 / r.ratio,
        True,
    )
    for work in ("kfac", "kfac:labels=improved", "ekfac"):
        text = f"{work} in at most {{}} steps"
        judge(work, {MLP: 12}, text, lambda r: r.steps, True)
    for work, most in (("10 dampings of kfac", 1.3), ("three kinds of kfac", 2)):
        text = f"{work} at most {{}}x one"
        judge(work, {MLP: most}, text, lambda r: 1 / r.ratio, True)
    for one in memories:
        if one.problem == MLP:
            ratio = one.formed / one.ours
            found.append(
                Verdict(MLP, "four scores in 20x less memory than formed", ratio, ratio >= 20)
            )
        if one.problem == LONG:
            gigabytes = one.ours / 1000
            found.append(Verdict(LONG, "four scores in at most 2 GB", gigabytes, gigabytes <= 2))
    return found

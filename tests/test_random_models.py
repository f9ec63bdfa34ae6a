"""Properties of random small models; ``python -m tests.properties`` draws more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.properties import PROPERTIES, scores
from tests.support.strategies import Plan

FOUND = {
    "sums of multiples of one gradient": (
        "polyak",
        Plan(blocks=(), samples=2, width=1, power=6, head_bias=False, seed=0),
    ),
    "labels that differ from those of the data by 1e-33": (
        "sf",
        Plan(
            blocks=("linear relu", "linear", "linear"),
            samples=5,
            width=1,
            classes=4,
            power=6,
            same="two",
            seed=1189,
        ),
    ),
    "rows that depend on each other to 1e-20": (
        "sf",
        Plan(
            inputs="tokens",
            blocks=("residual", "used twice"),
            outputs="positions",
            likelihood="bernoulli",
            samples=4,
            positions=3,
            width=2,
            classes=4,
            power=6,
            ignored=True,
            soft=True,
            head_bias=False,
            seed=3472,
        ),
    ),
    "gradients of repeated samples that cancel": (
        "sgd",
        Plan(
            inputs="tokens",
            blocks=(),
            likelihood="gaussian",
            samples=5,
            width=1,
            classes=1,
            power=-100,
            same="all",
            head_bias=False,
            seed=2,
        ),
    ),
    "products that overflow": (
        "ngd",
        Plan(
            blocks=("matrix", "residual", "without bias"),
            likelihood="bernoulli",
            width=2,
            classes=1,
            power=13,
            fitted="all",
            soft=True,
            head_bias=False,
            seed=4625,
        ),
    ),
    "a floor that is far below": (
        "ngd",
        Plan(
            inputs="positions",
            blocks=("without bias",),
            positions=1,
            classes=2,
            power=6,
            same="nearly two",
            head_bias=False,
            dtype="float32",
            seed=134,
        ),
    ),
    "inner products that are alike where rows are not": (
        "ief-tikhonov",
        Plan(
            inputs="images",
            blocks=("residual",),
            likelihood="bernoulli",
            samples=4,
            classes=2,
            power=3,
            same="all",
            fitted="one",
            soft=True,
            head_bias=False,
            dtype="float32",
            seed=0,
        ),
    ),
    "a direct solve that misses nearly all": (
        "ngd",
        Plan(
            blocks=("used twice",),
            samples=5,
            width=1,
            classes=4,
            power=6,
            ignored=True,
            head_bias=False,
            dtype="float32",
            seed=200413,
        ),
    ),
    "gradients whose terms cancel over positions": (
        "ef",
        Plan(
            inputs="tokens",
            blocks=("square", "used twice"),
            outputs="positions",
            samples=5,
            positions=2,
            width=1,
            classes=2,
            power=-20,
            fitted="one",
            seed=2010,
        ),
    ),
    "logit gradients that are opposite but for their last digits": (
        "sf",
        Plan(
            inputs="images",
            blocks=(),
            likelihood="bernoulli",
            samples=1,
            positions=1,
            width=2,
            classes=2,
            power=-100,
            same="nearly two",
            dtype="float32",
            seed=10311,
        ),
    ),
    "drawn labels whose terms cancel over positions": (
        "sf",
        Plan(
            inputs="tokens",
            blocks=("residual", "unused", "unused"),
            outputs="positions",
            likelihood="bernoulli",
            samples=5,
            width=2,
            classes=4,
            power=-20,
            same="nearly two",
            fitted="all",
            ignored=True,
            soft=True,
            seed=710377,
        ),
    ),
    "eigenvalues of F far below the gradients": (
        "ngd",
        Plan(inputs="tokens", blocks=(), samples=2, power=6, head_bias=False, seed=2),
    ),
    "samples that are fitted beyond the bits of most oracles": (
        "fgn-tikhonov",
        Plan(
            inputs="tokens",
            blocks=(),
            likelihood="bernoulli",
            samples=4,
            positions=3,
            width=2,
            classes=4,
            power=13,
            fitted="all",
            ignored=True,
            head_bias=False,
            dtype="float32",
            seed=4,
        ),
    ),
}
"""Methods and plans that are difficult to state an error of, by what is difficult of them."""


@pytest.mark.parametrize("name", FOUND)
def test_stated_errors_of_plans_that_were_found(name: str) -> None:
    method, plan = FOUND[name]
    scores.check_scores(plan, (method,))


@pytest.mark.parametrize("name", PROPERTIES)
def test_of_random_models(name: str) -> None:
    found = PROPERTIES[name]

    @settings(
        max_examples=found.examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(found.plans)
    def holds(plan: st.SearchStrategy) -> None:
        found.check(plan)

    holds()

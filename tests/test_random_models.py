"""Properties of random small models; ``python -m tests.properties`` draws more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.properties import PROPERTIES


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

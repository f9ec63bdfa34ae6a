"""What commands and scores arrange with the machine."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from threadpoolctl import ThreadpoolController

import evalkit
from evalkit import factorization
from evalkit.machine import let_threads_sleep
from evalkit.work import threads


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_unless_the_user_says_otherwise(
    given: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    let_threads_sleep()
    assert os.environ.get("OMP_WAIT_POLICY") == given  # too late once torch is loaded
    monkeypatch.delitem(sys.modules, "torch")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == kept


def test_lapack_keeps_to_one_thread_while_it_is_asked() -> None:
    def threads() -> set[int]:
        libraries = ThreadpoolController().select(user_api="blas").info()
        return {library["num_threads"] for library in libraries}

    before = threads()
    with factorization._one_thread(rows=1000):
        assert threads() <= {1}
    assert threads() == before


@pytest.mark.parametrize(("layers", "wanted"), [(1, 1), (60, 3)])
def test_a_small_model_is_scored_with_one_thread(layers: int, wanted: int) -> None:
    seen = []

    @evalkit.method("threads-seen")
    def threads_seen(lin: evalkit.Linearization, damping: float) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return lin.gradient

    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(layers)))
    batch = torch.randn(6, 3), torch.arange(6) % 3
    with threads(3):
        evalkit.score(model, *batch, methods="threads-seen")
        assert torch.get_num_threads() == 3
    assert set(seen) == {wanted}

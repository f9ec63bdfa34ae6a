"""``tests/cuda`` runs without a card: a part of it on a device that the CPU computes for.

In a process of its own, where torch can be told of such a device without anyone else noticing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.other_device import AVAILABLE

ROOT = Path(__file__).parents[1]
REHEARSED = (
    "test_other_device.py",
    "test_waiting.py::test_cg_asks_for_the_numbers_that_decide_and_for_no_others",
    "test_scores.py::test_float64_scores[mlp_categorical-0.001]",
    "test_scores.py::test_float64_natural_gradients[mlp_categorical-ngd:solver=sketch]",
    "test_scores.py::test_float64_scores_of_methods_by_layers[mlp_categorical]",
    "test_optimizers.py::test_steps[SF-mlp_categorical]",
    "test_optimizers.py::test_the_step_of_the_trainings_own_optimizer[AdamW-mlp_categorical]",
)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is found: tests/cuda is left out")
def test_a_card_computes() -> None:
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no devices that are written in Python")
def test_the_tests_of_a_card_can_be_rehearsed() -> None:
    names = [f"tests/cuda/{name}" for name in REHEARSED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--device", "other", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout

"""The device that these tests compare with the CPU: a card, or what ``--device`` names.

Without either the folder is left out. ``--device other`` rehearses the tests on a device that the
CPU computes for (:mod:`tests.support.other_device`), ``--device cpu`` compares the CPU with itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.support.other_device import NAME, other_device


def _device(config: pytest.Config) -> str | None:
    named: str | None = config.getoption("--device")
    return named or ("cuda" if torch.cuda.is_available() else None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the folder out where there is no device to compare with."""
    return True if _device(config) is None else None


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device."""
    found = _device(request.config)
    assert found is not None
    if found == "cuda":
        assert torch.cuda.is_available(), "torch finds no card"
    return found


@pytest.fixture(autouse=True)
def placed(device: str) -> Iterator[None]:
    """Tensors can be made on the device, and what is slow on purpose is not said."""
    with warnings.catch_warnings(), other_device() if device == NAME else nullcontext():
        warnings.filterwarnings("ignore", message="samples influence each other")
        yield

"""What every test starts from."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from evalkit.updates import registry

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job: tests of Ctrl-C, and processes that they start, need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules of tests and what they import stay until the end: to look for garbage among them takes a
# third of a second each time, and each measured peak of memory begins with a search.
gc.disable()


def pytest_collection_finish() -> None:
    """Set apart what is imported by now, and look for garbage in the rest."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let what looks for references find all of them."""
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a device be named that ``tests/cuda`` compares with the CPU."""
    told = (
        "what tests/cuda compares with the CPU: cuda where there is a card; cpu, other: rehearsal"
    )
    parser.addoption("--device", choices=("cpu", "cuda", "other"), help=told)


@pytest.fixture(autouse=True)
def methods_of_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test registers end with it."""
    monkeypatch.setattr(registry._METHODS, "_entries", dict(registry._METHODS._entries))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Files of the tests need not outlive a power cut, for which each row waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def own_data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The library of data sets writes what it converts into a folder of the tests."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("data-cache"))
        yield

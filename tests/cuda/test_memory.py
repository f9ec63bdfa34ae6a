"""Where a card's memory runs out, a study goes on in smaller parts; a sentence tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import evalkit
from evalkit.errors import TooLittleMemoryError
from evalkit.settings import Settings
from evalkit.storage.rows import Cell
from evalkit.study.execute import Rows, execute
from evalkit.study.plan import Unit
from tests.support.table import Batch, Draw, initialise

METHODS = ("sgd", "ef", "ief")
MEBIBYTE = 2**20


@pytest.fixture
def card(device: str) -> str:
    """The device, where it is one whose memory torch can bound."""
    if device != "cuda":
        pytest.skip("torch bounds the memory of a card alone")
    return device


def wide() -> Batch:
    """Sixteen samples whose hidden values take 64 MiB each in every layer, weights next to none."""
    draw = Draw(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.Tanh(), nn.Conv2d(64, 64, 1), nn.Tanh()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 4))
    initialise(model, draw)
    images = draw.normal(16, 1, 512, 512).float()
    return Batch(model.float(), images, draw.integers(4, 16), "categorical")


@contextmanager
def bounded(mebibytes: float) -> Iterator[None]:
    """Let this process have so much memory of the card beside what it holds."""
    torch.cuda.empty_cache()
    held, whole = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + mebibytes * MEBIBYTE) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def scored(batch: Batch) -> Rows:
    """The rows of a unit of a study."""
    settings = Settings(METHODS, (1e-3,), batch_size=len(batch.targets))
    unit = Unit(Cell("a", 0, 0.0, 0), frozenset((name, 1e-3) for name in METHODS))
    given = (batch.inputs, batch.targets)
    return execute(batch.model, given, batch.likelihood, settings, unit, "t")


def test_memory_that_is_out_is_told_in_a_sentence(card: str) -> None:
    batch = wide().on(card)
    with (
        bounded(256),
        pytest.raises(TooLittleMemoryError, match="fits into memory, found OutOfMemoryError"),
    ):
        evalkit.score(*batch, methods=METHODS)
    evalkit.score(*wide().on(card), methods=METHODS)  # and the card works on


def test_a_study_goes_on_with_fewer_samples_at_a_time(card: str) -> None:
    batch = wide().on(card)
    whole = scored(batch)
    assert whole.micro_batch_size is None
    with bounded(2048):
        parts = scored(batch)
    assert parts.micro_batch_size is not None
    assert parts.micro_batch_size < len(batch.targets)
    for name in ("gamma", "ratio"):
        found, expected = (torch.tensor(one.scores[name]) for one in (parts, whole))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


def test_matrices_that_do_not_fit_are_refused_before_they_are_formed(card: str) -> None:
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(4096, 4096), nn.Tanh(), nn.Linear(4096, 4))
    initialise(model, draw)
    batch = Batch(model.float(), draw.normal(4, 4096).float(), draw.integers(4, 4), "categorical")
    lin = evalkit.linearize(*batch.on(card))
    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(free - 256 * MEBIBYTE, dtype=torch.uint8, device=card)
    try:
        with pytest.raises(evalkit.EvalkitError, match="room for the matrices of kfac"):
            evalkit.update("kfac", lin, damping=1e-3)
    finally:
        del held
        torch.cuda.empty_cache()

"""Whether a batch fits is told from a few of its samples, and the advised micro-batch size fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.bench.memory import peak_mebibytes
from evalkit.cli import main
from evalkit.doctor import Subject, memory, of_task
from evalkit.doctor.memory import Peaks
from evalkit.doctor.trial import trial
from evalkit.settings import Settings
from evalkit.tasks import load_task
from tests.support.planted import written

PICTURES = """
def model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, C),
    )

def data():
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(64) % C
"""
BAGS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(20, 8, mode="sum", include_last_offset=True)
        self.out = nn.Linear(8, C)

    def forward(self, ids, offsets):
        return self.out(self.table(ids, offsets))

def data():
    ids = torch.randint(20, (N, 3), generator=torch.Generator().manual_seed(1))
    return ids, ids[:, 0] % C

def in_a_row(ids, targets):
    return (ids.flatten(), torch.arange(0, ids.numel() + 1, 3)), targets

task = evalkit.Task(model=Net, data=data, collate=in_a_row)
"""
ASKED = ["--batch-size", "16", "--batches", "3", "--methods", "sgd,ief"]


def finding(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["doctor", *arguments, *ASKED, "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    return status, next(one for one in findings if one["name"] == "memory")


def peak(subject: Subject, micro_batch_size: int | None) -> float:
    """Return the bytes that scoring the batch takes."""

    def score() -> None:
        with trial(subject, subject.batch, micro_batch_size):
            pass

    found = peak_mebibytes(score, torch.device("cpu"))
    assert found is not None
    return 2**20 * found


def test_peaks_of_a_few_samples_bound_and_tell_those_of_many() -> None:
    # Weights alone, then activations beside a little else.
    truth = {size: max(100.0, 20 + 15 * size) for size in (2, 8, 32, 64)}
    peaks = Peaks(((2, truth[2]), (8, truth[8])))
    assert all(peaks.bound(size) >= truth[size] for size in (32, 64))
    peaks = Peaks(((8, truth[8]), (32, truth[32])))
    assert peaks.expected(64) == pytest.approx(truth[64])
    assert peaks.most(20 + 15 * 50) == 50
    assert peaks.most(truth[8] - 1) == 0
    assert Peaks(((1, 3.0),)).expected(4) == 12.0


def test_too_little_memory_is_told_with_the_micro_batch_size_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = written(tmp_path, PICTURES)
    settings = Settings(methods=("sgd", "ief"), batch_size=16)
    subject = of_task(load_task(spec), settings)
    whole = memory.memory(subject)
    assert (whole.finding.verdict, whole.micro_batch_size) == ("ok", None)
    needed = whole.finding.numbers["bytes"]
    assert needed == pytest.approx(peak(subject, None), rel=0.3)
    free = int(0.95 * needed)
    monkeypatch.setattr(memory, "free_on", lambda device: free)
    status, found = finding(capsys, spec)
    micro = found["numbers"]["micro_batch_size"]
    assert (status, found["verdict"]) == (1, "warn")
    assert "more than is safe" in found["finding"]
    assert f"--micro-batch-size {micro}" in found["cure"]
    assert 1 <= micro <= 8
    assert peak(subject, micro) <= free
    smaller = replace(subject, settings=replace(settings, micro_batch_size=micro))
    assert memory.memory(smaller).finding.verdict == "ok"
    monkeypatch.setattr(memory, "free_on", lambda device: 1000)
    nothing = memory.memory(subject).finding
    assert (nothing.verdict, "machine with more" in nothing.cure) == ("fail", True)


def test_samples_of_which_no_part_can_be_run_are_measured_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = finding(capsys, written(tmp_path, BAGS))
    assert (status, found["verdict"]) == (0, "ok")
    assert found["numbers"]["samples_held"] == 16

"""A device that is written in Python refuses what a card refuses, and counts what it waits for."""

from __future__ import annotations

import pytest
import torch

from tests.support.other_device import NAME, Host, Mixed


@pytest.fixture(autouse=True)
def only_there(device: str) -> None:
    if device != NAME:
        pytest.skip("--device other alone")


def test_a_tensor_of_the_cpu_may_not_meet_one_of_the_device() -> None:
    here, there = torch.ones(3), torch.ones(3, device=NAME)
    with pytest.raises(Mixed, match=r"found \(3,\) on the CPU"):
        there + here
    with pytest.raises(Mixed):
        there.add_(here)
    assert (there + there[0]).tolist() == [2.0, 2.0, 2.0]
    assert (there + here[0]).cpu().tolist() == [2.0, 2.0, 2.0]  # a number may
    assert there[here.nonzero().flatten()].device.type == NAME  # and so may indices


def test_each_number_that_the_host_asks_for_is_counted() -> None:
    there, before = torch.ones(3, device=NAME), Host.waits
    _ = there * 2 + there.sum()
    assert Host.waits == before
    there.tolist(), float(there[0]), there.cpu(), bool(there[0] > 0), torch.zeros(3).copy_(there)
    assert Host.waits == before + 5

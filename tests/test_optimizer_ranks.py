"""Two processes take the step of one: on the whole batch, or the mean of two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evalkit import optim
from evalkit.errors import EvalkitError
from tests.support.cases import CASES
from tests.support.dense import assert_near, call
from tests.support.optim_reference import flat
from tests.support.ranks import together
from tests.support.table import Batch

KINDS: dict[str, Any] = {
    "ief": optim.IEF,
    "ef": optim.EF,
    "sf": optim.SF,
    "fgn": optim.FGN,
    "polyak": optim.Polyak,
}
CASE = "mlp_categorical"
NAMES = (
    "convolution_group_norm",
    "token_labels",
    "embedding_tied_by_function",
    "module_used_twice",
    "frozen_parameters",
    "weight_normalised",
    "prompt_by_repeat",
)
"""Layers with a rule, and what is formed."""
SETTINGS: dict[str, Any] = {"momentum": 0.5, "normalise": True, "weight_decay": 0.1}
DAMPING = 1e-6


def part(batch: Batch, rank: int | None) -> Batch:
    """The first samples for rank 0, fewer others for rank 1, all of them for None."""
    count = len(batch.targets)
    first = count // 2 + 1
    here = {None: slice(0, count), 0: slice(0, first), 1: slice(first, count)}[rank]
    return batch._replace(inputs=batch.inputs[here], targets=batch.targets[here])


def stepped(name: str, kind: str, rank: int | None, steps: int = 1, **settings: Any) -> Tensor:
    """The parameters after some steps, and the loss of the last, (P + 1,)."""
    batch = part(CASES[name].make(), rank)
    parameters = list(batch.model.parameters())
    optimizer = KINDS[kind](parameters, 0.1, DAMPING, batch.likelihood, **settings)
    for _ in range(steps):
        loss = optimizer.step(lambda: (call(batch.model, batch.inputs), batch.targets))
    return torch.cat([flat(parameters), loss.reshape(1)])


def failing(rank: int | None) -> tuple[int, str, Tensor]:
    """A batch of which one process has numbers that are not finite: both of them leave it out."""
    batch = part(CASES[CASE].make(), rank)
    parameters = list(batch.model.parameters())
    optimizer = optim.IEF(parameters, 0.1, on_failure="skip", gram="batch")
    refusing = optim.IEF(parameters, 0.1, gram="rank")
    factor = torch.nan if rank == 1 else 1.0

    def closure() -> tuple[Tensor, Tensor]:
        return call(batch.model, batch.inputs * factor), batch.targets

    optimizer.step(closure)
    said = ""
    try:
        refusing.step(closure)
    except EvalkitError as error:
        said = str(error)
    return optimizer.skipped, said, flat(parameters)


def work(rank: int) -> dict[Any, Any]:
    """Every step that a test looks at, in one order."""
    found: dict[Any, Any] = {}
    for kind in KINDS:
        for gram in ("batch", "rank"):
            found[kind, gram] = stepped(CASE, kind, rank, gram=gram)
    for name in NAMES:
        found[name] = stepped(name, "ief", rank, gram="batch")
    for gram in ("batch", "rank"):
        found["settings", gram] = stepped(CASE, "ief", rank, 3, gram=gram, **SETTINGS)
    found["failing"] = failing(rank)
    return found


@pytest.fixture(scope="module")
def both() -> tuple[dict[Any, Any], dict[Any, Any]]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo, by which processes of a CPU meet")
    return together(work)


Both = tuple[dict[Any, Any], dict[Any, Any]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_matrix_of_the_whole_batch_is_that_of_one_process(both: Both, kind: str) -> None:
    expected = stepped(CASE, kind, None)
    for found in both:
        assert_near(found[kind, "batch"], expected, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_every_kind_are_gathered(both: Both, name: str) -> None:
    expected = stepped(name, "ief", None)
    for found in both:
        assert_near(found[name], expected, 1e-10)


@pytest.mark.parametrize("kind", ["ief", "ef", "fgn", "polyak"])
def test_otherwise_directions_are_averaged(both: Both, kind: str) -> None:
    """The mean of the steps that each process would take with its own samples."""
    alone = [stepped(CASE, kind, rank)[:-1] for rank in (0, 1)]
    for found in both:
        assert_near(found[kind, "rank"][:-1], torch.stack(alone).mean(0), 1e-10)


@pytest.mark.parametrize("gram", ["batch", "rank"])
def test_processes_keep_the_same_parameters(both: Both, gram: str) -> None:
    for key in [*((kind, gram) for kind in KINDS), ("settings", gram)]:
        assert torch.equal(both[0][key], both[1][key]), key


def test_settings_are_of_the_step_that_all_take(both: Both) -> None:
    assert_near(both[0]["settings", "batch"], stepped(CASE, "ief", None, 3, **SETTINGS), 1e-10)


def test_draws_of_processes_differ(both: Both) -> None:
    """With one seed for all of them, samples in the same place would share their numbers."""
    same = [stepped(CASE, "sf", rank)[:-1] for rank in (0, 1)]
    assert not torch.allclose(both[0]["sf", "rank"][:-1], torch.stack(same).mean(0), rtol=1e-6)


def test_a_failure_of_one_process_is_of_all(both: Both) -> None:
    start = flat(list(CASES[CASE].make().model.parameters()))
    for skipped, said, theta in (found["failing"] for found in both):
        assert skipped == 1
        assert "finite" in said
        assert torch.equal(theta, start)


def test_other_methods_have_no_system_of_all_processes() -> None:
    parameters = CASES[CASE].make().model.parameters()
    with pytest.raises(EvalkitError, match="gram"):
        optim.Preconditioned(parameters, "kfac", 0.1, 1e-3, gram="batch")

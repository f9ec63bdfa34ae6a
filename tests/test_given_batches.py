"""Inputs and targets in the forms that users have them: the right value, or one sentence."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import evalkit
from evalkit.tasks import Samples
from evalkit.tasks.samples import as_samples
from tests.support.given import (
    DAMPING,
    METHODS,
    TARGETS,
    Around,
    Two,
    expected,
    found,
    halves,
    inputs,
    plain,
    scores_right,
    sentence,
)

Pair = namedtuple("Pair", "a b")


class TakesOneList(nn.Module):
    """A forward whose one argument is a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, parts: list[Tensor]) -> Any:
        return self.inner(torch.cat(tuple(parts), -1))


def nested(model: Any, one: Any, two: Any) -> Any:
    return model(torch.cat((one["a"], two[0]), -1))


BATCHES = {
    "list": (Two, lambda a, b: [a, b]),
    "list of arrays": (Two, lambda a, b: [a.numpy(), b.numpy()]),
    "tuple of a tensor and an array": (Two, lambda a, b: (a, b.double().numpy())),
    "named tuple": (Two, Pair),
    "dict": (Two, lambda a, b: {"b": b, "a": a}),
    "dict of arrays": (Two, lambda a, b: {"b": b.numpy(), "a": a.numpy()}),
    "another mapping": (Two, lambda a, b: UserDict(a=a, b=b.numpy())),
    "nested": (lambda: Around(nested), lambda a, b: [{"a": a.numpy()}, [b]]),
    "a list as the one argument": (TakesOneList, lambda a, b: [a, b]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_containers_of_inputs(kind: str) -> None:
    model, batch = BATCHES[kind]
    scores_right(model(), batch(*halves()))


def test_the_batch_of_a_loader() -> None:
    rows = zip(*halves(), strict=True)
    batch = next(iter(DataLoader(list(zip(rows, TARGETS.tolist(), strict=True)), batch_size=6)))
    scores_right(Two(), *batch)


def test_the_output_of_a_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    a, b = halves()
    scores_right(Two(), transformers.BatchEncoding({"a": a, "b": b}))


@pytest.mark.parametrize("dtype", [">f4", "f8", "f2"])
def test_arrays_of_other_precisions(dtype: str) -> None:
    batch = inputs().numpy().astype(dtype)
    known = torch.from_numpy(batch.astype("f4"))
    assert found(plain(), batch) == pytest.approx(found(plain(), known), rel=1e-6)


def test_inputs_in_another_precision_than_the_parameters() -> None:
    scores_right(plain(), inputs().double())
    scores_right(plain(torch.float64), inputs())
    assert evalkit.linearize(plain(torch.float64), inputs()[:, :], TARGETS).logits.dtype == (
        torch.float64
    )


def test_inputs_in_float64_stay_so_where_the_forward_takes_them() -> None:
    model = Around(lambda net, times: net((times - 1e9).float()))
    times = inputs().double() + 1e9
    known = found(plain(), (times - 1e9).float())
    assert found(model, times) == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize(
    "targets",
    [
        TARGETS.tolist(),
        tuple(TARGETS.tolist()),
        list(TARGETS),
        TARGETS.numpy(),
        list(TARGETS.numpy()),
        TARGETS.numpy().astype(">i2"),
        TARGETS.to(torch.uint8),
        TARGETS.numpy().astype(np.uint16),
    ],
    ids=["list", "tuple", "tensors", "array", "numpy numbers", "big endian", "uint8", "uint16"],
)
def test_forms_of_labels(targets: Any) -> None:
    scores_right(plain(), inputs(), targets)


def test_lists_of_real_targets_and_of_answers() -> None:
    values = inputs()[:, :3]
    known = expected(targets=values, likelihood="gaussian")
    for targets in (values.tolist(), values.double().numpy(), values.clone().requires_grad_()):
        scores_right(plain(), inputs(), targets, known, likelihood="gaussian")
    answers = values > 0
    known = expected(targets=answers, likelihood="bernoulli")
    scores_right(plain(), inputs(), answers.tolist(), known, likelihood="bernoulli")


TARGETS_REFUSED: dict[str, tuple[Any, str]] = {
    "words": (["yes"] * 6, "an array of numbers"),
    "objects": (np.array([object()] * 6), "an array of numbers"),
    "integers beyond 64 bits": ([10**30] * 6, "an array of numbers"),
    "rows of different lengths": ([[1], [1, 2], [1], [1], [1], [1]], "different lengths"),
    "parts as a loader collates them": ([TARGETS, TARGETS], "a list of 2 values"),
    "masked": (np.ma.masked_array(TARGETS.numpy(), mask=[1, 0, 0, 0, 0, 0]), "masked"),
    "complex": (TARGETS + 0j, "complex"),
    "none": (None, "NoneType"),
    "a dict": ({"labels": TARGETS}, "dict"),
    "a number": (torch.tensor(1), "shape ()"),
    "no samples": (TARGETS[:0], "at least one sample"),
    "no samples in a list": ([], "at least one sample"),
    "nested": (torch.nested.nested_tensor([TARGETS[:2], TARGETS[:3]]), "targets as dense"),
    "sparse": (TARGETS.to_sparse(), "sparse_coo"),
    "meta": (TARGETS.to("meta"), "meta device"),
}


@pytest.mark.parametrize("kind", TARGETS_REFUSED)
def test_targets_that_are_refused(kind: str) -> None:
    targets, told = TARGETS_REFUSED[kind]
    assert told in sentence(plain(), inputs(), targets)


def ragged(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([inputs()[:2], inputs()[:3]], layout=layout)


INPUTS_REFUSED: dict[str, tuple[Any, str]] = {
    "nested": (ragged(torch.strided), "to_padded_tensor"),
    "jagged": (ragged(torch.jagged), "to_padded_tensor"),
    "sparse": (inputs().to_sparse(), "to_dense"),
    "sparse rows": (inputs().to_sparse_csr(), "to_dense"),
    "meta": (inputs().to("meta"), "meta device"),
    "objects": (np.array([[object()] * 4] * 6), "an array of numbers"),
    "dates": (np.zeros((6, 4), "M8[s]"), "an array of numbers"),
    "words": (["a"] * 6, "no tensor"),
    "nothing": ({}, "no tensor"),
    "integers": (torch.ones(6, 4, dtype=torch.int64), "module '0' (Linear)"),
    "too few": (inputs()[:3], "[3]"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", INPUTS_REFUSED)
def test_inputs_that_are_refused(kind: str) -> None:
    batch, told = INPUTS_REFUSED[kind]
    assert told in sentence(plain(), batch)


def test_inputs_with_gradients_keep_them_to_themselves() -> None:
    leaf = inputs().requires_grad_()
    scores_right(plain(), leaf)
    scores_right(plain(), leaf * 1)
    assert leaf.grad is None


def test_a_forward_that_differentiates_by_its_input() -> None:
    def slopes(model: Any, x: Tensor) -> Any:
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]

    known = Around(lambda model, x: slopes(model, x.detach().requires_grad_()))
    targets = inputs().flip(0)
    scores_right(
        Around(slopes),
        inputs().requires_grad_(),
        targets,
        expected(known, targets, "gaussian"),
        likelihood="gaussian",
    )


def test_a_batch_made_under_inference_mode() -> None:
    with torch.inference_mode():
        batch, targets = inputs() * 1, TARGETS * 1
    scores_right(plain(), batch, targets)


def test_tables_of_pandas() -> None:
    frame, labels = pd.DataFrame(inputs().numpy()), pd.Series(TARGETS.numpy())
    scores_right(plain(), frame, labels)


# --- as the data of a task ---------------------------------------------------------------------


def test_data_of_a_task_in_nested_containers_and_lists() -> None:
    a, b = halves()
    samples = as_samples(([{"a": a.numpy()}, [b]], TARGETS.tolist()), "the data", None)
    batch, targets = samples.take(torch.tensor([5, 0, 1, 2, 3, 4]))
    again = found(Around(nested), batch, targets, damping=DAMPING, methods=METHODS)
    assert again == pytest.approx(expected(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ["nested", "sparse", "sparse rows", "meta"])
def test_data_of_a_task_that_has_no_rows(kind: str) -> None:
    batch, told = INPUTS_REFUSED[kind]
    with pytest.raises(evalkit.EvalkitError, match=told):
        as_samples((batch, TARGETS), "the data", None)


def test_parts_of_a_sample_are_called_by_their_place() -> None:
    with pytest.raises(evalkit.EvalkitError, match=r"inputs\[0\]\['a'\]: 3"):
        Samples(({"a": inputs()[:3]}, inputs()), TARGETS)

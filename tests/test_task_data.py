"""What a task's data may be: tensors, arrays, tables, data sets, loaders: the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from evalkit.errors import EvalkitError
from evalkit.study.batches import data_hash
from evalkit.tasks import Task
from tests.support.small_studies import model, task, tensors

CHOSEN = torch.tensor([5, 0, 63, 7])


class Items(Dataset):
    """Items as a function of the sample's input and label makes them."""

    def __init__(self, make: Callable[[Any, Any], Any]) -> None:
        self.make = make
        self.inputs, self.targets = tensors()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.inputs[index], self.targets[index])


def plain() -> TensorDataset:
    return TensorDataset(*tensors())


def pair_of_dicts(items: list[Any]) -> Any:
    inputs, targets = zip(*items, strict=True)
    return [torch.stack(inputs), torch.stack(targets)]


FORMS: dict[str, Any] = {
    "arrays": lambda: tuple(value.numpy() for value in tensors()),
    "double arrays": lambda: (tensors()[0].double().numpy(), tensors()[1].numpy()),
    "reversed twice": lambda: tuple(value.numpy()[::-1].copy()[::-1] for value in tensors()),
    "a list of two": lambda: list(tensors()),
    "a table": lambda: (pd.DataFrame(tensors()[0].numpy()), pd.Series(tensors()[1].numpy())),
    "a data set": plain,
    "a data set itself": plain(),
    "a loader": lambda: DataLoader(plain(), batch_size=3, shuffle=True),
    "a loader itself": DataLoader(plain(), batch_size=3),
    "its collate function": lambda: DataLoader(plain(), collate_fn=pair_of_dicts),
    "items of numpy": lambda: Items(lambda x, y: (x.double().numpy(), int(y))),
    "items of dicts": lambda: Items(lambda x, y: {"input": x, "labels": y}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    samples = task(FORMS[form]).training_samples()
    inputs, targets = samples.take(CHOSEN)
    if isinstance(inputs, dict):
        inputs = inputs["input"]
    expected = tuple(value[CHOSEN] for value in tensors())
    assert len(samples) == 64
    torch.testing.assert_close((inputs, targets), expected, rtol=0, atol=0)
    assert len(samples.take(slice(2))[1]) == 2


def test_items_of_several_inputs_and_a_collate_function() -> None:
    items = Items(lambda x, y: ((x, x + 1), y))
    chosen = Task(model=model, data=items, collate=lambda inputs, targets: (inputs[1], targets))
    inputs, _ = chosen.training_samples().take(CHOSEN)
    torch.testing.assert_close(inputs, tensors()[0][CHOSEN] + 1)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (Stream, "found a stream"),
        (lambda: DataLoader(Stream()), "found a stream"),
        (lambda: TensorDataset(torch.zeros(0, 8), torch.zeros(0)), "at least one sample"),
        (lambda: (np.array(["a", "b"]), np.zeros(2)), "an array of numbers"),
        (lambda: (np.zeros((3, 8)), np.zeros(2)), "inputs: 3, targets: 2"),
        (lambda: np.zeros((3, 8)), "(inputs, targets), found ndarray"),
        (lambda: iter([]), "a Dataset or a DataLoader"),
    ],
)
def test_what_is_no_data_is_one_sentence(data: Any, expected: str) -> None:
    with pytest.raises(EvalkitError) as caught:
        task(data).training_samples()
    assert expected in str(caught.value)
    assert "the data of task 'small'" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x, y: (x, y, y), "found 3 values"),
        (lambda x, y: x, "found Tensor"),
        (lambda x, y: {"input": x}, "a dict with 'input'"),
    ],
)
def test_items_that_are_no_samples_are_one_sentence(make: Any, expected: str) -> None:
    with pytest.raises(EvalkitError, match="give a DataLoader with a collate_fn") as caught:
        task(lambda: Items(make)).training_samples().take(CHOSEN)
    assert expected in str(caught.value)


def test_the_hash_of_a_batch_is_that_of_its_content() -> None:
    inputs, targets = tensors()
    known = data_hash(inputs, targets)
    assert data_hash(inputs.clone(), targets.clone()) == known
    assert data_hash({"a": inputs, "b": targets}, targets) == data_hash(
        {"b": targets, "a": inputs}, targets
    )
    others = [
        data_hash(inputs.double(), targets),
        data_hash(inputs.reshape(8, 64), targets),
        data_hash(inputs, targets.flip(0)),
        data_hash((inputs,), targets),
        data_hash({"a": inputs}, targets),
        data_hash(inputs.bfloat16(), targets),
    ]
    assert len({known, *others}) == 7

"""What is trained and scored: a model, its data, what its outputs mean, and how to train it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit import likelihoods, optimizers
from evalkit.errors import EvalkitError
from evalkit.linearization.forward import Inputs
from evalkit.next_token import (
    answers_in_words,
    check_shift,
    predicts_next,
    prompt_length,
    refuse_labels,
    shifting,
)

_MESSAGE_LENGTH = 200


@contextmanager
def user_code(what: str, file: str | Path | None = None) -> Iterator[None]:
    """Turn an exception of code that evalkit did not write into one sentence.

    Args:
        what: the code, as the sentence calls it (``"the model of task 'mine'"``).
        file: the file that the line number should refer to; default: where it was raised.

    Raises:
        EvalkitError: the code raised; errors that are sentences already pass unchanged.
    """
    try:
        yield
    except EvalkitError:
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())[:_MESSAGE_LENGTH] or "no message"
        place = _place(error, file)
        raise EvalkitError(
            f"expected {what} to run, found {type(error).__name__}: {message} ({place}); "
            "correct that code"
        ) from error


def _place(error: BaseException, file: str | Path | None) -> str:
    """Return ``file, line n`` for the innermost frame in ``file``, or the innermost frame."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == Path(file)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's ambient generators within the block and restore their state afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


Collate = Callable[[Inputs, Tensor], tuple[Inputs, Tensor]]
"""Maps the inputs and targets of a batch to others, sample axis first."""


Setting = str | int | float | bool
"""A value that a task was made with: a model's name, a number of samples."""


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of N samples, each tensor with the samples along its first axis.

    Args:
        inputs: a tensor, a tuple of tensors or a dict of tensors.
        targets: a tensor.
        collate: makes of the inputs and targets of a batch what the model and the likelihood take;
            None where they are that already.

    Raises:
        EvalkitError: something else than tensors, no samples, or different numbers of samples.
    """

    inputs: Inputs
    targets: Tensor
    collate: Collate | None = None

    def __post_init__(self) -> None:
        tensors = {**_named(self.inputs), "targets": self.targets}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.dim() == 0:
                raise EvalkitError(
                    f"expected {name} to be a tensor with the samples along its first axis, found "
                    f"{_kind(tensor)}; return (inputs, targets), with inputs a tensor, a tuple of "
                    "tensors or a dict of tensors"
                )
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise EvalkitError(
                f"expected as many inputs as targets, found {found}; put the samples along the "
                "first axis of every tensor"
            )
        if len(self) == 0:
            raise EvalkitError("expected at least one sample, found none; check the task's data")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor | slice) -> tuple[Inputs, Tensor]:
        """Return the inputs and the targets of the samples at ``indices``: (n,) integers."""
        inputs, targets = self.inputs, self.targets[indices]
        if isinstance(inputs, Tensor):
            inputs = inputs[indices]
        elif isinstance(inputs, tuple):
            inputs = tuple(tensor[indices] for tensor in inputs)
        else:
            inputs = {name: tensor[indices] for name, tensor in inputs.items()}
        if self.collate is None:
            return inputs, targets
        with user_code("the collate function of the task"):
            return self.collate(inputs, targets)


def _named(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, tuple) and inputs:
        return {f"inputs[{index}]": tensor for index, tensor in enumerate(inputs)}
    if isinstance(inputs, dict) and inputs:
        return {f"inputs['{name}']": tensor for name, tensor in inputs.items()}
    return {"inputs": inputs}


def _kind(value: Any) -> str:
    return "a single number" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True)
class Recipe:
    """How a task is trained unless the caller says otherwise.

    Args:
        optimizer: a name of :func:`evalkit.optimizers.names`.
        learning_rate: for the mean loss of a batch.
        weight_decay: as the optimizer defines it.
        epochs: passes over the training samples.
        batch_size: samples per step; the last batch of an epoch may be smaller.
        checkpoint_every: epochs between checkpoints; the last epoch is always saved.

    Raises:
        EvalkitError: a value is out of range, or there is no such optimizer.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 30
    batch_size: int = 32
    checkpoint_every: int = 3

    def __post_init__(self) -> None:
        optimizers.get(self.optimizer)
        for name in ("epochs", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise EvalkitError(
                    f"expected {_words(name)} to be an integer of at least 1, found {value!r}; "
                    "pass a larger one"
                )
        if not _finite(self.learning_rate) or self.learning_rate <= 0:
            raise EvalkitError(
                f"expected a learning rate above 0, found {self.learning_rate!r}; "
                "pass a positive number such as 0.001"
            )
        if not _finite(self.weight_decay) or self.weight_decay < 0:
            raise EvalkitError(
                f"expected a weight decay of at least 0, found {self.weight_decay!r}; "
                "pass 0 for none"
            )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Task:
    """A model and the data that it is trained and scored on.

    Args:
        model: builds the model, freshly initialised from torch's ambient generator.
        data: returns the training samples, (inputs, targets); see :class:`Samples`.
        likelihood: what the outputs mean, a name of :func:`evalkit.likelihoods.names`.
        validation: returns samples in the form of ``data``, or None where there are none.
        recipe: the defaults of training.
        name: what tables and manifests call it; where empty, :func:`load_task` fills it in.
        base: builds the model that saved adapters are put on, and that checkpoints of a whole
            model are of; None for ``model``.
        collate: applied to every batch of ``data`` and ``validation``; see :class:`Samples`.
        settings: what a task of a family was made with; provenance.
        shift_labels: the targets are labels as the Hugging Face Trainer takes them for a causal
            language model, and are moved one position to the left in every batch, as
            :func:`evalkit.shifted_labels` does; None for False, where labels that are the
            model's own input tokens are refused by :meth:`fit_labels`.

    Raises:
        EvalkitError: an argument is not what it should be.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Inputs, Tensor]]
    likelihood: str = "categorical"
    validation: Callable[[], tuple[Inputs, Tensor]] | None = None
    recipe: Recipe = field(default_factory=Recipe)
    name: str = ""
    base: Callable[[], nn.Module] | None = None
    collate: Collate | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    shift_labels: bool | None = None

    def __post_init__(self) -> None:
        for argument in ("model", "data", "validation", "base"):
            value = getattr(self, argument)
            if argument in ("validation", "base") and value is None:
                continue
            # A built module can be called too, but it would carry its weights between uses.
            if isinstance(value, nn.Module) or not callable(value):
                raise EvalkitError(
                    f"expected the {argument} of a task to be a function without arguments, found "
                    f"{type(value).__name__}; pass a function that returns it"
                )
        if not isinstance(self.recipe, Recipe):
            raise EvalkitError(
                f"expected the recipe of a task to be an evalkit Recipe, found "
                f"{type(self.recipe).__name__}; pass evalkit.tasks.Recipe(...)"
            )
        likelihoods.get(self.likelihood)
        check_shift(self.shift_labels)

    def build_model(self, seed: int) -> nn.Module:
        """Return the model as initialised from ``seed``; the ambient generators stay as they are.

        Raises:
            EvalkitError: the task's code fails or returns something else than a module.
        """
        return self._build(self.model, seed)

    def build_base(self, seed: int) -> nn.Module:
        """Return the model that adapters are put on, as :meth:`build_model` does."""
        return self._build(self.base or self.model, seed)

    def _build(self, build: Callable[[], nn.Module], seed: int) -> nn.Module:
        with seeded(seed), user_code(f"the model of task '{self.name}'"):
            model = build()
        if not isinstance(model, nn.Module):
            raise EvalkitError(
                f"expected the model of task '{self.name}' to be a torch.nn.Module, found "
                f"{type(model).__name__}; return the module from that function"
            )
        return model

    def training_samples(self) -> Samples:
        """Return the samples to train on and to score.

        Raises:
            EvalkitError: the task's code fails or returns something else than samples.
        """
        return self._samples("data", self.data)

    def validation_samples(self) -> Samples | None:
        """Return the samples to validate on, None where the task has none.

        Raises:
            EvalkitError: as for :meth:`training_samples`.
        """
        return None if self.validation is None else self._samples("validation", self.validation)

    def fit_labels(self, samples: Samples, model: nn.Module) -> Samples:
        """Return the samples with labels that fit the logits of ``model``, its prompt included.

        Raises:
            EvalkitError: see :func:`evalkit.next_token.refuse_labels`.
        """
        if predicts_next(model) or answers_in_words(model):
            refuse_labels(model, *samples.take(slice(0, 2)), self.name, self.shift_labels)
        prompt = prompt_length(model) if self.shift_labels else 0
        return replace(samples, collate=shifting(self.collate, prompt)) if prompt else samples

    def _samples(self, argument: str, load: Callable[[], tuple[Inputs, Tensor]]) -> Samples:
        what = f"the {argument} of task '{self.name}'"
        with user_code(what):
            loaded = load()
        if not isinstance(loaded, tuple) or len(loaded) != 2:
            found = f"{len(loaded)} values" if isinstance(loaded, tuple) else type(loaded).__name__
            raise EvalkitError(f"expected {what} to be (inputs, targets), found {found}")
        try:
            return Samples(*loaded, shifting(self.collate) if self.shift_labels else self.collate)
        except EvalkitError as error:
            raise EvalkitError(f"{what}: {error}") from None

"""What is trained and scored: a model, its data, what its outputs mean, and how to train it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from evalkit import likelihoods
from evalkit.errors import EvalkitError
from evalkit.evaluation.wrapped import evaluated_module, own_values
from evalkit.next_token import (
    answers_in_words,
    check_shift,
    predicts_next,
    prompt_length,
    refuse_labels,
    shifting,
)
from evalkit.tasks.families import Setting
from evalkit.tasks.samples import Collate, ItemSamples, Samples, as_samples, is_item_source
from evalkit.tasks.user_code import seeded, user_code
from evalkit.training import optimizers, schedules

__all__ = ["Collate", "Recipe", "Samples", "Setting", "Task", "seeded", "user_code"]


@dataclass(frozen=True)
class Recipe:
    """How a task is trained unless the caller says otherwise.

    Args:
        optimizer: a name of :func:`evalkit.training.optimizers.names`, or a method, with settings
            if wanted, whose direction is the step.
        learning_rate: for the mean loss of a batch.
        weight_decay: as the optimizer defines it.
        epochs: passes over the training samples.
        batch_size: samples per step; the last batch of an epoch may be smaller.
        checkpoint_every: epochs between checkpoints; the last epoch is always saved.
        schedule: of the learning rate, a name of :func:`evalkit.training.schedules.names`, with
            settings if wanted (``"step:at=0.5"``).
        damping: of optimizers that have one, for the mean loss; None for the optimizer's default.
        momentum: likewise.
        normalise: likewise, whether the learning rate is the length of a step.
        on_failure: likewise, ``"raise"`` or ``"skip"`` for a step that cannot be taken.

    Raises:
        EvalkitError: a value is out of range, or there is no such optimizer or schedule.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 30
    batch_size: int = 32
    checkpoint_every: int = 3
    schedule: str = "constant"
    damping: float | None = None
    momentum: float | None = None
    normalise: bool | None = None
    on_failure: str | None = None

    def __post_init__(self) -> None:
        optimizers.check_options(
            self.optimizer, {name: getattr(self, name) for name in optimizers.OPTIONS}
        )
        schedules.find(self.schedule)
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
        data: returns the training samples: (inputs, targets), as tensors or arrays, see
            :class:`Samples`; or a ``Dataset`` or ``DataLoader``, see :class:`ItemSamples`. Such a
            data set or loader can stand here itself.
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
    data: Callable[[], Any]
    likelihood: str = "categorical"
    validation: Callable[[], Any] | None = None
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
            if argument in ("data", "validation") and is_item_source(value):
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

    def parts(self) -> tuple[Any, ...]:
        """Return the functions and objects of the user that scores depend on."""
        parts = [self.model, self.base, self.data, self.collate]
        for value in parts[:]:
            if isinstance(value, DataLoader):
                parts += [value.dataset, value.collate_fn]
        loaders = (DataLoader, type(None))
        return tuple(value for value in parts if not isinstance(value, loaders))

    def build_model(self, seed: int) -> nn.Module:
        """Return the model as initialised from ``seed``; the ambient generators stay as they are.

        Of a compiled model it is the module inside.

        Raises:
            EvalkitError: the task's code fails or returns something else than a module with all
                its parameters.
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
        try:
            return own_values(evaluated_module(model))
        except EvalkitError as error:
            raise EvalkitError(f"the model of task '{self.name}': {error}") from error

    def training_samples(self) -> Samples | ItemSamples:
        """Return the samples to train on and to score.

        Raises:
            EvalkitError: the task's code fails or returns something else than samples.
        """
        return self._samples("data", self.data)

    def validation_samples(self) -> Samples | ItemSamples | None:
        """Return the samples to validate on, None where the task has none.

        Raises:
            EvalkitError: as for :meth:`training_samples`.
        """
        return None if self.validation is None else self._samples("validation", self.validation)

    def fit_labels(self, samples: Samples | ItemSamples, model: nn.Module) -> Samples | ItemSamples:
        """Return the samples with labels that fit the logits of ``model``, its prompt included.

        Raises:
            EvalkitError: see :func:`evalkit.next_token.refuse_labels`.
        """
        if predicts_next(model) or answers_in_words(model):
            refuse_labels(model, *samples.take(slice(0, 2)), self.name, self.shift_labels)
        prompt = prompt_length(model) if self.shift_labels else 0
        return replace(samples, collate=shifting(self.collate, prompt)) if prompt else samples

    def _samples(self, argument: str, load: Any) -> Samples | ItemSamples:
        what = f"the {argument} of task '{self.name}'"
        with user_code(what):
            loaded = load if is_item_source(load) else load()
        collate = shifting(self.collate) if self.shift_labels else self.collate
        return as_samples(loaded, what, collate)

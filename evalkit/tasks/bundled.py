"""The bundled tasks, their settings and defaults.

Nothing here needs torch: what makes a task is imported when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evalkit.tasks.families import register_family
from evalkit.tasks.wordings import EPOCHS, WORDINGS

if TYPE_CHECKING:
    from evalkit.tasks.task import Task

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's dataset-fashion-mnist has its files."""
WIDTHS = "2048-2048"
"""Of the hidden layers of the paper's perceptron."""
VALIDATION_SAMPLES = 200
"""Of data with the columns of the hub: enough to see a model learn at every checkpoint."""


def _digits_mlp() -> Task:
    from evalkit.tasks.digits_mlp import task

    return task


def _glue(name: str) -> Callable[..., Task]:
    """Return the function that makes a GLUE task of its settings."""
    wording = WORDINGS[name]

    def make(
        model: str = "google-t5/t5-base",
        data: str = "nyu-mll/glue",
        tokenizer: str = "",
        adapter: str = "lora",
        labels: str = "all",
        instruction: str = wording.instruction,
        samples: int = 0,
        max_length: int = 128,
        validation_samples: int = VALIDATION_SAMPLES,
    ) -> Task:
        from evalkit.tasks.pretrained import ADAPTERS, check_choice, check_number, recipe
        from evalkit.tasks.task import Task
        from evalkit.tasks.text import Text, trim

        check_choice("adapter", adapter, ADAPTERS)
        check_choice("labels", labels, ("all", "first"))
        check_number("samples", samples, 0)
        check_number("max_length", max_length, 1)
        check_number("validation_samples", validation_samples, 0)
        text = Text(
            wording=wording,
            configuration=name,
            validation="validation_matched" if name == "mnli" else "validation",
            model=model,
            data=data,
            tokenizer=tokenizer,
            adapter=adapter,
            instruction=instruction,
            first_label_only=labels == "first",
            samples=samples,
            max_length=max_length,
            validation_samples=validation_samples,
        )
        return Task(
            model=text.base if adapter == "none" else text.adapted,
            base=text.base,
            data=text.training,
            validation=text.validating,
            collate=trim,
            recipe=recipe(adapter, EPOCHS[name]),
        )

    return make


def _vit(default: str, column: str) -> Callable[..., Task]:
    """Return the function that makes a task on the pictures of a data set."""

    def make(
        model: str = "google/vit-base-patch16-224",
        data: str = default,
        adapter: str = "lora",
        samples: int = 0,
        size: int = 224,
        mean: float = 0.5,
        deviation: float = 0.5,
        validation_samples: int = VALIDATION_SAMPLES,
    ) -> Task:
        from evalkit.tasks.images import Pictures, Vision
        from evalkit.tasks.pretrained import check_choice, check_number, recipe
        from evalkit.tasks.task import Task

        check_choice("adapter", adapter, ("lora", "none"))
        check_number("size", size, 1)
        check_number("deviation", deviation, 0.0, above=True)
        pictures = Pictures(data, column, samples, validation_samples)
        vision = Vision(pictures, model, size, mean, deviation)
        return Task(
            model=vision.base if adapter == "none" else vision.adapted,
            base=vision.base,
            data=vision.pictures.training,
            validation=vision.pictures.validating,
            collate=vision.collate,
            recipe=recipe(adapter, epochs=5),
        )

    return make


def _mlp_cifar10(
    data: str = "uoft-cs/cifar10",
    samples: int = 0,
    widths: str = WIDTHS,
    validation_samples: int = VALIDATION_SAMPLES,
) -> Task:
    from evalkit.tasks.wide_mlp import cifar10

    return cifar10(data, samples, widths, validation_samples)


def _mlp_fashion_mnist(
    data: str = FASHION_MNIST, samples: int = 0, widths: str = WIDTHS, size: int = 28
) -> Task:
    from evalkit.tasks.wide_mlp import fashion_mnist

    return fashion_mnist(data, samples, widths, size)


def _autoencoder_digits(widths: str = "32-16-8") -> Task:
    from evalkit.tasks.autoencoders import digits

    return digits(widths)


def _autoencoder_fashion_mnist(
    data: str = FASHION_MNIST,
    widths: str = "400-200-100-50-25-6",
    size: int = 28,
    samples: int = 0,
) -> Task:
    from evalkit.tasks.autoencoders import fashion_mnist

    return fashion_mnist(data, widths, size, samples)


register_family("digits-mlp", _digits_mlp)
for _name in WORDINGS:
    register_family(f"glue-{_name}", _glue(_name))
register_family("vit-cifar100", _vit("uoft-cs/cifar100", "fine_label"))
register_family("vit-cifar10", _vit("uoft-cs/cifar10", "label"))
register_family("mlp-cifar10", _mlp_cifar10)
register_family("mlp-fashion-mnist", _mlp_fashion_mnist)
register_family("autoencoder-digits", _autoencoder_digits)
register_family("autoencoder-fashion-mnist", _autoencoder_fashion_mnist)

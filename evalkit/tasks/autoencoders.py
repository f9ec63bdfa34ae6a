"""Autoencoders with ReLU and sigmoid outputs, as in Koroko et al. (arXiv 2201.10285)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from evalkit.evaluation.given import Inputs
from evalkit.tasks import digits_mlp, wide_mlp
from evalkit.tasks.task import Recipe, Task

_DIGITS_RECIPE = Recipe("adam", 1e-3, 0.0, epochs=100, batch_size=64, checkpoint_every=10)
_FASHION_RECIPE = Recipe("adam", 1e-3, 0.0, epochs=20, batch_size=128, checkpoint_every=2)


def build_model(sizes: tuple[int, ...]) -> nn.Module:
    """Return an autoencoder: linear layers of these sizes, then the same backwards.

    Args:
        sizes: of the pixels, and of every layer of the encoder; the last is the code.

    Returns:
        A model of logits; ReLU is behind every layer but the last.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise((*sizes, *sizes[-2::-1])):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def digits(widths: str) -> Task:
    """Return the task on the handwritten digits of scikit-learn, 8 x 8 pixels."""
    return Task(
        model=partial(build_model, (64, *wide_mlp.layer_widths(widths))),
        data=digits_mlp.training_data,
        validation=digits_mlp.validation_data,
        collate=_to_itself,
        likelihood="bernoulli",
        recipe=_DIGITS_RECIPE,
    )


def fashion_mnist(data: str, widths: str, size: int, samples: int) -> Task:
    """Return the task on the pictures of Fashion-MNIST in a folder.

    Args:
        data: the folder.
        widths: of the encoder, see :func:`evalkit.tasks.wide_mlp.layer_widths`.
        size: height and width of the pictures, means over squares of the 28 x 28 pixels.
        samples: training samples, drawn at random; 0 for all.
    """
    pictures = wide_mlp.fashion_mnist(data, samples, widths, size)
    return Task(
        model=partial(build_model, (size * size, *wide_mlp.layer_widths(widths))),
        data=pictures.data,
        validation=pictures.validation,
        collate=partial(_grey, size),
        likelihood="bernoulli",
        recipe=_FASHION_RECIPE,
    )


def _to_itself(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Return pictures (N, pixels) in [0, 1] as inputs and as targets; their labels are not used."""
    assert isinstance(inputs, Tensor)
    return inputs, inputs


def _grey(size: int, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Return pictures (N, 28, 28) of bytes as grey levels in [0, 1], (N, size^2), twice."""
    assert isinstance(inputs, Tensor)
    levels = functional.avg_pool2d(inputs.float()[:, None] / 255, wide_mlp.SIDE // size)
    return _to_itself(levels.flatten(1), targets)

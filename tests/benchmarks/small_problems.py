"""Sixty problems of a few dozen samples, as people first try a tool on: where float32 is thin.

Five data sets of scikit-learn, scaled or as they are, times networks with one hidden layer: more
parameters than samples and fewer, new and trained until most samples fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

SEED = 0
LEARNING_RATE = 0.01
BATCH_SIZE = 64
SAMPLES = {"iris": 60, "wine": 60, "breast_cancer": 120, "diabetes": 160, "digits": 20}
"""In the scored batch, by data set. A natural gradient in exact arithmetic takes (N C)^3 steps."""
NETWORKS: tuple[tuple[int, type[nn.Module], int], ...] = (
    (8, nn.Tanh, 0),
    (32, nn.Tanh, 20),
    (32, nn.ReLU, 100),
    (4, nn.Tanh, 50),
    (128, nn.GELU, 200),
    (16, nn.Tanh, 200),
)
"""Width, activation, epochs."""


@dataclass(frozen=True)
class Problem:
    """A data set and a network.

    Attributes:
        data: name of the data set.
        scaled: features have mean zero and deviation one.
        width: units of the hidden layer.
        activation: of the hidden layer.
        epochs: it was trained for.
    """

    data: str
    scaled: bool
    width: int
    activation: type[nn.Module]
    epochs: int

    @property
    def likelihood(self) -> str:
        """What is learned, by name."""
        return {"breast_cancer": "bernoulli", "diabetes": "gaussian"}.get(self.data, "categorical")

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return all features and targets."""
        found = getattr(datasets, f"load_{self.data}")()
        x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
        if self.scaled:
            x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        if self.likelihood == "categorical":
            return x, y
        y = y.float().view(-1, 1)
        return x, (y - y.mean()) / y.std() if self.scaled and self.data == "diabetes" else y

    def trained(self) -> tuple[nn.Sequential, Tensor, Tensor]:
        """Return the network with the batch to score."""
        x, y = self.samples()
        outputs = int(y.max()) + 1 if self.likelihood == "categorical" else 1
        torch.manual_seed(SEED)
        model = nn.Sequential(
            nn.Linear(x.shape[1], self.width), self.activation(), nn.Linear(self.width, outputs)
        )
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        for epoch in range(self.epochs):
            for rows in _order(len(x), epoch).split(BATCH_SIZE):
                optimizer.zero_grad()
                self._loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
        rows = _order(len(x), self.epochs)[: SAMPLES[self.data]]
        return model, x[rows], y[rows]

    def _loss(self, z: Tensor, y: Tensor) -> Tensor:
        if self.likelihood == "categorical":
            return F.cross_entropy(z, y)
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(z, y)
        return F.mse_loss(z, y) / 2


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def problems() -> Iterator[Problem]:
    """Yield all of them."""
    for data, scaled, network in itertools.product(SAMPLES, (True, False), NETWORKS):
        yield Problem(data, scaled, *network)

"""Batches that processes split and score, and the inner products that they make together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import evalkit
from evalkit.layers.budget import Budget
from evalkit.linearization.split import Split
from evalkit.settings import Settings
from evalkit.storage.rows import Cell
from evalkit.study.execute import Rows, execute
from evalkit.study.plan import Unit
from evalkit.updates.registry import takes_optimizer, takes_past
from tests.support.cases import CASES
from tests.support.table import Batch

SAMPLED = {"sf": "sf:labels_per_sample=2"}
ALL = tuple(
    SAMPLED.get(name, name)
    for name in evalkit.methods()
    if name != "ngd" and not takes_past(name) and not takes_optimizer(name)
)
"""Every method that is not given more than a model and a batch, but for NGD."""
SOLVED = ("ngd:solver=direct", "ngd:solver=sketch", "ngd:solver=cg:max_iterations=5")
SOME = ("ef", "ief", "sf", "kfac", "ngd:solver=direct", SOLVED[-1])


@dataclass(frozen=True)
class Scored:
    """A batch that is scored.

    Attributes:
        case: its name in the table.
        samples: of it that are taken, None for all.
        methods: that score it.
        size: of micro-batches.
        others: what is made of parameters without factors.
        dampings: at which they score it.
    """

    case: str
    samples: int | None = 5
    methods: tuple[str, ...] = SOME
    size: int | None = None
    others: Any = "block"
    dampings: tuple[float, ...] = (1e-2,)

    def batch(self) -> Batch:
        """The samples that are taken."""
        made = CASES[self.case].make()
        if self.samples is None:
            return made
        here = slice(0, self.samples)
        return made._replace(inputs=made.inputs[here], targets=made.targets[here])


SCORED = (
    Scored("mlp_categorical", methods=(*ALL, *SOLVED)),
    Scored("mlp_categorical", 1),
    Scored("mlp_bernoulli", size=2, dampings=(1e-3, 1e-2)),
    Scored("mlp_gaussian", methods=("ief", "ngd:solver=direct")),
    Scored("convolution_group_norm", methods=("ief", "kfac"), size=2, others="leave"),
    Scored("token_labels", methods=("ief", "kfac", "sf"), others="gradient"),
    Scored("embedding_tied_by_function", None, ("ief", "ngd:solver=direct")),
    Scored("module_used_twice", methods=("ief", "kfac"), size=2),
    Scored("prompt_by_repeat", methods=("ief", "ngd:solver=sketch")),
)


def scored(what: Scored, split: Split | None = None) -> Rows | None:
    """The rows of a unit, in the process that leads."""
    model, inputs, targets, likelihood = what.batch()
    if split is not None and not split.leads:
        split.follow(lambda: (model, inputs, targets))
        return None
    settings = Settings(what.methods, what.dampings, micro_batch_size=what.size, others=what.others)
    pairs = frozenset((name, damping) for name in what.methods for damping in what.dampings)
    unit = Unit(Cell("a", 0, 0.0, 0), pairs)
    with nullcontext() if split is None else split.leading():
        return execute(model, (inputs, targets), likelihood, settings, unit, "t", split=split)


class OneWayOrOther(nn.Module):
    """A layer that is called in a share of three samples, and multiplied by hand elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            return self.layer(x).tanh()
        return (x @ self.layer.weight.T + self.layer.bias).tanh()


def by_hand() -> Batch:
    """A batch of five samples, whose shares reach one layer in different ways."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 6, generator=generator).double()
    torch.manual_seed(0)
    return Batch(OneWayOrOther().double(), inputs, torch.tensor([0, 1, 2, 3, 1]), "categorical")


TINY = Budget(elements=7, formed=5, held=300)
"""So little that nothing is held at once."""
PARTS: dict[str, tuple[Callable[[], Batch], Budget | None]] = {
    "other ways": (by_hand, None),
    "other ways in parts": (by_hand, TINY),
    "no rule in parts": (CASES["weight_normalised"].make, TINY),
}


def matrices(batch: Batch, budget: Budget | None, split: Split | None = None) -> dict[str, Tensor]:
    """Inner products of all kinds, of the whole model and by blocks, and what rows make."""
    model, inputs, targets, likelihood = batch
    more = {} if budget is None else {"budget": budget}
    lin = evalkit.linearize(model, inputs, targets, likelihood, split=split, **more)
    c = torch.stack([lin.logit_gradients, lin.logits.double()])
    found = {"gram": lin.gram, "of": lin.gram_of(c), "rows": lin.sample_gradients(c)}
    found["others"] = lin.inner_products(c, c[:1], "some")
    found["again"] = lin.inner_products(c[:1], c[:1], "some")
    blocks = lin.gram_blocks(c)
    sums = {name: one.sum(0) for names, one in blocks.items() for name in names}
    weights = torch.linspace(1, 2, lin.num_samples).double()
    found["weighted"] = lin.weighted_product([(lin.logit_gradients, weights), (c[1], weights)])
    found["fvp"] = lin.fvp(lin.gradient)
    return found | {name: sums[name] for name in lin.parameters if (name,) in blocks}


def part(name: str, split: Split | None = None) -> dict[str, Tensor]:
    """The matrices of one of the batches above."""
    made, budget = PARTS[name]
    batch = made()
    if split is None:
        return matrices(batch, budget)
    if not split.leads:
        split.follow(lambda: (batch.model, batch.inputs, batch.targets))
        return {}
    with split.leading():
        return matrices(batch, budget, split)

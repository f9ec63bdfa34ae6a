"""The system of the samples of all processes: their Gram matrix, and what it is solved for.

Rows are gathered as layers have them, inputs and output gradients, so that what is sent grows with
the samples and the widths of layers, not with their products. Each process multiplies its own rows
with all others, and keeps its samples' weights: the sum of what those make is the direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.factor import GramFactor
from evalkit.factorization import factorize
from evalkit.group import Group
from evalkit.layers.rows import GradientRows, OuterProducts, mirror
from evalkit.linearization import Linearization


@dataclass(frozen=True, eq=False)
class WholeBatch:
    """The samples of all processes.

    Attributes:
        ranks: the processes.
        gram: inner products of J_n^T c_kn, (K, N, K, N) float64, N the samples of all.
        here: which of them are this process's.
        unit: the rounding of the evaluation.
        columns: P.
    """

    ranks: Group
    gram: Tensor
    here: slice
    unit: float
    columns: int

    @property
    def num_samples(self) -> int:
        """N."""
        return self.gram.shape[1]

    def factor(self, first: int) -> GramFactor:
        """Return the factorised inner products of the cotangents from a first one on."""
        part = self.gram[first:, :, first:]
        gram = part.reshape(part.shape[:2].numel(), -1)
        return factorize(gram, unit=self.unit, columns=self.columns)

    def gathered(self, values: Tensor) -> Tensor:
        """Return values of each sample, (..., N) for (..., n) of this process."""
        return torch.cat(self.ranks.gathered(values, values.device), -1)


def whole_batch(lin: Linearization, cotangents: Tensor, ranks: Group) -> WholeBatch:
    """Return the samples of all processes.

    Args:
        lin: those of this process.
        cotangents: c, (K, n, ..., C) float64.
        ranks: the processes.

    Raises:
        EvalkitError: some of them use a parameter otherwise than others do.
    """
    own, scales = lin.gradient_rows(cotangents)
    device = scales.device
    everyone = ranks.gathered((own, scales), device)
    _refuse_other_forms([rows for rows, _ in everyone])
    blocks = []
    for rows, others in everyone:
        total = scales.new_zeros(*scales.shape, *others.shape)
        for name, one in own.items():  # what the logits do not depend on has no rows
            if name in rows:
                one.add_inner(total, rows[name], lin.batches.budget)
        if rows is own:
            mirror(total)
        blocks.append(total.mul_(scales[:, :, None, None]).mul_(others))
    gram = torch.cat(ranks.gathered(torch.cat(blocks, 3), device), 1)
    first = sum(one.shape[1] for _, one in everyone[: ranks.rank])
    here = slice(first, first + scales.shape[1])
    return WholeBatch(ranks, gram, here, lin.unit, lin.num_params)


def drawn_together(
    lin: Linearization, seed: int, labels_per_sample: int, ranks: Group
) -> tuple[Tensor, ...]:
    """Return the logit gradients for labels drawn as one process draws those of all samples.

    Args:
        lin: the samples of this process.
        seed: the same in all of them.
        labels_per_sample: K.
        ranks: the processes.

    Returns:
        K tensors like logits, float64.
    """
    generator, meaning = torch.Generator().manual_seed(seed), lin.likelihood
    targets = ranks.gathered(lin.targets, lin.targets.device)
    shapes = ranks.objects(tuple(lin.logits.shape))
    found = []
    for _ in range(labels_per_sample):
        for rank, (labels, shape) in enumerate(zip(targets, shapes, strict=True)):
            # A draw takes as many numbers of the generator whatever the logits are.
            logits = lin.logits if rank == ranks.rank else lin.logits.new_zeros(1).expand(shape)
            drawn = meaning.sample_targets(logits, labels, generator)
            if rank == ranks.rank:
                found.append(meaning.logit_gradients(logits, drawn))
    return tuple(found)


def _refuse_other_forms(everyone: Sequence[Mapping[str, GradientRows]]) -> None:
    forms: dict[str, object] = {}
    for rows in everyone:
        for name, one in rows.items():
            form = (type(one), isinstance(one, OuterProducts) and one.bias)
            if forms.setdefault(name, form) != form:
                raise EvalkitError(
                    f"expected parameters that all processes use alike where `gram` is 'batch', "
                    f"found other uses of '{name}' in some of them; take `gram='rank'`"
                )

"""The share of a batch that one process has, and the calls that sum over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.evaluation.determinism import nearly
from evalkit.evaluation.failures import forward_failures
from evalkit.evaluation.forward import Evaluation, evaluation, taking
from evalkit.layers.budget import Budget
from evalkit.layers.low_rank import LowRank
from evalkit.linearization.factors import FormedRows, LayerFactors, layer_factors
from evalkit.linearization.gram import Side
from evalkit.linearization.kept import KeptGradients
from evalkit.linearization.lost_ranks import lost_ranks
from evalkit.linearization.micro_batches import Made, MicroBatches
from evalkit.linearization.per_sample import PerSample
from evalkit.linearization.sample_axis import ROUNDING, part_of, split_leaves
from evalkit.linearization.split import Given, Split

T = TypeVar("T")

Vector = Tensor | Sequence[Tensor | LowRank]
"""A vector of P numbers, or its parts in the shapes of the parameters."""


@dataclass(frozen=True)
class How:
    """How a batch is linearised.

    Attributes:
        trainable: the names of the parameters with gradients.
        size: samples in a micro-batch, None for a whole share.
        dtype: of the evaluation, None for the model's own.
        budget: how much of per-sample gradients is formed at a time.
    """

    trainable: frozenset[str]
    size: int | None
    dtype: torch.dtype | None
    budget: Budget


@dataclass(frozen=True, eq=False)
class Share:
    """The samples of one process.

    Attributes:
        batches: their forward passes; None where it has no sample.
        here: which samples of the whole batch they are.
        slices: which ones each process has.
        size: samples in a micro-batch.
        sizes: the numbers in each trainable parameter, by name.
        dtype: of the logits.
        kept: output gradients of them that are kept.
        sides: per-sample gradients of them that several matrices have as columns, by a key.
    """

    batches: MicroBatches | None
    here: slice
    slices: tuple[slice, ...]
    size: int
    sizes: dict[str, int]
    dtype: torch.dtype
    kept: KeptGradients
    sides: dict[str, Side]

    @property
    def num_params(self) -> int:
        """P."""
        return sum(self.sizes.values())

    @property
    def rounds(self) -> int:
        """The most micro-batches that a process has."""
        return -(-self.slices[0].stop // self.size)

    def micro_batch(self, rank: int, number: int) -> slice:
        """Return which samples of the whole batch a micro-batch of a process has, if any."""
        own = self.slices[rank]
        start = min(own.start + number * self.size, own.stop)
        return slice(start, min(start + self.size, own.stop))

    def pulled(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        """Return J^T c times a scale of these samples alone, (P,), for c of the whole batch."""
        if self.batches is None:
            return cotangents.new_zeros(self.num_params, dtype=self.dtype)
        return self.batches.vjp(cotangents[self.here], scale)

    def pushed(self, vector: Vector) -> Tensor | None:
        """Return J v at these samples: like their logits."""
        if self.batches is None:
            return None
        values = self.batches.split(vector) if isinstance(vector, Tensor) else vector
        return self.batches.jvp(values)


def shares_of(samples: int, size: int) -> tuple[slice, ...]:
    """Return the samples of each of some processes; the first have one more where it is uneven."""
    most, more = divmod(samples, size)
    ends = [rank * most + min(rank, more) for rank in range(size + 1)]
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(ends))


def _open(split: Split, given: Given, how: How) -> Share:
    """Run the forward of this process's share."""
    slices = shares_of(given.num_samples, split.ranks.size)
    here = slices[split.ranks.rank]
    for name, value in given.model.named_parameters():
        value.requires_grad_(name in how.trainable)
    samples, batches, inputs = here.stop - here.start, None, given.inputs
    with forward_failures(given.model, inputs):
        evaluated = taking(evaluation(given.model, how.dtype), inputs)
        if samples:
            alone = samples == given.num_samples
            leaves = () if alone else split_leaves(evaluated, inputs, given.num_samples)
            part = inputs if alone else part_of(inputs, leaves, here)
            batches = MicroBatches(given.model, part, samples, how.size, how.dtype, how.budget)
            if not alone:
                _refuse_dependent_samples(evaluated, given, leaves, here, batches.logits)
    return Share(
        batches,
        here,
        slices,
        slices[0].stop if how.size is None else how.size,
        {name: value.numel() for name, value in evaluated.trainable.items()},
        evaluated.precision if batches is None else batches.dtype,
        KeptGradients(batches),
        {},
    )


def _refuse_dependent_samples(
    evaluated: Evaluation, given: Given, leaves: Sequence[int], here: slice, logits: Tensor
) -> None:
    """Compare a sample of a share with what it is beside one of another share.

    Raises:
        EvalkitError: it is something else.
    """
    other = here.stop if here.stop < given.num_samples else 0
    beside = evaluated.run(part_of(given.inputs, leaves, [here.start, other]))
    if not nearly(logits[:1], beside[:1], ROUNDING):
        raise EvalkitError(
            "expected samples that can be run apart from each other, found logits of a sample that "
            "depend on which others are run with it; leave `split_batch` out"
        )


# --- calls: functions that all processes run together -----------------------------------------


def opened(split: Split, key: int, how: How) -> Tensor:
    """Linearise the shares under a key, and return the logits of the whole batch in rank 0."""

    split.agreed(lambda: split.keep(key, _open(split, split.given, how)))
    with lost_ranks():
        split.ranks.meet(split.device)

    def logits() -> Tensor | None:
        share: Share = split.kept(key)
        return None if share.batches is None else share.batches.logits

    return joined(split.collected(logits))


def pushed(split: Split, key: int, vector: Vector) -> Tensor:
    """Return J v in rank 0: like logits."""
    return joined(split.collected(lambda: split.kept(key).pushed(vector)))


def pushed_of(split: Split, key: int, made: Made) -> Tensor:
    """Return J v in rank 0 for v that each process makes of the parameters: like logits."""

    def compute() -> Tensor | None:
        share: Share = split.kept(key)
        return None if share.batches is None else share.batches.jvp_of(made)

    return joined(split.collected(compute))


def pulled(split: Split, key: int, cotangents: Tensor, scale: Tensor) -> Tensor:
    """Return J^T c times a scale: (P,)."""
    return split.summed(lambda: split.kept(key).pulled(cotangents, scale))


def forget(split: Split, key: int) -> None:
    """Let go of output gradients that are kept."""
    split.kept(key).kept.forget()


def each(split: Split, key: int, function: Callable[..., T], arguments: Sequence[Any]) -> list[T]:
    """Return what a function makes of each share that has samples, in rank 0."""

    def compute() -> tuple[T] | None:
        share: Share = split.kept(key)
        return None if share.batches is None else (function(share.batches, share.here, *arguments),)

    return [one[0] for one in split.collected(compute) if one is not None]


def stream(
    split: Split,
    key: int,
    place: int,
    cotangents: Tensor,
    route: PerSample | None,
    numbers: int | None,
) -> None:
    """Keep under a place where the factors of each share come from, part by part."""

    def compute() -> None:
        share: Share = split.kept(key)
        split.keep(place, _parts(share, cotangents[:, share.here], route, numbers))

    split.agreed(compute)


def next_parts(split: Split, place: int) -> list[LayerFactors | FormedRows]:
    """Return the next part of each share in rank 0; none where all have ended."""
    found = split.collected(lambda: next(split.kept(place), None))
    return [part for part in found if part is not None]


def _parts(
    share: Share, cotangents: Tensor, route: PerSample | None, numbers: int | None
) -> Iterator[LayerFactors | FormedRows]:
    if share.batches is not None:
        first = share.here.start
        for part in layer_factors(share.batches, cotangents, route, numbers):
            here = slice(part.samples.start + first, part.samples.stop + first)
            yield replace(part, samples=here)


def joined(parts: Sequence[Tensor | None]) -> Tensor:
    """Return the values of all samples in rank 0, and none elsewhere."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else torch.empty(0)

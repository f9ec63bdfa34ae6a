"""A batch that is split over processes, linearised: for rank 0, in which methods run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.layers.low_rank import LowRank
from evalkit.layers.rows import GradientRows
from evalkit.linearization import shares
from evalkit.linearization.factors import FormedRows, LayerFactors
from evalkit.linearization.gram import scaled_cotangents
from evalkit.linearization.gram_strips import Asked, Names
from evalkit.linearization.kept import summed_terms
from evalkit.linearization.linearized import Linearization
from evalkit.linearization.micro_batches import Made, MicroBatch, MicroBatches
from evalkit.linearization.per_sample import PerSample
from evalkit.linearization.shares import How, Share
from evalkit.linearization.split import Split
from evalkit.linearization.split_gram import inner_products
from evalkit.linearization.split_kernel import exchanged, kernel, length, weighted
from evalkit.reductions import power_of_two

T = TypeVar("T")


class SplitBatches(MicroBatches):
    """The Jacobian of a whole batch, made of those of the shares of all processes.

    What is recorded of a forward is that of the share of rank 0, which always has samples.

    Args:
        split: the processes, which have the model and the whole batch.
        how: how it is linearised.

    Attributes:
        processes: as given by ``split``.

    Raises:
        EvalkitError: as for micro-batches, of any share.
    """

    def __init__(self, split: Split, how: How) -> None:
        self.processes, self._how, self._key = split, how, split.new_key()
        self.logits = self.call(shares.opened, how)
        share: Share = split.kept(self._key)
        assert share.batches is not None
        self._own, self.budget, self.slices = share.batches, how.budget, share.batches.slices
        self._model, self._inputs = split.given.model, split.given.inputs
        self._evaluated, self._num_samples = self._own._evaluated, split.given.num_samples
        weakref.finalize(self, split.retire, self._key)

    @property
    def at_once(self) -> int:
        """As in one process: N where no process has micro-batches."""
        return min(self._how.size or self._num_samples, self._num_samples)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function of all processes returns in this one.

        Args:
            function: of the processes, the key of their shares, and the arguments.
            arguments: of it.
        """
        return self.processes.call(function, self._key, *arguments)

    def _last(self) -> MicroBatch:
        return self._own._last()

    def __getitem__(self, index: int) -> MicroBatch:
        """Return a micro-batch of rank 0."""
        return self._own[index]

    def in_float64(self) -> SplitBatches:
        """Return the same forward passes in float64."""
        return SplitBatches(self.processes, replace(self._how, dtype=torch.float64))

    def module_and_inputs(self) -> NoReturn:
        """Refuse: no process runs the whole batch."""
        raise EvalkitError(
            "expected a whole batch for a method that runs the model by itself, found one that is "
            "split over processes; leave the method out, or `split_batch`"
        )

    def jvp(self, values: Sequence[Tensor | LowRank]) -> Tensor:
        """Return J v for v in the shapes of the parameters: like logits."""
        if all(isinstance(value, Tensor) for value in values):
            flat = torch.cat([value.flatten() for value in values if isinstance(value, Tensor)])
            return self.call(shares.pushed, flat)
        return self.call(shares.pushed, list(values))

    def jvp_of(self, made: Made) -> Tensor:
        """Return J v for v that is made of the parameters: like logits."""
        return self.call(shares.pushed_of, made)

    def vjp(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        """Return J^T c times a scale: (P,)."""
        return self.call(shares.pulled, cotangents, scale)

    def kernel_product(self, cotangents: Tensor) -> Tensor:
        """Return J J^T c: like logits."""
        return self.call(kernel, self._inputs_of_all, cotangents)

    def weighted_product(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return J d for d = sum_n J_n^T w_n c_n over terms (c, w): like logits."""
        return self.call(weighted, self._inputs_of_all, terms)

    def vjp_norm(self, cotangents: Tensor) -> float:
        """Return |J^T c|."""
        return self.call(length, self._inputs_of_all, cotangents)

    @cached_property
    def _inputs_of_all(self) -> int:
        """Where each process keeps what kernel products need of the inputs of all."""
        place = self.processes.new_key()
        self.call(exchanged, place)
        weakref.finalize(self, self.processes.retire, place)
        return place


class SplitLinearization(Linearization):
    """A linearization whose sums over samples are those of all processes.

    Logits and what follows from them are of the whole batch, in rank 0.
    """

    _batches: SplitBatches

    @full_precision()
    def fvp(self, vector: Tensor) -> Tensor:
        """Return F v = sum_n J_n^T S_n J_n v: (P,) -> (P,)."""
        return self.vjp(self.output_fisher(self.jvp(vector)))

    def _inner(self, cotangents: Tensor, route: PerSample | None) -> Tensor:
        return self._asked(Asked(cotangents, None, route, keep=True))[()].flatten(2).flatten(0, 1)

    def _forget(self) -> None:
        self._batches.call(shares.forget)

    @full_precision()
    def inner_products(
        self, cotangents: Tensor, others: Tensor | None = None, key: str | None = None
    ) -> Tensor:
        """Return the inner products of J_n^T c_kn with J_m^T e_jm, as one process does."""
        asked = Asked(cotangents, others, self.route, columns=None if others is None else key)
        return self._asked(asked)[()].flatten(2).flatten(0, 1)

    @full_precision()
    def gram_blocks(self, cotangents: Tensor) -> dict[Names, Tensor]:
        """Return the part of each layer in the Gram matrix, as one process does."""
        found = self._asked(Asked(cotangents, None, self.route, by_block=True))
        for names in [names for names in found if len(names) > 1]:
            for name in names:  # apart in some micro-batch, whose calls are others
                if (name,) in found:
                    found[names] += found.pop((name,))
        covered = {name for names in found for name in names}
        shape = next(iter(found.values())).shape
        found |= {
            (name,): torch.zeros(shape, dtype=torch.float64, device=self.logits.device)
            for name in self.parameters
            if name not in covered
        }
        return {names: one.flatten(2).flatten(0, 1) for names, one in found.items()}

    def _asked(self, asked: Asked) -> dict[Names, Tensor]:
        """Return inner products by block: (K, N, K', N)."""
        found = self._batches.call(inner_products, asked)
        left, right = (
            scaled_cotangents(c, self.logits.dtype)[1].view(c.shape[:2])
            for c in (asked.cotangents, asked.wide)
        )
        if not found:  # the logits depend on no parameter
            found[()] = left.new_zeros(*left.shape, *right.shape)
        for one in found.values():
            one.mul_(left[:, :, None, None]).mul_(right)
        return found

    def _parts(
        self, cotangents: Tensor, route: PerSample | None, numbers: int | None = None
    ) -> Iterator[LayerFactors | FormedRows]:
        processes = self._batches.processes
        place = processes.new_key()
        self._batches.call(shares.stream, place, cotangents, route, numbers)
        try:
            while parts := processes.call(shares.next_parts, place):
                yield from parts
        finally:
            processes.retire(place)

    def by_share(self, function: Callable[..., T], *arguments: Any) -> list[T]:
        """Return what a function makes of each share, in the order of the samples."""
        return self._batches.call(shares.each, function, arguments)

    def gradient_rows(self, cotangents: Tensor) -> tuple[dict[str, GradientRows], Tensor]:
        """Refuse: rows stay in their processes.

        Raises:
            EvalkitError: always.
        """
        raise EvalkitError(
            "expected a batch of one process whose per-sample gradients are asked for as layers "
            "have them, found one that is split over processes; ask for `gram_of`"
        )

    @full_precision()
    def weighted_product(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return J d for d = sum_n J_n^T w_n c_n over terms (c, w): like logits, float64."""
        scale = power_of_two(torch.stack([weights for _, weights in terms]))
        scaled = [(c, weights / scale) for c, weights in terms]
        return self._batches.weighted_product(scaled).double() * scale

    @full_precision()
    def weighted_gradients(self, terms: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return d = sum_n J_n^T w_n c_n over terms (c, w), by parameter's name."""
        return self.by_name(self.vjp(summed_terms(terms)))

"""One batch as micro-batches: a single one is kept, several are run again when they are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.evaluation.determinism import nearly, refuse_varying_forward, repeats
from evalkit.evaluation.forward import evaluation, taking
from evalkit.evaluation.given import Inputs
from evalkit.layers.budget import BUDGET, Budget
from evalkit.layers.low_rank import LowRank
from evalkit.linearization.recording import Recording, record
from evalkit.linearization.sample_axis import (
    ROUNDING,
    dependent_samples,
    long_leaves,
    part_of,
    refuse_if_varying,
    refuse_infinite_logits,
    refuse_other_logits,
    split_leaves,
)
from evalkit.linearization.tangents import Tangents
from evalkit.reductions import norm

Made = Callable[[Mapping[str, Tensor], torch.dtype], Sequence[Tensor]]
"""Makes a vector v in a dtype of the parameters by name: its parts in their shapes."""


@dataclass(frozen=True)
class MicroBatch:
    """The forward of some samples and the linear maps of its logits."""

    recording: Recording
    tangents: Tangents


class MicroBatches:
    """The Jacobian of a whole batch, made of those of its micro-batches.

    The graph of a single micro-batch is kept, so that no product repeats its forward. Of several,
    one or two are held at a time, and each product runs their forwards again: memory follows the
    micro-batch, time grows by about one training step per product.

    Args:
        model: as in :func:`evalkit.linearization.recording.record`.
        inputs: the inputs of the whole batch; tensors with a sample axis are split, others shared.
        num_samples: N.
        size: samples in a micro-batch, None for all.
        dtype: the dtype of the evaluation.
        budget: how much of per-sample gradients is formed at a time.

    Attributes:
        budget: as given.
        slices: the samples of each micro-batch.
        logits: the logits of the whole batch, detached.

    Raises:
        EvalkitError: as :func:`evalkit.linearization.recording.record`, the size is not positive,
            the logits change from call to call, or parts of the batch are not what they are in it.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        num_samples: int,
        size: int | None,
        dtype: torch.dtype | None,
        budget: Budget = BUDGET,
    ) -> None:
        if size is not None and size < 1:
            raise EvalkitError(
                f"expected a micro-batch size of at least 1, found {size}; "
                "pass a smaller part of the batch"
            )
        step = num_samples if size is None else min(size, num_samples)
        starts = range(0, num_samples, step)
        self.slices = tuple(slice(start, min(start + step, num_samples)) for start in starts)
        self._model, self._inputs = model, inputs
        self._evaluated = taking(evaluation(model, dtype), inputs)
        self._num_samples, self.budget = num_samples, budget
        self._kept: dict[int, MicroBatch] = {}
        self._first: Tensor | None = None
        if len(self.slices) == 1:
            # Never run again but for this check: its graph serves every product.
            self.logits = _check(self[0], self.slices[0])
            self.refuse_other_logits()
            return
        self._split = split_leaves(self._evaluated, inputs, num_samples)
        logits = [_check(batch, part) for batch, part in zip(self, self.slices, strict=True)]
        self.logits = self._first = torch.cat(logits)
        self._refuse_dependent_samples()

    def refuse_other_logits(self) -> None:
        """Run samples of a single micro-batch again and compare.

        Raises:
            EvalkitError: their logits differ from those of the first forward.
        """
        refuse_other_logits(self._evaluated, self._inputs, self._num_samples, self.logits)

    def _refuse_dependent_samples(self) -> None:
        """Compare samples of different micro-batches with what they are together.

        Raises:
            EvalkitError: they differ.
        """
        ends = [0, self._num_samples - 1]
        part = part_of(self._inputs, self._split, ends)
        if not nearly(self.logits[ends], self._evaluated.run(part), ROUNDING):
            refuse_if_varying(self._model, self._evaluated.run, part)
            raise dependent_samples("logits of a sample that depend on its micro-batch")

    def runs_alone(self) -> bool:
        """Return whether a sample can be run by itself, as far as that has to be tried beforehand.

        On a GPU it has: an index out of range, as one into the batch then is, ends all that the
        process can do there. A copy of the model tries it on the CPU.
        """
        if self.logits.device.type == "cpu":
            return True
        try:
            model = copy.deepcopy(self._model).cpu()
            inputs = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, self._inputs)
            one = part_of(inputs, long_leaves(inputs, self._num_samples), [0])
            evaluation(model, self.dtype).run(one)
        except Exception:  # whatever the model's code raises
            return False
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype

    @property
    def at_once(self) -> int:
        """The samples of a micro-batch; N where the batch is evaluated as a whole."""
        return self.slices[0].stop

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        return self._last().recording.parameters

    @property
    def model(self) -> nn.Module:
        """The module that is evaluated, the caller's own."""
        return self._model

    def in_float64(self) -> MicroBatches:
        """Return the same forward passes in float64."""
        step = self.slices[0].stop
        return MicroBatches(
            self._model, self._inputs, self._num_samples, step, torch.float64, self.budget
        )

    def module_and_inputs(self) -> tuple[nn.Module, Inputs]:
        """Return a copy of the model in the precision of the logits, and the whole batch in it."""
        return copy.deepcopy(self._model).to(self.dtype), self._evaluated.cast(self._inputs)

    def trainable_names(self) -> dict[int, str]:
        """Return the names of the model's own trainable parameters, by their id."""
        return {id(value): name for name, value in self._evaluated.trainable.items()}

    def _last(self) -> MicroBatch:
        # Whichever is at hand: parameters and their shapes are the same for all.
        return next(reversed(self._kept.values()))

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[MicroBatch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> MicroBatch:
        """Return a micro-batch; the last one that was asked for is at hand."""
        if index not in self._kept:
            # Freed before the next forward runs: a graph is what takes the memory.
            self._kept.clear()
            part = self.slices[index]
            samples = part.stop - part.start
            recording = record(self._evaluated, self._part(part), samples, self.budget)
            self._kept[index] = MicroBatch(recording, Tangents(recording))
            self._refuse_change(part, recording.logits.detach())
        return self._kept[index]

    def _refuse_change(self, part: slice, logits: Tensor) -> None:
        """Compare the logits of a forward that was run again with those of the first.

        Raises:
            EvalkitError: they differ.
        """
        # Products would otherwise be of another function for each micro-batch.
        if self._first is not None and not repeats(self._first[part], logits):
            inputs = self._part(part)
            refuse_varying_forward(self._model, lambda: self._evaluated.run(inputs))

    def _part(self, samples: slice) -> Inputs:
        if len(self.slices) == 1:
            return self._inputs
        return part_of(self._inputs, self._split, samples)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of a vector, (P,), in the shapes of the parameters."""
        return self._last().tangents.split(vector)

    def jvp(self, values: Sequence[Tensor | LowRank]) -> Tensor:
        """Return J v for v in the shapes of the parameters: like logits."""
        return torch.cat([batch.tangents.push(values) for batch in self])

    def jvp_of(self, made: Made) -> Tensor:
        """Return J v for v that is made of the parameters: like logits."""
        return self.jvp(made(self.parameters, self.dtype))

    def vjp(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        """Return J^T c times a scale: (P,)."""
        # Added in place, since P may be most of the memory.
        total: Tensor | None = None
        for batch, part in zip(self, self.slices, strict=True):
            pulled = batch.tangents.pull(cotangents[part], scale)
            total = pulled if total is None else total.add_(pulled)
        assert total is not None
        return total

    def vjp_norm(self, cotangents: Tensor) -> float:
        """Return |J^T c|."""
        return norm(self.vjp(cotangents, torch.ones((), device=cotangents.device)))

    def kernel_product(self, cotangents: Tensor) -> Tensor:
        """Return J J^T c: like logits. With several micro-batches J^T c is formed."""
        if len(self.slices) == 1:
            return self[0].tangents.kernel_product(cotangents)
        # J^T c sums over all samples before J is applied to any: the forwards run twice.
        pulled = self.vjp(cotangents, torch.ones((), device=cotangents.device))
        return self.jvp(self.split(pulled))


def _check(batch: MicroBatch, part: slice) -> Tensor:
    """Return the logits of a micro-batch.

    Raises:
        EvalkitError: they do not have its samples on axis 0, or are not finite.
    """
    logits = batch.recording.logits.detach()
    samples = part.stop - part.start
    if logits.dim() == 0 or logits.shape[0] != samples:
        raise EvalkitError(
            f"expected logits with {counted(samples, 'sample')} on axis 0, as the targets have, "
            f"found shape {tuple(logits.shape)}; check the model's output and the targets"
        )
    refuse_infinite_logits(logits)
    return logits

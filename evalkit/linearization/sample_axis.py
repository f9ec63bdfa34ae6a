"""Which inputs have a sample axis, so that a part of a batch can be run by itself.

A tensor as long as the batch may also be a table that all samples share: positions, prototypes, a
mask. Two samples run together and one by one tell: they give the same logits only where what
belongs to samples is split, what is shared is not, and samples do not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from evalkit.counts import counted
from evalkit.errors import EvalkitError, memory_sentence
from evalkit.evaluation.determinism import nearly, refuse_varying_forward, repeats
from evalkit.evaluation.forward import Evaluation
from evalkit.evaluation.given import Inputs
from evalkit.reductions import is_finite

MOST_CANDIDATES = 5
"""Inputs as long as the batch of which every choice is tried."""

ROUNDING = 0.4
"""Power of eps, times the largest logit, that logits of batches of different sizes may differ by:
another size is another order of summation. What is split wrongly differs by far more."""

NAMED = 3
"""Parameters that a sentence names."""

Run = Callable[[Inputs], Tensor]


def long_leaves(inputs: Inputs, samples: int) -> tuple[int, ...]:
    """Return the places of the tensors with N rows among the leaves of the inputs."""
    leaves, _ = tree_flatten(inputs)
    return tuple(
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == samples
    )


def part_of(inputs: Inputs, split: Sequence[int], rows: slice | list[int]) -> Inputs:
    """Return some samples of a batch.

    Args:
        inputs: the inputs of the batch.
        split: the places of the leaves with a sample axis; all samples share the others.
        rows: the samples.
    """
    leaves, structure = tree_flatten(inputs)
    leaves = [leaf[rows] if place in split else leaf for place, leaf in enumerate(leaves)]
    part: Inputs = tree_unflatten(leaves, structure)
    return part


def split_leaves(evaluated: Evaluation, inputs: Inputs, samples: int) -> tuple[int, ...]:
    """Return the places of the leaves that have a sample axis.

    Args:
        evaluated: the model.
        inputs: the inputs of the whole batch.
        samples: N, at least 2.

    Raises:
        EvalkitError: no choice, or several that differ, give samples the logits that they have
            alone; or the forward changes from call to call.
    """
    candidates = long_leaves(inputs, samples)
    reason = ""
    found: list[tuple[tuple[int, ...], Tensor]] = []
    for split in _choices(candidates):
        logits = _two_samples(evaluated.run, inputs, split, samples)
        if isinstance(logits, str):
            reason = reason or logits
            continue
        found.append((split, logits))
        if split == candidates:
            break
    if not found:
        _refuse_failing_forward(evaluated, inputs)
        rows = part_of(inputs, candidates, [0])
        refuse_if_varying(evaluated.model, evaluated.run, rows)
        raise dependent_samples(reason)
    # Choices that agree differ in tensors that do not matter for the logits.
    if any(not nearly(logits, found[0][1], ROUNDING) for _, logits in found[1:]):
        raise EvalkitError(
            f"expected one way to tell which inputs have a sample axis, found {len(candidates)} "
            f"tensors of {counted(samples, 'row')} of which several choices work and differ; give "
            "those that all samples share an axis of length 1 in front, keep them as buffers of "
            "the model, or leave the micro-batch size out"
        )
    return found[0][0]


def _refuse_failing_forward(evaluated: Evaluation, inputs: Inputs) -> None:
    """Run the whole batch, where no part of it could be: what it raises is no matter of the parts.

    Raises:
        EvalkitError: its logits are not finite.
        Exception: whatever the forward raises, unless that is a lack of memory for a whole batch.
    """
    try:
        refuse_infinite_logits(evaluated.run(inputs))
    except Exception as error:
        if memory_sentence(error) is None:
            raise


def _choices(candidates: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return choices of what to split, all first."""
    # As a rule every tensor as long as the batch is of samples.
    yield candidates
    if len(candidates) <= MOST_CANDIDATES:
        for count in range(len(candidates) - 1, 0, -1):
            yield from combinations(candidates, count)


def _two_samples(run: Run, inputs: Inputs, split: Sequence[int], samples: int) -> Tensor | str:
    """Return the logits of the first and the last sample, or why they are not those of each alone.

    Args:
        run: the forward.
        inputs: the inputs of the whole batch.
        split: as for :func:`part_of`.
        samples: N.
    """
    ends = [0, samples - 1]
    try:
        # What is split wrongly fails for two samples or for one, or gives them other logits.
        together = run(part_of(inputs, split, ends))
        alone = [run(part_of(inputs, split, [row])) for row in ends]
    except EvalkitError:
        raise
    except Exception as error:  # whatever the model's code raises
        if memory_sentence(error) is not None:
            raise
        return f"an error from the forward of two samples or of one ({_first_line(error)})"
    if len(together) != 2 or any(len(one) != 1 for one in alone):
        return "another number of logits than of samples when two or one are run"
    if not nearly(together, torch.cat(alone), ROUNDING):
        return "logits of a sample that depend on which others are run with it"
    return together


def refuse_infinite_logits(logits: Tensor) -> None:
    """Refuse logits that are not numbers.

    Raises:
        EvalkitError: some are NaN or infinite.
    """
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).sum())
        raise EvalkitError(
            f"expected finite logits, found {bad} that are NaN or infinite; check the model's "
            "parameters and the inputs"
        )


def refuse_infinite_gradient(gradient: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a gradient that is no number, as of a root at zero.

    Args:
        gradient: (P,).
        parameters: whose gradient it is, in its order.

    Raises:
        EvalkitError: some of it is NaN or infinite; the sentence names the parameters.
    """
    sizes = [value.numel() for value in parameters.values()]
    parts = zip(parameters, gradient.split(sizes), strict=True)
    bad = [name for name, part in parts if not is_finite(part)]
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise EvalkitError(
            f"expected a finite gradient, found NaN or infinity in that of "
            f"{', '.join(bad[:NAMED])}{more}; look for a root or a norm of zero, a division by "
            "zero or an overflow in the model's backward, or score in float64 (`dtype=float64`)"
        )


def dependent_samples(found: str) -> EvalkitError:
    """Return the refusal of micro-batches whose logits are not those of the whole batch."""
    return EvalkitError(
        f"expected samples that can be run a few at a time, found {found}; leave the micro-batch "
        "size out, and `split_batch`, and if an input is shared by all samples, give it an axis of "
        "length 1 in front or keep it as a buffer of the model"
    )


def refuse_if_varying(model: nn.Module, run: Run, inputs: Inputs) -> None:
    """Refuse a forward that gives other logits the second time.

    Raises:
        EvalkitError: naming the module.
    """
    try:
        same = repeats(run(inputs), run(inputs))
    except EvalkitError:
        raise
    except Exception:  # a part that the model's code cannot run tells nothing about chance
        return
    if not same:
        refuse_varying_forward(model, lambda: run(inputs))


def refuse_other_logits(
    evaluated: Evaluation, inputs: Inputs, samples: int, logits: Tensor
) -> None:
    """Refuse a whole batch whose logits a second forward does not give.

    Two samples are run again. Only where their logits are not those that they had in the batch, as
    when samples influence each other, the whole forward is; and on a GPU, where a part of the batch
    that indexes out of bounds would end the process.

    Args:
        evaluated: the model.
        inputs: the inputs of the whole batch.
        samples: N.
        logits: that they have.

    Raises:
        EvalkitError: naming the module.
    """
    ends = [0, samples - 1]
    if samples > len(ends) and logits.device.type == "cpu":
        part = part_of(inputs, long_leaves(inputs, samples), ends)
        if _gives(evaluated, part, logits[ends], 0.6):
            return
        refuse_if_varying(evaluated.model, evaluated.run, part)
    if _gives(evaluated, inputs, logits, 0.75, graph=False):  # a second graph may not fit
        return
    if not all(repeats(logits, evaluated.run(inputs)) for _ in range(2)):
        refuse_varying_forward(evaluated.model, lambda: evaluated.run(inputs))


def _gives(
    evaluated: Evaluation, inputs: Inputs, logits: Tensor, exponent: float, graph: bool = True
) -> bool:
    """Return whether inputs can be run, and give these logits."""
    try:
        return nearly(logits, evaluated.run(inputs, graph), exponent)
    except Exception:  # whatever the model's code raises
        return False


def _first_line(error: Any) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(".;")

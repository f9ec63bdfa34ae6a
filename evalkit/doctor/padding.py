"""Whether padding, which no sample has by itself, reaches the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map

from evalkit.counts import counted
from evalkit.doctor.companions import sample_leaves
from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import Subject
from evalkit.evaluation.determinism import nearly
from evalkit.evaluation.forward import Evaluation
from evalkit.evaluation.given import Inputs
from evalkit.linearization.sample_axis import ROUNDING, part_of
from evalkit.results.marks import percent

_NAME = "padding"
_TRIED = 3
"""Samples that are run without their padding: those with the most of it."""
FEWEST = 3
"""Zeros at the end of a row that are taken to be padding, where no embedding says so."""


@dataclass(frozen=True, eq=False)
class Padding:
    """Which positions of the samples belong to them.

    Attributes:
        kept: (N, T), True where a position is no padding.
        source: what tells, as a sentence calls it.
        masked: a mask among the inputs tells, so that the model can know it.
    """

    kept: Tensor
    source: str
    masked: bool

    def most(self) -> list[int]:
        """Return the samples with the most padding, a few, where they have any."""
        missing = (~self.kept).sum(1)
        order = missing.argsort(descending=True, stable=True)[:_TRIED].tolist()
        return [row for row in order if 0 < int(missing[row]) < self.kept.shape[1]]


def padding(subject: Subject) -> Finding:
    """Find whether logits change where padding is cut off, or filled with something else.

    Args:
        subject: whose few samples are run.
    """
    subject = subject.on_cpu()
    few = subject.few
    found = padding_of(few.inputs, subject.model, few.size)
    rows = [] if found is None else found.most()
    if found is None or not rows:
        said = f"{counted(few.size, 'sample')} have none" if found else "no input has any"
        return Finding(_NAME, "ok", said)
    evaluated = subject.evaluated()
    split = sample_leaves(evaluated, few.inputs, few.size)
    changes: dict[str, float] = {}
    for row in rows:
        kept = found.kept[row]
        alone = part_of(few.inputs, split, [row])
        # The mask itself says what is padding: it is cut, but not filled.
        filled = _filled(alone, kept, found.masked)
        for way, other, here in (
            ("cut", _cut(alone, kept), kept.new_ones(int(kept.sum()))),
            ("filled", filled, kept),
        ):
            change = _change(evaluated, (alone, kept), (other, here))
            if change is not None:
                changes[way] = max(changes.get(way, 0.0), change)
    length, longest = int(found.kept[rows[0]].sum()), found.kept.shape[1]
    numbers = {
        **{f"changed_{way}": far for way, far in changes.items()},
        "length": length,
        "padded_to": longest,
        "told_by": found.source,
    }
    of = f"a sample of {counted(length, 'position')}, padded to {longest}"
    if not any(changes.values()):
        ways = " and ".join(changes) or "left"
        said = f"{of} (told by {found.source}), has the same logits with its padding {ways}"
        return Finding(_NAME, "ok", said, numbers=numbers)
    worst = max(changes.values())
    seen = "filled with something else" if changes.get("filled") else "cut off"
    said = (
        f"the model sees padding: the logits of {of}, change by up to {percent(worst)} where that "
        f"is {seen}; scores depend on how long the longest sample of a batch is"
    )
    return Finding(_NAME, "warn", said, _cure(found, changes), numbers)


def _cure(found: Padding, changes: dict[str, float]) -> str:
    if not found.masked:
        return (
            "give the model a mask of what is padding, and leave it out of attention, pooling and "
            "the last state"
        )
    if changes.get("filled"):
        return f"leave out what {found.source} masks, in attention and in pooling"
    return (
        "positions or means count the padding: pad on the right, pass position_ids, and divide by "
        f"the sum of {found.source}, not by the length"
    )


def padding_of(inputs: Inputs, model: nn.Module, samples: int) -> Padding | None:
    """Return what is padding, None where nothing tells.

    A mask among the inputs does; otherwise the index that an embedding of the model has for it, and
    zeros at the ends of rows of indices alone.

    Args:
        inputs: of some samples.
        model: that takes them.
        samples: N.
    """
    leaves = [
        (_name(path), leaf)
        for path, leaf in tree_flatten_with_path(inputs)[0]
        if isinstance(leaf, Tensor) and leaf.dim() == 2 and len(leaf) == samples
    ]
    for name, leaf in leaves:
        if (kept := _by_mask(name, leaf)) is not None:
            return Padding(kept, name, True)
    embeddings = [one for one in model.modules() if isinstance(one, nn.Embedding)]
    for name, leaf in leaves if embeddings else ():
        if leaf.is_floating_point() or leaf.dtype == torch.bool:
            continue
        declared = [e.padding_idx for e in embeddings if e.padding_idx is not None]
        index = declared[0] if declared else 0
        kept = leaf != index
        if not declared and int((~kept).sum(1).max()) < FEWEST:
            continue
        # Only at one end of rows of several lengths: otherwise it is an index like others.
        if _at_an_end(kept) and len(set(kept.sum(1).tolist())) > 1 and bool(kept.any(1).all()):
            return Padding(kept, f"the index {index} of {name}", False)
    return None


def _by_mask(name: str, leaf: Tensor) -> Tensor | None:
    """Return which positions a mask keeps, None where a tensor is none."""
    words = name.lower().replace("_", " ")
    if "mask" not in words or not bool(((leaf == 0) | (leaf == 1)).all()):
        return None
    # torch's own masks are true where there is padding, those of transformers where there is none.
    inverted = "padding mask" in words or "pad mask" in words
    kept = leaf == 0 if inverted else leaf != 0
    return kept if bool(kept.any(1).all()) else None


def _at_an_end(kept: Tensor) -> bool:
    """Return whether what is not kept lies at the same end of all rows."""
    steps = kept.int().diff(dim=1)
    return bool((steps <= 0).all() or (steps >= 0).all())


def _name(path: Any) -> str:
    """Return what a sentence calls an input."""
    key = getattr(path[-1], "key", None) if path else None
    return f"'{key}'" if isinstance(key, str) else f"inputs{''.join(map(str, path))}"


def _cut(alone: Inputs, kept: Tensor) -> Inputs:
    """Return one sample without its padding."""
    return _changed(alone, kept, lambda leaf: leaf[:, kept.to(leaf.device)])


def _filled(alone: Inputs, kept: Tensor, masked: bool) -> Inputs | None:
    """Return one sample whose padding holds what its first positions do; None without a mask."""
    if not masked:
        return None
    places = torch.arange(len(kept), device=kept.device)
    real = places[kept]
    source = torch.where(kept, places, real[places % len(real)])

    def fill(leaf: Tensor) -> Tensor:
        is_mask = leaf.dim() == 2 and bool(((leaf == 0) | (leaf == 1)).all())
        return leaf if is_mask else leaf[:, source.to(leaf.device)]

    return _changed(alone, kept, fill)


def _changed(alone: Inputs, kept: Tensor, change: Callable[[Tensor], Tensor]) -> Inputs:
    def changed(leaf: Any) -> Any:
        has = isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.shape[:2] == (1, len(kept))
        return change(leaf) if has else leaf

    found: Inputs = tree_map(changed, alone)
    return found


def _change(
    evaluated: Evaluation, before: tuple[Inputs, Tensor], after: tuple[Inputs | None, Tensor]
) -> float | None:
    """Return by how much logits differ where positions are kept, as a part of the largest.

    Args:
        evaluated: the model.
        before: one sample, and the positions that belong to it.
        after: the same in another way; None where there is none.

    Returns:
        0 where rounding explains it, None where the forward does not take the sample that way.
    """
    if after[0] is None:
        return None
    try:
        found = [evaluated.run(inputs) for inputs in (before[0], after[0])]
    except Exception:  # of a forward that takes one length alone
        return None
    # Logits that stay as many where positions are cut are not of positions.
    if len(before[1]) == len(after[1]) or found[0].shape != found[1].shape:
        found = [
            _of_positions(logits, kept)
            for logits, kept in zip(found, (before[1], after[1]), strict=True)
        ]
    one, other = found
    if one.shape != other.shape:
        return None
    if nearly(one, other, ROUNDING):
        return 0.0
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def _of_positions(logits: Tensor, kept: Tensor) -> Tensor:
    """Return the logits of positions that belong to a sample, where logits have positions.

    Those before the sample's own, of a prompt that the model puts there, belong to it.
    """
    before = logits.shape[1] - len(kept) if logits.dim() > 2 else -1
    if before < 0:
        return logits
    kept = torch.cat([kept.new_ones(before, dtype=torch.bool), kept.bool()])
    return logits[:, kept.to(logits.device)]

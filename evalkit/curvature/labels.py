"""Where the cotangents come from that a curvature matrix is made of: the setting ``labels``.

Every source gives c_kn, K cotangents of the logits for each sample, and stands for the matrix
F = sum_kn J^T c_kn c_kn^T J. Structures take what these pull back to, and know nothing of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.likelihoods import IGNORED_LABEL, Categorical
from evalkit.linearization import Linearization
from evalkit.reductions import inverse
from evalkit.registry import suggest
from evalkit.rounding import check_range, saturated, saturated_positions

Labels = Literal["sampled", "exact", "empirical", "improved", "floor"]
Norm = Literal["sample", "position"]

MOST_OUTPUTS = 300
"""Outputs per sample up to which each has a backward of its own."""


def check_labels(labels: Any, argument: str = "labels") -> Labels:
    """Return where cotangents come from.

    Args:
        labels: as given.
        argument: what it is called.

    Raises:
        EvalkitError: there is no such source; near names are suggested.
    """
    known: tuple[Labels, ...] = get_args(Labels)
    for one in known:
        if labels == one:
            return one
    raise EvalkitError(
        f"expected `{argument}` to be one of {', '.join(known)}, found {str(labels)!r}; "
        f"{suggest(str(labels), known)}"
    )


@dataclass(frozen=True)
class Source:
    """What is asked for.

    Attributes:
        labels: where the cotangents come from.
        labels_per_sample: labels that are drawn for each sample.
        norm: what ``improved`` normalises, the logit gradient of a sample or of each position.
        seed: of the draws.
    """

    labels: Labels = "sampled"
    labels_per_sample: int = 1
    norm: Norm = "sample"
    seed: int = 0

    @property
    def key(self) -> Hashable:
        """What tells the cotangents of a batch from others."""
        drawn = (self.seed, self.labels_per_sample) if self.labels == "sampled" else ()
        return (self.labels, *drawn, *((self.norm,) if self.labels == "improved" else ()))

    def check(self, method: str) -> None:
        """Refuse a setting that the source has no use for.

        Args:
            method: the name of the method, for errors.

        Raises:
            EvalkitError: there is one.
        """
        if self.labels != "sampled" and self.labels_per_sample != 1:
            raise EvalkitError(
                f"expected labels_per_sample with labels=sampled alone in method '{method}', found "
                f"labels={self.labels}; leave labels_per_sample out"
            )
        if self.labels_per_sample < 1:
            raise EvalkitError(
                f"expected labels_per_sample of at least 1 in method '{method}', found "
                f"{self.labels_per_sample}; draw one label or more"
            )
        if self.labels != "improved" and self.norm != "sample":
            raise EvalkitError(
                f"expected norm={self.norm} with labels=improved alone in method '{method}', found "
                f"labels={self.labels}; leave norm out"
            )


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Cotangents, and the gradient told by them: g = sum_kn t_kn J_n^T c_kn + J^T c'.

    Attributes:
        values: c, (K, N, ..., C) float64.
        targets: t, (K, N) float64.
        rest: c', like logits; None where g lies in the span of the rows J_n^T c_kn.
    """

    values: Tensor
    targets: Tensor
    rest: Tensor | None = None


def cotangents(lin: Linearization, source: Source) -> Cotangents:
    """Return the cotangents of a source on one batch, found once for all structures and dampings.

    Raises:
        EvalkitError: ``exact`` would take too many backwards.
    """
    find = SOURCES[source.labels]
    return lin.shared(("cotangents", source.key), lambda: find(lin, source))


def sampled(lin: Linearization, source: Source) -> Cotangents:
    """Return r for labels drawn from the model, divided by sqrt(K): F estimates the exact matrix.

    The draws are those of ``sf`` for the same seed and number.
    """
    drawn = lin.sampled_logit_gradients(source.seed, source.labels_per_sample)
    root = source.labels_per_sample**0.5
    shares, rest = combination(lin, drawn)
    return Cotangents(drawn / root, root * shares.view(len(drawn), -1), rest)


def draws(lin: Linearization, source: Source) -> int:
    """Return K, the cotangents that a source has of each sample, at most.

    Raises:
        EvalkitError: there are more than :data:`MOST_OUTPUTS` for ``exact``, or more numbers in
            them than are held at once.
    """
    if source.labels != "exact":
        return source.labels_per_sample if source.labels == "sampled" else 1
    labelled, classes = lin.targets != IGNORED_LABEL, lin.logits.shape[-1]
    if lin.targets.shape == lin.logits.shape:  # a target for each output
        labelled, classes = labelled | (not lin.likelihood.ignores_labels), 1
    outputs = int(labelled.flatten(1).sum(1).max()) if labelled.dim() > 1 else 1
    if outputs * classes > MOST_OUTPUTS:
        raise EvalkitError(
            f"expected at most {MOST_OUTPUTS} outputs with a label per sample for labels=exact, a "
            f"backward for each, found {outputs * classes}; use labels=sampled"
        )
    numbers = outputs * classes * lin.logits.numel()
    if numbers > lin.batches.budget.held:
        raise EvalkitError(
            f"expected cotangents for labels=exact of at most {lin.batches.budget.held} numbers, "
            f"found {numbers}; use labels=sampled, or a smaller batch"
        )
    return outputs * classes


def exact(lin: Linearization, source: Source) -> Cotangents:
    """Return the columns of B_n with S_n = B_n B_n^T, one position at a time: F is the exact one.

    Columns that are zero, as those of positions without a label, are left out.

    Raises:
        EvalkitError: as :func:`draws`.
    """
    draws(lin, source)
    samples = zip(
        lin.logits.split(1), lin.targets.split(1), lin.logit_gradients.split(1), strict=True
    )
    columns = [_columns(lin, *sample) for sample in samples]
    count = max(1, *(len(found) for found, _ in columns), 0)
    values = lin.logit_gradients.new_zeros(count, *lin.logits.shape)
    targets = lin.logit_gradients.new_zeros(count, lin.num_samples)
    for n, (found, wanted) in enumerate(columns):
        values[: len(found), n] = found
        targets[: len(found), n] = wanted
    return Cotangents(values, targets)


def _columns(
    lin: Linearization, logits: Tensor, targets: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a sample's columns that are not zero, (M, ..., C), and what r is in them, (M,)."""
    root = lin.likelihood.fisher_root(logits, targets)[0]
    root = root.reshape(-1, *root.shape[-2:])  # (positions, C, C)
    solved = lin.likelihood.solve_root(logits, targets, gradient)[0].flatten()
    position, column = root.any(-2).nonzero(as_tuple=True)
    rows = torch.arange(len(position), device=root.device)
    found = root.new_zeros(len(position), *root.shape[:2])
    found[rows, position] = root[position, :, column]
    return found.view(-1, *logits.shape[1:]), solved.view(root.shape[:2])[position, column]


def empirical(lin: Linearization, source: Source) -> Cotangents:
    """Return r_n, of the labels of the data: F is the empirical Fisher matrix."""
    return _weighted(lin, torch.ones_like(lin.losses))


def improved(lin: Linearization, source: Source) -> Cotangents:
    """Return r_n / |r_n|, zero where r_n is, with the norm over a sample or over each position.

    Where r_n is zero because floating point ends there, :func:`unknown` says so.
    """
    if source.norm == "sample":
        return _weighted(lin, lin.logit_gradient_norms)
    r = lin.logit_gradients
    norms = r.norm(dim=-1, keepdim=True)
    c = r / norms.where(norms > 0, 1.0)
    squares = lin.sample_dots(c, c)
    share = lin.sample_dots(r, c) / squares.where(squares > 0, 1.0)
    rest = r - share.view(-1, *[1] * (r.dim() - 1)) * c
    alike = rest.flatten(1).norm(dim=1) <= 1e-12 * lin.logit_gradient_norms
    rest[alike] = 0.0
    return Cotangents(c[None], share[None], rest if rest.any() else None)


def floor(lin: Linearization, source: Source) -> Cotangents:
    """Return r_n / sqrt(f_n), f_n = r_n^T S_n^+ r_n: the most of G_n G_n^T that is below F_n."""
    check_range(lin, lin.floor_terms, "f of labels=floor")
    return _weighted(lin, lin.floor_terms.sqrt())


SOURCES: dict[Labels, Callable[[Linearization, Source], Cotangents]] = {
    "sampled": sampled,
    "exact": exact,
    "empirical": empirical,
    "improved": improved,
    "floor": floor,
}


def _weighted(lin: Linearization, divisors: Tensor) -> Cotangents:
    """Return r_n / w_n, zero where w_n is; their multiples w_n sum to the gradient."""
    c = lin.weighted_logit_gradients(inverse(divisors))
    return Cotangents(c[None], divisors[None])


def unknown(lin: Linearization, source: Source) -> bool:
    """Return whether floating point hides a cotangent of a source.

    r_n / |r_n| has length one however small r_n is, that of a fitted sample or position too.

    Args:
        lin: the model and batch.
        source: of the cotangents.
    """
    if source.labels != "improved":
        return False
    found = saturated(lin) if source.norm == "sample" else saturated_positions(lin)
    return bool(found.any())


def check_known(lin: Linearization, source: Source) -> None:
    """Refuse a source where a matrix cannot state how wrong its cotangents are.

    Raises:
        EvalkitError: floating point hides one, see :func:`unknown`.
    """
    if unknown(lin, source):
        raise EvalkitError(
            "expected logit gradients above the smallest numbers of float64 for labels=improved, "
            "which divides them by their lengths, found a sample that is fitted beyond them; use "
            "other labels, or leave such samples out"
        )


CANCELLED = 0.1
"""Where less than this part of r is left after what the draws account for, it is taken apart."""


def combination(lin: Linearization, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return h, (K N,), and the rest r_n - sum_k h_kn c_kn, None where it is zero.

    Unless much of r cancels, h is zero and the rest is r itself, whose products are known.

    Args:
        lin: the model and batch.
        drawn: c, (K, N, ..., C), such as logit gradients for drawn labels.
    """
    sampled = drawn.flatten(2).movedim(0, 1)  # (N, K, outputs)
    true = lin.logit_gradients.flatten(1).unsqueeze(2)  # (N, outputs, 1)
    products = sampled @ sampled.transpose(1, 2)
    h = torch.linalg.pinv(products, hermitian=True) @ (sampled @ true)  # (N, K, 1)
    rest = (true - sampled.transpose(1, 2) @ h).squeeze(2)
    rest[rest.norm(dim=1) <= 1e-12 * lin.logit_gradient_norms] = 0.0
    flat = h.squeeze(2).T.flatten()
    if not rest.any():
        return flat, None
    if rest.norm() > CANCELLED * lin.logit_gradient_norms.norm():
        return torch.zeros_like(flat), lin.logit_gradients
    return flat, rest.view_as(lin.logit_gradients)


def left_by(lin: Linearization, drawn: Tensor, h: Tensor) -> Tensor:
    """Return |r_n - sum_k h_kn c_kn| where that is not known to be zero: (N,).

    It is known where the labels of the data are drawn, where all others are and every p is one half
    exactly, and where draws span all that r_n can be, as with one output and with two classes. That
    r_n is a multiple of a c_kn to the last digit does not tell: p = 1/2 + 1e-30 is rounded.

    Args:
        lin: the model and batch.
        drawn: c, (K, N, ..., C).
        h: (K N,), of :func:`combination`.
    """
    r, c = lin.logit_gradients.flatten(1), drawn.flatten(2)
    even = (lin.logits.flatten(1) == 0).all(1)
    known = (r == c).all(2).any(0) | ((r == -c).all(2).any(0) & even)
    # Entries of a categorical r_n sum to zero at each position.
    sums = r[0].numel() // lin.logits.shape[-1] if isinstance(lin.likelihood, Categorical) else 0
    if len(c) >= (dimension := r.shape[1] - sums):
        known |= torch.linalg.matrix_rank(c.movedim(0, 1)) >= dimension
    left = (r - (h.view(len(c), -1, 1) * c).sum(0)).norm(dim=1)
    rounded = torch.finfo(torch.float64).eps * r.norm(dim=1)
    return torch.maximum(left, rounded).where(~known, 0.0)

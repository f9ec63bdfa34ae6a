"""What is kept of past tasks: their gradients, and the diagonal of their Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalkit.curvature.labels import Labels, Norm, Source, check_known, check_labels
from evalkit.curvature.whole_diagonal import diagonals, entries, whole_diagonal
from evalkit.errors import EvalkitError
from evalkit.evaluation.failures import memory_failures
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.linearization import Linearization, linearize
from evalkit.settings import check_seed

FORM = "give pairs (inputs, targets) of the past task"


@dataclass(frozen=True, eq=False)
class PastTask:
    """Gradients of past batches, and the diagonal of their Fisher matrix, by parameter's name.

    Attributes:
        gradients: G^T, the gradient of the summed loss of each batch, each (m, *shape) float64.
        fisher: diag(F_old), the mean over the m batches of that of each, a sum over its samples,
            each of the shape of the parameter, float64.
    """

    gradients: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    @property
    def batches(self) -> int:
        """m, the columns of G."""
        return len(next(iter(self.gradients.values())))

    @classmethod
    def joined(cls, tasks: PastTask | Sequence[PastTask]) -> PastTask:
        """Return several past tasks as one; batches count alike, whichever task they are of.

        Raises:
            EvalkitError: there are none, or they are not of one model.
        """
        several = tuple(tasks) if isinstance(tasks, Iterable) else (tasks,)
        for task in several:
            if not isinstance(task, PastTask):
                raise EvalkitError(
                    f"expected what evalkit.past_task returns as `past`, found "
                    f"{type(task).__name__}; pass the model and batches of the task through it"
                )
        if not several:
            raise EvalkitError("expected at least one past task, found none; leave `past` out")
        first, counts = several[0], [task.batches for task in several]
        if len(several) == 1:
            return first
        for task in several[1:]:
            for name in first.fisher.keys() | task.fisher.keys():
                sizes = [_shape(one.fisher.get(name)) for one in (first, task)]
                if sizes[0] != sizes[1]:
                    raise EvalkitError(
                        f"expected past tasks of one model, found '{name}' with {sizes[0]} in one "
                        f"and {sizes[1]} in another; take checkpoints of the same model"
                    )
        gradients, fisher = {}, {}
        for name in first.fisher:
            gradients[name] = torch.cat([task.gradients[name] for task in several])
            weighted = zip(counts, several, strict=True)
            whole = [count * task.fisher[name] for count, task in weighted]
            fisher[name] = torch.stack(whole).sum(0) / sum(counts)
        return cls(gradients, fisher)

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Refuse a model that has other parameters; further ones of the past play no part.

        Args:
            parameters: the trainable ones of the model, by name.

        Raises:
            EvalkitError: one is missing in the past, or has another shape there.
        """
        for name, value in parameters.items():
            found = _shape(self.fisher.get(name))
            if found != _shape(value):
                raise EvalkitError(
                    f"expected past tasks with the parameters of the model, '{name}' with "
                    f"{_shape(value)}, found {found}; take past checkpoints of the same model, "
                    "with the same parameters trainable"
                )

    def of(self, lin: Linearization) -> tuple[Tensor, Tensor]:
        """Return G^T, (m, P), and diag(F_old), (P,), of the parameters of a linearization.

        Raises:
            EvalkitError: as :meth:`check`.
        """
        self.check(lin.parameters)
        rows = [self.gradients[name].flatten(1) for name in lin.parameters]
        fisher = lin.flattened(self.fisher)
        device = lin.logits.device
        return torch.cat(rows, 1).to(device), fisher.to(device)


def past_task(
    model: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    likelihood: str = "categorical",
    labels: Labels = "sampled",
    labels_per_sample: int = 1,
    norm: Norm = "sample",
    seed: int = 0,
    micro_batch_size: int | None = None,
) -> PastTask:
    """Return what ``fopng`` needs of a past task: a gradient for each batch, and diag(F_old).

    Everything is evaluated in float64, so that it is as good as exact beside scores in float32.

    Args:
        model: as it was at the end of the past task; it is left as it is.
        batches: pairs (inputs, targets) of the past task, as :func:`evalkit.linearize` takes them;
            each is a column of G.
        likelihood: what the outputs mean.
        labels: where the cotangents of F_old come from: ``"sampled"``, ``"exact"``,
            ``"empirical"``, ``"improved"`` or ``"floor"``.
        labels_per_sample: labels that are drawn for each sample where they are sampled.
        norm: what ``"improved"`` normalises, each sample or each position.
        seed: of the draws.
        micro_batch_size: as in :func:`evalkit.linearize`.

    Raises:
        EvalkitError: there is no batch, or one does not fit the model, or no such source of labels,
            or floating point hides what ``"improved"`` normalises.
    """
    source = Source(check_labels(labels), labels_per_sample, norm, check_seed(seed))
    source.check("fopng")
    gradients: list[dict[str, Tensor]] = []
    total: dict[str, Tensor] = {}
    with memory_failures(), full_precision():
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise EvalkitError(
                    f"expected batches as pairs, found {type(batch).__name__}; {FORM}"
                )
            lin = linearize(model, *batch, likelihood, micro_batch_size, "float64")
            check_known(lin, source)
            matrix = whole_diagonal(lin, source)
            values = {names: one.values for names, one in diagonals(matrix).items()}
            gradients.append({k: v.clone() for k, v in lin.by_name(lin.gradient).items()})
            for name, part in lin.by_name(entries(matrix, values)).items():
                total[name] = total[name] + part if name in total else part.clone()
    if not gradients:
        raise EvalkitError(f"expected at least one batch of a past task, found none; {FORM}")
    return PastTask(
        {name: torch.stack([one[name] for one in gradients]) for name in total},
        {name: value / len(gradients) for name, value in total.items()},
    )


def _shape(value: Tensor | None) -> str:
    return "no parameter" if value is None else f"shape {tuple(value.shape)}"

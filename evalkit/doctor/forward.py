"""Whether a forward can be evaluated: parameters to train, and the same logits each time."""

from __future__ import annotations

import torch

from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.doctor.subject import Subject
from evalkit.evaluation.determinism import (
    preserved_random_state,
    random_state,
    refuse_batch_statistics,
    refuse_random_forward,
)
from evalkit.evaluation.failures import forward_failures
from evalkit.evaluation.forward import differentiable
from evalkit.linearization.sample_axis import refuse_if_varying


def forward(subject: Subject) -> Finding:
    """Find whether the forward runs, with something to train, and gives a row for each sample.

    Raises:
        EvalkitError: it does not.
    """
    evaluated = subject.evaluated()
    logits = evaluated.run(subject.few.inputs)
    size, shape = subject.few.size, tuple(logits.shape)
    total = sum(value.numel() for value in subject.model.parameters())
    trained = sum(value.numel() for value in evaluated.trainable.values())
    precision = str(evaluated.precision).removeprefix("torch.")
    numbers = {"trainable": trained, "parameters": total, "logits": list(shape[1:])}
    if len(logits) == size:
        every = counted(total, "parameter")
        of = f"all {every}" if 1 < trained == total else f"{trained:,} of {every}"
        tensors = counted(len(evaluated.trainable), "tensor")
        said = f"{of} {'is' if trained == 1 else 'are'} trained, in {tensors}"
        return Finding("forward", "ok", f"{said}; logits in {precision}", numbers=numbers)
    samples = f"{counted(size, 'sample')} {'has' if size == 1 else 'have'}"
    found = f"{samples} logits of shape {shape}, without the samples on axis 0"
    places = [axis for axis, length in enumerate(shape) if length == size]
    cure = "return logits with the samples on axis 0, as the targets have them"
    if places:
        cure = (
            f"the model is sequence-first: let it return logits.transpose(0, {places[0]}), or "
            "build its layers with batch_first=True"
        )
    return Finding("forward", "fail", found, cure, numbers)


def determinism(subject: Subject) -> Finding:
    """Find whether the same inputs have the same logits each time.

    Raises:
        EvalkitError: they have not; the sentence names the module.
    """
    refuse_batch_statistics(subject.model)
    evaluated, inputs = subject.evaluated(), subject.few.inputs
    taken = evaluated.cast(inputs)

    def run() -> torch.Tensor:
        return evaluated.call(evaluated.parameters, taken)

    with differentiable(), preserved_random_state(), forward_failures(subject.model, inputs):
        before = random_state()
        run()
        moved = any(not torch.equal(a, b) for a, b in zip(before, random_state(), strict=True))
    if moved:
        refuse_random_forward(subject.model, run)
    refuse_if_varying(subject.model, evaluated.run, inputs)
    return Finding("determinism", "ok", "the same inputs have the same logits each time")

"""Refuses forwards whose logits are not a function of parameters and sample alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evalkit.errors import EvalkitError
from evalkit.evaluation.modules import ModuleCall, first, watched


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model whose samples influence each other through batch statistics.

    Raises:
        EvalkitError: naming the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            kept = module.running_mean is not None
            advice = "call model.eval() first" if kept else "build it with track_running_stats=True"
            raise EvalkitError(
                "expected samples that do not influence each other, found batch statistics in "
                f"module '{name}' ({type(module).__name__}"
                f"{' in train mode' if module.training else ' without running statistics'}); "
                f"{advice}, or use GroupNorm"
            )


def random_state() -> list[Tensor]:
    """Return the global random state of each device."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave torch's global random state as it was found."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def refuse_random_forward(model: nn.Module, run: Callable[[], Tensor]) -> NoReturn:
    """Run the forward again, watching the random state, and name the module that draws numbers."""
    states: dict[str, list[Tensor]] = {}
    random: list[ModuleCall] = []

    def before(call: ModuleCall) -> None:
        states[call.name] = random_state()

    def after(call: ModuleCall) -> None:
        pairs = zip(states[call.name], random_state(), strict=True)
        if any(not torch.equal(a, b) for a, b in pairs):
            random.append(call)

    with torch.no_grad(), preserved_random_state(), watched(model, after, before):
        run()
    trains = (random[0].module if random else model).training
    # In eval mode already, the switch that the mode sets has not been asked.
    advice = (
        "call model.eval() first, or remove the noise"
        if trains
        else "let it draw in train mode alone (functional.dropout with training=self.training), or "
        "remove the noise"
    )
    raise EvalkitError(
        f"expected a deterministic forward, found random numbers drawn in {first(random, model)}, "
        f"in {'train' if trains else 'eval'} mode; {advice}"
    )


def nearly(one: Tensor, other: Tensor, exponent: float) -> bool:
    """Return whether logits agree to eps ** exponent of the largest: of one shape, and finite."""
    if one.shape != other.shape:
        return False
    tolerance = torch.finfo(one.dtype).eps ** exponent * one.abs().max()
    return bool(((one - other).abs() <= tolerance).all())


def repeats(logits: Tensor, again: Tensor) -> bool:
    """Return whether a second forward gave the logits of the first.

    On a GPU, sums that are taken in another order may differ in the last digits.
    """
    return nearly(logits, again, 0.75)


def refuse_varying_forward(model: nn.Module, run: Callable[[], Tensor]) -> NoReturn:
    """Run the forward twice and name the module that makes another thing of the same inputs.

    Args:
        model: whose logits changed from one call to the next.
        run: the forward.

    Raises:
        EvalkitError: always.
    """
    runs: list[list[_Seen]] = []
    for _ in range(2):
        seen = _Seen.of(model, run)
        runs.append(seen)
    varying = [
        one.call
        for one, other in zip(*runs, strict=False)
        if (one.call.name, one.inputs) == (other.call.name, other.inputs)
        and one.outputs != other.outputs
    ]
    raise EvalkitError(
        "expected a forward that gives the same logits for the same inputs each time, found that "
        f"{first(varying, model)} changes from call to call; remove what it draws or counts by "
        "itself (a generator of its own, NumPy's random numbers, a counter) for the evaluation"
    )


class _Seen:
    """A call of a module with what went in and came out, as bytes."""

    def __init__(self, call: ModuleCall, inputs: tuple[int, ...]) -> None:
        self.call = ModuleCall(call.name, call.module, (), ())
        self.inputs = inputs
        self.outputs = _digests(call.outputs)

    @classmethod
    def of(cls, model: nn.Module, run: Callable[[], Tensor]) -> list[_Seen]:
        """Return the calls of one forward in the order in which they end."""
        pending: list[tuple[int, ...]] = []
        seen: list[_Seen] = []
        with watched(
            model,
            lambda call: seen.append(cls(call, pending.pop())),
            lambda call: pending.append(_digests(call.inputs)),
        ):
            run()
        return seen


def _digests(values: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Return a number for each tensor that another content would change."""
    return tuple(
        hash((value.shape, value.detach().double().cpu().contiguous().numpy().tobytes()))
        for value in values
        if not value.is_complex()
    )

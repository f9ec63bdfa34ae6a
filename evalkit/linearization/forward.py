"""A model as it is evaluated: its forward, its precision, and what stands in for its values.

A pass runs on aliases of the trainable parameters and on copies of the buffers, so the caller's
model keeps its mode, gradients, hooks, parameters and buffers whatever the forward does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from evalkit.errors import EvalkitError
from evalkit.linearization.determinism import (
    preserved_random_state,
    refuse_batch_statistics,
)
from evalkit.linearization.precision import AllDouble
from evalkit.linearization.substitutes import substituted

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model's forward takes: a tensor, positional arguments, or keyword arguments."""


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a model: its output tensor, or the ``logits`` of its output object.

    A single number per sample, (N,), is returned as (N, 1).

    Raises:
        EvalkitError: the output is neither.
    """
    if isinstance(inputs, Mapping):
        return _logits(model(**inputs))
    return _logits(model(*inputs)) if isinstance(inputs, tuple) else _logits(model(inputs))


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise EvalkitError(
            "expected a model that returns a tensor or an object with .logits, found "
            f"{type(output).__name__}; wrap the model so that it returns its logits"
        )
    return logits.reshape(-1, 1) if logits.dim() < 2 else logits


@contextmanager
def differentiable() -> Iterator[None]:
    """Grad mode with the attention kernel that can be differentiated twice."""
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def describe(value: Any) -> str:
    """Return the shape of a tensor, or the type of anything else."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_batch(inputs: Inputs, targets: Tensor) -> int:
    """Return N, the first axis of the targets and of at least one input.

    Raises:
        EvalkitError: there are no samples, or no input has as many as the targets.
    """
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) == 0:
        raise EvalkitError(
            "expected a tensor of targets with at least one sample on axis 0, found "
            f"{describe(targets)}; pass a batch"
        )
    sizes = [len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    if len(targets) not in sizes:
        raise EvalkitError(
            f"expected inputs with {len(targets)} samples on axis 0, as the targets have, found "
            f"{sizes or 'no tensor'}; pass inputs and targets of the same batch"
        )
    return len(targets)


@dataclass(frozen=True)
class Evaluation:
    """A model in the precision of the evaluation.

    Attributes:
        model: as given.
        trainable: its trainable parameters by name.
        parameters: what stands in for them.
        call: maps (parameters by name, inputs) to logits.
        cast: casts inputs.
    """

    model: nn.Module
    trainable: dict[str, nn.Parameter]
    parameters: dict[str, Tensor]
    call: Callable[[dict[str, Tensor], Inputs], Tensor]
    cast: Callable[[Inputs], Inputs]

    def run(self, inputs: Inputs, graph: bool = True) -> Tensor:
        """Return the logits of inputs, detached; no random state is used up.

        Args:
            inputs: what the forward takes.
            graph: gradients are on, as in a recorded forward: it may take some inside, and without
                them some modules take another path.
        """
        with differentiable(), torch.set_grad_enabled(graph), preserved_random_state():
            return self.call(self.parameters, self.cast(inputs)).detach()


def evaluation(model: nn.Module, dtype: torch.dtype | None = None) -> Evaluation:
    """Return a model as it is evaluated.

    Args:
        model: any module; its trainable parameters are those with ``requires_grad``.
        dtype: of the evaluation: parameters, buffers and inputs are cast. None keeps each as it
            is, but for half precision, which is evaluated in float32, and for trainable parameters
            of several precisions, where all is evaluated in the highest.

    Raises:
        EvalkitError: nothing is trainable, or samples influence each other.
    """
    if not isinstance(model, nn.Module):
        raise EvalkitError(
            f"expected a torch.nn.Module to score, found {type(model).__name__}; pass the module"
        )
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not trainable:
        raise EvalkitError(
            f"expected a model with trainable parameters, found none in {type(model).__name__}; "
            "set requires_grad on the parameters to score"
        )
    _refuse_complex(trainable)
    refuse_batch_statistics(model)
    changed = _changed_by_forward(model)
    found = _precisions(trainable.values())
    precision = reduce(torch.promote_types, found) if dtype is None else dtype
    dtype = precision if len(found) > 1 else dtype
    parameters = {
        name: cast(value.detach(), dtype, id(value) in changed).requires_grad_()
        for name, value in trainable.items()
    }
    owners = _owners(model)
    frozen = {
        id(value): cast(value.detach(), dtype, id(value) in changed)
        for value in model.parameters()
        if not value.requires_grad
    }

    def call(values: dict[str, Tensor], arguments: Inputs) -> Tensor:
        buffers = {id(buffer): cast(buffer, dtype, copy=True) for buffer in model.buffers()}
        chosen = frozen | buffers | {id(old): values[name] for name, old in trainable.items()}
        swapped = {place: chosen[id(old)] for place, old in owners.items()}
        # Every place is swapped once and on its own: torch's own handling of tied weights leaves a
        # module that is registered twice with a plain tensor in place of its parameter.
        double = all(value.dtype == torch.float64 for value in values.values())
        own = all(swapped[place].dtype == old.dtype for place, old in owners.items())
        with AllDouble() if double else nullcontext(), substituted(recomputing=own):
            logits = functional_call(_Logits(model), swapped, (arguments,), tie_weights=False)
        # Another precision comes from autocast, or from a forward that casts its output.
        return cast(logits, precision)

    def cast_inputs(inputs: Inputs) -> Inputs:
        return tree_map(
            lambda leaf: cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, inputs
        )

    return Evaluation(model, trainable, parameters, call, cast_inputs)


def cast(value: Tensor, dtype: torch.dtype | None, copy: bool = False) -> Tensor:
    """Return a floating value in the precision of the evaluation, any other as it is.

    Args:
        value: a parameter, buffer or input.
        dtype: of the evaluation; None keeps all but half precision, which becomes float32.
        copy: return a copy even if nothing changes.
    """
    if not value.is_floating_point():
        return value.clone() if copy else value
    return value.to(_precision(value) if dtype is None else dtype, copy=copy)


def _precision(value: Tensor) -> torch.dtype:
    """Return the precision that a value is evaluated in by itself."""
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype


def _precisions(parameters: Iterable[Tensor]) -> set[torch.dtype]:
    """Return what parameters are evaluated in; as for torch, a number has no say beside arrays."""
    found = [(value.dim() > 0, _precision(value)) for value in parameters]
    arrays = any(is_array for is_array, _ in found)
    return {precision for is_array, precision in found if is_array or not arrays}


class _Logits(nn.Module):
    """The model with ``forward`` applied, as the one module that ``functional_call`` wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return forward(self.model, inputs)


def _owners(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by where it lies, once for each module and attribute."""
    return {
        ".".join(filter(None, ("model", path, attribute))): value
        for path, module in model.named_modules()
        for attribute, value in (*module._parameters.items(), *module._buffers.items())
        if value is not None
    }


def _changed_by_forward(model: nn.Module) -> set[int]:
    """Return the ids of embeddings with a largest norm, whose rows a forward shortens in place."""
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    }


def _refuse_complex(parameters: Mapping[str, Tensor]) -> None:
    for name, value in parameters.items():
        if not value.is_floating_point():
            raise EvalkitError(
                f"expected real trainable parameters, found "
                f"{str(value.dtype).removeprefix('torch.')} in '{name}'; train its real and "
                "imaginary parts"
            )

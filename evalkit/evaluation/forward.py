"""A model as it is evaluated: its forward, its precision, and what stands in for its values.

A pass runs on aliases of the trainable parameters and on copies of the buffers, so the caller's
model keeps its mode, gradients, hooks, parameters and buffers whatever the forward does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from evalkit.errors import EvalkitError
from evalkit.evaluation.determinism import (
    preserved_random_state,
    refuse_batch_statistics,
)
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.evaluation.outputs import logits_of
from evalkit.evaluation.precision import HALF, AtLeast
from evalkit.evaluation.substitutes import substituted
from evalkit.evaluation.wrapped import eagerly, plain_name


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a model, which :func:`evalkit.evaluation.outputs.logits_of` finds.

    Raises:
        EvalkitError: its output does not tell.
    """
    if isinstance(inputs, Mapping):
        return logits_of(model(**inputs))
    return logits_of(model(*inputs)) if isinstance(inputs, tuple) else logits_of(model(inputs))


@contextmanager
def differentiable() -> Iterator[None]:
    """Grad mode in full precision with what has second derivatives: eager code, plain attention."""
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(False), torch.enable_grad(), full_precision(), attention, eagerly():
        yield


@dataclass(frozen=True)
class Evaluation:
    """A model in the precision of the evaluation.

    Attributes:
        model: as given.
        trainable: its trainable parameters by name.
        parameters: what stands in for them.
        precision: the precision of the logits.
        mode: keeps its forward in that precision.
        call: maps (parameters by name, inputs) to logits.
        cast: casts inputs.
    """

    model: nn.Module
    trainable: dict[str, nn.Parameter]
    parameters: dict[str, Tensor]
    precision: torch.dtype
    mode: AtLeast
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
        dtype: what parameters, buffers and inputs are cast to. None keeps each as it
            is, but for half precision, which is evaluated in float32, for trainable parameters of
            several precisions, where all is evaluated in the highest, and for inputs in a lower
            precision than theirs, which are raised to it.

    Raises:
        EvalkitError: nothing is trainable, or samples influence each other.
    """
    trainable = {
        plain_name(name): value for name, value in model.named_parameters() if value.requires_grad
    }
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
    mode, owners = in_precision(parameters.values()), _owners(model)
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
        own = all(swapped[place].dtype == old.dtype for place, old in owners.items())
        with mode, substituted(recomputing=own):
            logits = functional_call(_Logits(model), swapped, (arguments,), tie_weights=False)
        # Another precision comes from a forward that casts its output.
        return cast(logits, precision)

    def cast_inputs(inputs: Inputs) -> Inputs:
        return tree_map(cast_input, inputs)

    def cast_input(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = cast(leaf, dtype)
        lower = leaf.is_floating_point() and torch.promote_types(leaf.dtype, precision) == precision
        return leaf.to(precision) if lower else leaf

    return Evaluation(model, trainable, parameters, precision, mode, call, cast_inputs)


def taking(evaluated: Evaluation, inputs: Inputs) -> Evaluation:
    """Return a model that takes inputs in a higher precision than that of its parameters.

    They stay as they are where the forward takes them, as one that subtracts large numbers before
    it rounds does; otherwise they are cast to the precision of the parameters, as layers want them.

    Args:
        evaluated: the model.
        inputs: what its forward takes.
    """
    leaves = tree_leaves(evaluated.cast(inputs))
    found = {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}
    if found <= {evaluated.precision}:
        return evaluated
    try:
        evaluated.run(inputs)
    except EvalkitError:
        return evaluated
    except Exception:  # whatever the layers raise for numbers of two precisions
        return replace(evaluated, cast=partial(_cast_all, dtype=evaluated.precision))
    return evaluated


def _cast_all(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return tree_map(lambda leaf: cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, inputs)


def cast(value: Tensor, dtype: torch.dtype | None, copy: bool = False) -> Tensor:
    """Return a floating value in the precision of the evaluation, any other as it is.

    Args:
        value: a parameter, buffer or input.
        dtype: that of the evaluation; None keeps all but half precision, which becomes float32.
        copy: return a copy even if nothing changes.
    """
    # What was made under inference mode takes part in no graph, but a copy does.
    copy = copy or value.is_inference()
    if not value.is_floating_point():
        return value.clone() if copy else value
    return value.to(_precision(value) if dtype is None else dtype, copy=copy)


def in_precision(parameters: Iterable[Tensor]) -> AtLeast:
    """Return what keeps a forward in the precision that its parameters are evaluated in."""
    values = tuple(parameters)
    double = all(value.dtype == torch.float64 for value in values)
    return AtLeast(torch.float64 if double else torch.float32, values[0].device.type)


def _precision(value: Tensor) -> torch.dtype:
    """Return the precision that a value is evaluated in by itself."""
    return torch.float32 if value.dtype in HALF else value.dtype


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

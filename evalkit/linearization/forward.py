"""One forward pass of a model, recorded: logits, their graph, and what each parameter did.

The pass runs on aliases of the trainable parameters and on copies of the buffers, so the caller's
model keeps its mode, gradients, hooks, parameters and buffers whatever the forward does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from evalkit.errors import EvalkitError
from evalkit.linearization.broadcasts import Broadcast, of_samples, shared_parameters
from evalkit.linearization.determinism import (
    preserved_random_state,
    random_state,
    refuse_batch_statistics,
    refuse_random_forward,
)
from evalkit.linearization.double_backward import Backward
from evalkit.linearization.graph_ends import refuse_lost_gradients
from evalkit.linearization.precision import AllDouble
from evalkit.linearization.recorder import (
    Graph,
    LayerUse,
    Recorder,
    graph_of,
    ruled_parameters,
)

HELD_AT_ONCE = 1 << 27
"""Numbers in per-sample gradients that are formed and held at once: 512 MiB in float32."""

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model's forward takes: a tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True)
class Recording:
    """A forward pass that can be differentiated again and again.

    Attributes:
        logits: (N, ..., C), with the graph attached.
        parameters: the trainable parameters by name, in the order of ``named_parameters``.
        uses: the calls of layers with a rule that a trainable parameter took part in.
        ruled: names of the parameters whose every use is one of these calls.
        broadcasts: where parameters that reach the logits only through values without a sample
            axis meet the batch, by name, if axis 0 is the sample axis there.
        call: maps (parameters by name, inputs) to logits: the same forward again.
        inputs: the inputs of this pass.
        backward: how backwards through its replaced layers are run.
        model: as given.
        foreign: the graph has autograd functions of the model's own.
        pass_work: multiplications of a pass through all layers with a rule, frozen ones too.
    """

    logits: Tensor
    parameters: dict[str, Tensor]
    uses: tuple[LayerUse, ...]
    ruled: frozenset[str]
    broadcasts: dict[str, tuple[Broadcast, ...]]
    call: Callable[[dict[str, Tensor], Inputs], Tensor]
    inputs: Inputs
    backward: Backward
    model: nn.Module
    foreign: bool
    pass_work: int

    @property
    def num_params(self) -> int:
        """P, the number of trainable parameters."""
        return sum(value.numel() for value in self.parameters.values())

    @cached_property
    def shared(self) -> dict[str, tuple[Broadcast, ...]]:
        """Where the parameters that act on every sample alike meet the batch, by name.

        A parameter whose per-sample gradients take more memory than is spent at once is left out.
        """
        found = {
            name: places
            for name, places in self.broadcasts.items()
            if self.parameters[name].numel() * len(self.logits) <= HELD_AT_ONCE
        }
        chosen = dict.fromkeys(place for places in found.values() for place in places)
        with differentiable():
            alike = of_samples(self.logits, tuple(chosen))
        return {name: places for name, places in found.items() if alike.issuperset(places)}


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
        with AllDouble() if double else nullcontext():
            logits = functional_call(_Logits(model), swapped, (arguments,), tie_weights=False)
        # Another precision comes from autocast, or from a forward that casts its output.
        return cast(logits, precision)

    def cast_inputs(inputs: Inputs) -> Inputs:
        return tree_map(
            lambda leaf: cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, inputs
        )

    return Evaluation(model, trainable, parameters, call, cast_inputs)


def record(evaluated: Evaluation, inputs: Inputs, samples: int) -> Recording:
    """Run the forward once and keep its graph.

    Args:
        evaluated: the model.
        inputs: what its forward takes.
        samples: N.

    Raises:
        EvalkitError: the forward draws random numbers, or its graph hides gradients.
    """
    model, trainable, parameters = evaluated.model, evaluated.trainable, evaluated.parameters
    call, inputs = evaluated.call, evaluated.cast(inputs)
    backward = Backward()
    recorder = Recorder({id(value): name for name, value in parameters.items()}, backward, samples)
    with differentiable(), preserved_random_state(), recorder:
        state = random_state()
        logits = call(parameters, inputs)
        random = any(not torch.equal(a, b) for a, b in zip(state, random_state(), strict=True))
    if random:
        refuse_random_forward(model, lambda: call(parameters, inputs))
    if recorder.recomputed and any(parameters[n].dtype != p.dtype for n, p in trainable.items()):
        raise EvalkitError(
            "expected a forward that its backward does not run again, since that would be in the "
            "model's own precision, found activation checkpointing; switch it off for the "
            "evaluation, or convert the model"
        )
    graph = graph_of(logits)
    _refuse_kept_references(graph, trainable)
    with differentiable():
        foreign = refuse_lost_gradients(
            model, graph, parameters, frozenset(recorder.hidden), lambda v: call(v, inputs)
        )
    ruled = ruled_parameters(graph, parameters, recorder)
    reached = graph.accumulators_of(parameters)
    broadcasts = shared_parameters(graph.users, reached, recorder.broadcasts)
    return Recording(
        logits,
        parameters,
        tuple(recorder.uses),
        ruled,
        broadcasts,
        call,
        inputs,
        backward,
        model,
        foreign,
        recorder.pass_work,
    )


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


def _refuse_kept_references(graph: Graph, trainable: Mapping[str, Tensor]) -> None:
    for name in graph.accumulators_of(trainable):
        raise EvalkitError(
            f"expected parameter '{name}' to be used through its module alone, found a forward "
            "that uses a reference kept elsewhere; read it from the module inside forward"
        )


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
        if isinstance(module, nn.Embedding) and module.max_norm is not None
    }


def _refuse_complex(parameters: Mapping[str, Tensor]) -> None:
    for name, value in parameters.items():
        if not value.is_floating_point():
            raise EvalkitError(
                f"expected real trainable parameters, found "
                f"{str(value.dtype).removeprefix('torch.')} in '{name}'; train its real and "
                "imaginary parts"
            )

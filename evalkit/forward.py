"""One forward pass of a model, recorded: logits, their graph, and what each parameter did.

The pass runs on aliases of the trainable parameters and on copies of the buffers, so the caller's
model keeps its mode, gradients, hooks, parameters and buffers whatever the forward does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from evalkit.errors import EvalkitError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model's forward takes: a tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True)
class LinearUse:
    """One call of ``F.linear``.

    Attributes:
        inputs: (..., in), detached.
        version: of the inputs at the call; an in-place change later would raise it.
        outputs: the graph edge of the outputs, (..., out).
        weight: name of the trainable parameter, None where the weight is not one.
        bias: likewise.
    """

    inputs: Tensor
    version: int
    outputs: GradientEdge
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class Recording:
    """A forward pass that can be differentiated again and again.

    Attributes:
        logits: (N, ..., C), with the graph attached.
        parameters: the trainable parameters by name, in the order of ``named_parameters``.
        linear_uses: every ``F.linear`` call that a trainable parameter took part in.
        linear: names of the parameters whose every use is one of these calls.
        call: maps (parameters by name, inputs) to logits: the same forward again.
        inputs: the inputs of this pass.
    """

    logits: Tensor
    parameters: dict[str, Tensor]
    linear_uses: tuple[LinearUse, ...]
    linear: frozenset[str]
    call: Callable[[dict[str, Tensor], Inputs], Tensor]
    inputs: Inputs

    @property
    def num_params(self) -> int:
        """P, the number of trainable parameters."""
        return sum(value.numel() for value in self.parameters.values())


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits of a model: its output tensor, or the ``logits`` of its output object.

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
    return logits


@contextmanager
def differentiable() -> Iterator[None]:
    """Grad mode with the attention kernel that can be differentiated twice."""
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def record(model: nn.Module, inputs: Inputs) -> Recording:
    """Run the forward once and keep its graph.

    Args:
        model: any module; its trainable parameters are those with ``requires_grad``.
        inputs: what its forward takes.

    Raises:
        EvalkitError: nothing is trainable, or the forward is not deterministic.
    """
    if not isinstance(model, nn.Module):
        raise EvalkitError(
            f"expected a torch.nn.Module to score, found {type(model).__name__}; pass the module"
        )
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    parameters = {name: value.detach().requires_grad_() for name, value in trainable.items()}
    if not parameters:
        raise EvalkitError(
            f"expected a model with trainable parameters, found none in {type(model).__name__}; "
            "set requires_grad on the parameters to score"
        )
    _refuse_precision(parameters)
    _refuse_batch_statistics(model)

    owners = _owners(model)

    def call(values: dict[str, Tensor], arguments: Inputs) -> Tensor:
        chosen = {id(value): values[name] for name, value in trainable.items()}
        chosen |= {id(buffer): buffer.clone() for buffer in model.buffers()}
        swapped = {place: chosen[id(old)] for place, old in owners.items() if id(old) in chosen}
        # Every place is swapped once and on its own: torch's own handling of tied weights leaves a
        # module that is registered twice with a plain tensor in place of its parameter.
        return functional_call(_Logits(model), swapped, (arguments,), tie_weights=False)

    recorder = _Recorder({id(value): name for name, value in parameters.items()})
    with differentiable(), preserved_random_state(), recorder:
        state = _random_state()
        logits = call(parameters, inputs)
        random = any(not torch.equal(a, b) for a, b in zip(state, _random_state(), strict=True))
    if random:
        _refuse_random_forward(model, lambda: call(parameters, inputs))
    uses = tuple(recorder.uses)
    users, accumulators = _users_of_nodes(logits)
    for name, value in trainable.items():
        if id(value) in accumulators:
            raise EvalkitError(
                f"expected parameter '{name}' to be used through its module alone, found a forward "
                "that uses a reference kept elsewhere; read it from the module inside forward"
            )
    reached = _linear_parameters(users, accumulators, parameters, uses)
    linear = frozenset(reached - recorder.other)
    return Recording(logits, parameters, uses, linear, call, inputs)


def _linear_parameters(
    users: dict[Any, list[Any]],
    accumulators: dict[int, Any],
    parameters: dict[str, Tensor],
    uses: tuple[LinearUse, ...],
) -> set[str]:
    """Return the parameters that the graph of the logits reaches through recorded calls alone.

    The graph is the witness: each use of a parameter, seen by the recorder or not (custom
    autograd functions, C++, gradients taken inside the forward), ends in the node that accumulates
    its gradient. A linear call reaches it through a transposition, whose users count.
    """
    calls = Counter[str]()
    for use in uses:
        if use.outputs.node in users and use.inputs._version == use.version:
            calls.update(name for name in (use.weight, use.bias) if name)

    def count(node: Any) -> int:
        total, pending = 0, [node]
        while pending:
            for user in users[pending.pop()]:
                if len(user.next_functions) == 1 and users[user]:
                    pending.append(user)
                else:
                    total += 1
        return total

    found = {name: accumulators.get(id(value)) for name, value in parameters.items()}
    return {name for name, node in found.items() if node is not None and count(node) == calls[name]}


def _users_of_nodes(logits: Tensor) -> tuple[dict[Any, list[Any]], dict[int, Any]]:
    """Return the users of every node in the graph of the logits, and the nodes of leaves by id."""
    users: dict[Any, list[Any]] = {logits.grad_fn: []}
    accumulators: dict[int, Any] = {}
    pending = [logits.grad_fn]
    while pending:
        node = pending.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            if following not in users:
                users[following] = []
                pending.append(following)
                if hasattr(following, "variable"):
                    accumulators[id(following.variable)] = following
            users[following].append(node)
    return users, accumulators


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


def _refuse_precision(parameters: dict[str, Tensor]) -> None:
    for name, value in parameters.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise EvalkitError(
                f"expected trainable parameters in float32 or float64, found "
                f"{str(value.dtype).removeprefix('torch.')} in '{name}'; call model.float() first"
            )


class _Recorder(TorchFunctionMode):
    """Sees every torch call of a forward and notes what is done with each trainable parameter.

    Looking at calls rather than at modules finds tied weights, modules used twice and bare
    parameters alike.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: list[LinearUse] = []
        self.other: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        used = [self.names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if self._known(leaf)]
        if used and any(
            isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output)
        ):
            if func is nn.functional.linear and self._record_linear(output, *args, **kwargs):
                return output
            self.other.update(used)
        return output

    def _known(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and id(leaf) in self.names

    def _record_linear(
        self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> bool:
        """Note an ``F.linear`` call (its argument names are torch's); False if it has no rule."""
        # Autocast multiplies copies of another precision, which the rule would not see.
        if input.dim() < 2 or self._known(input) or output.dtype != input.dtype:
            return False
        if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            return False
        # The edge, not the tensor: an in-place activation may overwrite the tensor later.
        edge = get_gradient_edge(output)
        weight_name = self.names.get(id(weight))
        bias_name = self.names.get(id(bias)) if bias is not None else None
        inputs = input.detach()
        self.uses.append(LinearUse(inputs, inputs._version, edge, weight_name, bias_name))
        return True


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise EvalkitError(
                "expected samples that do not influence each other, found batch statistics in "
                f"module '{name}' ({type(module).__name__}"
                f"{' in train mode' if module.training else ' without running statistics'}); "
                "call model.eval() first, or use GroupNorm"
            )


def _random_state() -> list[Tensor]:
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


def _refuse_random_forward(model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Run the forward again, watching the random state, and name the module that draws numbers."""
    states: dict[str, list[Tensor]] = {}
    random: list[tuple[str, nn.Module]] = []

    def watch(name: str, module: nn.Module) -> list[Any]:
        def before(*_: Any) -> None:
            states[name] = _random_state()

        def after(*_: Any) -> None:
            pairs = zip(states[name], _random_state(), strict=True)
            if any(not torch.equal(a, b) for a, b in pairs):
                random.append((name, module))

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    handles = [handle for name, module in model.named_modules() for handle in watch(name, module)]
    try:
        with torch.no_grad(), preserved_random_state():
            run()
    finally:
        for handle in handles:
            handle.remove()
    # Inner modules end first, so the first one seen is the smallest that draws.
    name, module = random[0] if random else ("", model)
    mode = "in train mode" if module.training else "in eval mode"
    raise EvalkitError(
        f"expected a deterministic forward, found random numbers drawn in module '{name}' "
        f"({type(module).__name__}, {mode}); call model.eval() first, or remove the noise"
    )

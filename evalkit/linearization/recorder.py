"""What a forward does with each trainable parameter, seen call by call.

Looking at torch calls rather than at modules finds tied weights, modules used twice and bare
parameters alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from evalkit.layers import LAYERS, Layer
from evalkit.linearization.broadcasts import Broadcast, broadcast_call


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One call of a layer with a rule.

    Attributes:
        layer: the call.
        version: the version of its inputs at the call; an in-place change later would raise it.
        outputs: the graph edge of its outputs.
        weight: name of the trainable parameter, None where the weight is not one.
        bias: name of the trainable parameter, None where the bias is not one.
        shape: the shape of its outputs.
    """

    layer: Layer
    version: int
    outputs: GradientEdge
    weight: str | None
    bias: str | None
    shape: torch.Size


class Recorder(TorchFunctionMode):
    """Sees every torch call of a forward and notes what is done with each trainable parameter.

    Attributes:
        uses: the calls of layers with a rule that a trainable parameter took part in.
        broadcasts: where values that every sample gets alike meet the batch.
        other: names of parameters that anything else was done with.
        hidden: names of parameters that something was done with while gradients were off.
        pass_work: multiplications of a pass through all layers with a rule, frozen ones too.
        recomputed: some of it is to be run again by the backward.
        roughest: the precision with the fewest digits that a result has, None before any.

    Args:
        names: the names of the parameters, by id.
        samples: N; None where it shows only after the forward.
    """

    def __init__(self, names: dict[int, str], samples: int | None) -> None:
        super().__init__()
        self.uses: list[LayerUse] = []
        self.broadcasts: list[Broadcast] = []
        self.other: set[str] = set()
        self.hidden: set[str] = set()
        self.pass_work = 0
        self.recomputed = False
        self.roughest: torch.dtype | None = None
        self._names = names
        self._samples = samples

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and note it."""
        kwargs = kwargs or {}
        layer = self._layer(func, args, kwargs) if func in LAYERS else None
        output = None
        # With a backward of the layer's own where there is one, otherwise as the model has it.
        if layer is not None and _replaceable(layer):
            output = layer.replaced(kwargs["input"] if "input" in kwargs else args[0])
        if output is None:
            output = self._run(func, args, kwargs)
        self._note_precision(output)
        used = [self._names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if self._known(leaf)]
        # The graph does not show such a use, but an autograd function of the model's may answer for
        # it in a backward of its own (``graph_ends``).
        if used and not torch.is_grad_enabled():
            self.hidden.update(used)
        if used and any(
            isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output)
        ):
            if layer is not None:
                # The edge, not the tensor: an in-place activation may overwrite the tensor later.
                edge = get_gradient_edge(output)
                weight, bias = (self._names.get(id(p)) for p in (layer.weight, layer.bias))
                version = layer.inputs._version
                self.uses.append(LayerUse(layer, version, edge, weight, bias, output.shape))
            else:
                self.other.update(used)
        return output

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a call, and note what it broadcasts over the samples."""
        found = None
        if _saved_elsewhere():
            self.recomputed = True
        elif not _transformed():
            found = broadcast_call(func, args, kwargs, self._samples)
        if found is None:
            return func(*args, **kwargs)
        self.broadcasts += found[1]
        return found[0]

    def _note_precision(self, output: Any) -> None:
        """Keep the precision with the fewest digits that a result has."""
        if isinstance(output, Tensor) and output.requires_grad and output.is_floating_point():
            before = self.roughest
            if before is None or torch.finfo(output.dtype).eps > torch.finfo(before).eps:
                self.roughest = output.dtype

    def _known(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and id(leaf) in self._names

    def _layer(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Layer | None:
        """Return the layer of a call that can be differentiated, None where no rule applies."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not torch.is_grad_enabled() or not any(leaf.requires_grad for leaf in leaves):
            return None
        if any(leaf.is_nested for leaf in leaves):  # samples of several lengths, on no common axis
            return None
        if not all(leaf.numel() for leaf in leaves):  # as of an expert that no token chose
            return None
        # Autocast multiplies copies of another precision, unseen by a rule.
        if _transformed() or torch.is_autocast_enabled(leaves[0].device.type):
            return None
        try:
            layer = LAYERS[func](*args, **kwargs)
        except TypeError:  # torch says better what is wrong with the call
            return None
        inputs = kwargs.get("input", args[0] if args else None)
        # A parameter in the place of the inputs is not what the layer is affine in.
        if layer is None or self._known(inputs):
            return None
        # One tensor in both roles has two rules at once.
        if layer.weight is not None and layer.weight is layer.bias:
            return None
        self.pass_work += layer.work.one_pass(len(layer.inputs))
        return layer


def _transformed() -> bool:
    """Whether a call is one of many, or a derivative, of what it seems."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _saved_elsewhere() -> bool:
    """Whether hooks on saved tensors are set, as recomputation has them.

    Under them the same call is made once more where nothing is recorded, and must save the same.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _replaceable(layer: Layer) -> bool:
    """Whether the backward of a call is free to be another than torch's.

    A weight that is computed has a graph of its own, through which derivatives in the inputs or in
    the bias may lead.
    """
    computed = any(p is not None and not p.is_leaf for p in (layer.weight, layer.bias))
    return not computed and not _saved_elsewhere()


@dataclass(frozen=True, eq=False)
class Graph:
    """The graph of the logits, walked once.

    Attributes:
        users: the users of every node.
        accumulators: the nodes that accumulate the gradients of leaves, by the leaf's id.
    """

    users: dict[Any, list[Any]]
    accumulators: dict[int, Any]

    def accumulators_of(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the nodes of the parameters that the logits depend on, by name."""
        nodes = {name: self.accumulators.get(id(value)) for name, value in parameters.items()}
        return {name: node for name, node in nodes.items() if node is not None}


def graph_of(logits: Tensor) -> Graph:
    """Return the graph of the logits."""
    # Torch keeps edges from users to what they use; here they are turned around.
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
    return Graph(users, accumulators)


def ruled_parameters(
    graph: Graph, parameters: dict[str, Tensor], recorder: Recorder
) -> frozenset[str]:
    """Return the parameters that the graph of the logits reaches through recorded calls alone.

    The graph is the witness: each use of a parameter, seen by the recorder or not (custom
    autograd functions, C++, gradients taken inside the forward), ends in the node that accumulates
    its gradient. A recorded call may reach it through other nodes, such as a transposition. What is
    a weight here and a bias there has no one rule.
    """
    users = graph.users
    recorded = {use.outputs.node for use in recorder.uses}
    calls = Counter[str]()
    for use in recorder.uses:
        # Inputs that were overwritten after the call are no longer what the rule needs.
        if use.outputs.node in users and use.layer.inputs._version == use.version:
            calls.update(name for name in (use.weight, use.bias) if name)

    def count(node: Any) -> int:
        # What only passes a parameter on (a view, a transposition) is no use: those behind it are.
        total, pending = 0, [node]
        while pending:
            for user in users[pending.pop()]:
                if len(user.next_functions) == 1 and users[user] and user not in recorded:
                    pending.append(user)
                else:
                    total += 1
        return total

    # As many uses in the graph as recorded calls: none was missed.
    found = graph.accumulators_of(parameters)
    reached = {name for name, node in found.items() if count(node) == calls[name]}
    weights, biases = ({getattr(u, role) for u in recorder.uses} for role in ("weight", "bias"))
    return frozenset(reached - recorder.other - (weights & biases))

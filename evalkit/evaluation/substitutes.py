"""Operators that are run by others of the same value, which can be differentiated again and again.

J v is a derivative of a derivative. Some operators have a backward of one kernel that torch cannot
differentiate, or that knows neither float64 nor the CPU: within an evaluation, plain operators take
their place, the module that calls them stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from evalkit.evaluation.bags import bags_of, reduced


@contextmanager
def substituted(recomputing: bool = True) -> Iterator[None]:
    """Run a forward with every operator that has a substitute replaced by it.

    Scripted code is run as it is written: what its executor makes of it after a few calls depends
    on what those calls were.

    Args:
        recomputing: activation checkpointing may run a part again in the backward, by when the
            model holds its own values; False keeps the activations.
    """
    checkpointing = nullcontext() if recomputing else _kept_activations()
    scripted = torch.jit.optimized_execution(False)
    with _Substitutes(), _plain_flex_attention(), checkpointing, scripted:
        yield


class _Substitutes(TorchFunctionMode):
    """Sees every torch call of a forward, and replaces some."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, or its substitute."""
        substitute = _SUBSTITUTES.get(func)
        if substitute is not None:
            try:
                output = substitute(*args, **(kwargs or {}))
            except TypeError:  # torch says better what is wrong with the call
                output = None
            if output is not None:
                return output
        return func(*args, **(kwargs or {}))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """Return what ``F.embedding`` does, with a gradient that is not sparse; its arguments."""
    if not sparse:
        return None
    return functional.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:
    """Return what ``F.embedding_bag`` does, by an embedding and a sum; its arguments."""
    bags = bags_of(input, offsets, include_last_offset, per_sample_weights)
    plain = weight.dim() == 2 and weight.is_floating_point() and not (sparse and mode == "max")
    if bags is None or not plain or (per_sample_weights is not None and mode != "sum"):
        return None
    looked = functional.embedding(
        bags.indices, weight, None, max_norm, norm_type, scale_grad_by_freq
    )
    return reduced(bags.without(padding_idx, len(weight)), looked, mode)


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Return what ``F.scaled_dot_product_attention`` does, whichever kernel the model chose."""
    with sdpa_kernel(SDPBackend.MATH):
        output: Tensor = functional.scaled_dot_product_attention(*args, **kwargs)
        return output


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return what ``F.hardsigmoid`` does; its arguments."""
    output = functional.hardtanh(input + 3, 0.0, 6.0) / 6
    return input.copy_(output) if inplace else output


def _distances(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor | None:
    """Return what ``torch.cdist`` does, by the differences of all pairs; its arguments."""
    if min(x1.dim(), x2.dim()) < 2 or x1.shape[-1] != x2.shape[-1]:
        return None
    many = max(x1.shape[-2], x2.shape[-2]) > 25  # then by a matrix product, as plain as any
    if p == 2 and (many or not compute_mode.endswith("necessary")) and compute_mode[:3] == "use":
        return None
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return what weight normalisation does; the fused kernel of a GPU has float32's digits."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _recurrence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a recurrent layer of torch without cuDNN, whose backward has no derivative."""

    def run(*args: Any) -> Any:
        # Not by ``flags``, which reads and sets every other switch of cuDNN as well.
        enabled = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return function(*args)
        finally:
            torch.backends.cudnn.enabled = enabled

    return run


def _grouped_product(
    a: Tensor,
    b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return what ``F.grouped_mm`` does for rows in groups, which mixtures of experts have.

    Args:
        a: (rows, in), sorted by group.
        b: (groups, in, out).
        offs: where each group ends, (groups,).
        bias: none, as torch has none yet.
        out_dtype: the dtype of the result.
    """
    if a.dim() != 2 or b.dim() != 3 or offs is None or bias is not None:
        return None
    ends = [0, *offs.tolist()]
    parts = [a[i:j] @ b[g] for g, (i, j) in enumerate(pairwise(ends)) if j > i]
    parts.append(a.new_zeros(len(a) - ends[-1], b.shape[-1]))
    return torch.cat(parts).to(out_dtype or a.dtype)


def _grouped(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Return the same for the older name, whose arguments may come by position."""
    names = ("offs", "bias", "out_dtype")
    return _grouped_product(a, b, **dict(zip(names, args, strict=False)), **kwargs)


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
    functional.hardsigmoid: _hardsigmoid,
    functional.scaled_dot_product_attention: _attention,
    torch.cdist: _distances,
    torch._weight_norm: _weight_norm,
    **{one: _recurrence(one) for one in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
}
for _space in (functional, torch):
    for _name in ("grouped_mm", "_grouped_mm"):
        if (_function := getattr(_space, _name, None)) is not None:
            _SUBSTITUTES[_function] = _grouped
"""What takes the place of each torch function; it returns None where torch's own is to run."""


def _plain_flex_attention() -> AbstractContextManager[None]:
    """Let ``flex_attention`` run by torch's own definition of it, in place of a fused kernel.

    A model calls the function by a name of its own, so what that function calls is replaced.
    """
    operators: Any = sys.modules.get("torch._higher_order_ops.flex_attention")
    plain = getattr(operators, "math_attention", None)
    places = {
        "flex_attention_hop": plain,
        "_validate_device": lambda *_: None,  # refuses gradients on a CPU, which has no kernel
        "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True,
    }
    return _replaced("torch.nn.attention.flex_attention", {} if plain is None else places)


def _kept_activations() -> AbstractContextManager[None]:
    """Let ``torch.utils.checkpoint`` keep what it would compute again, unless it is reentrant."""
    replacement = {"_checkpoint_without_reentrant_generator": _around_the_call}
    return _replaced("torch.utils.checkpoint", replacement)


def _around_the_call(*_: Any, **__: Any) -> Iterator[None]:
    """Do nothing before the call that is checkpointed, and nothing after it."""
    yield


@contextmanager
def _replaced(name: str, places: dict[str, Any]) -> Iterator[None]:
    """Replace what a module of torch calls; one that nobody has imported is not used.

    Args:
        name: the name of the module.
        places: what to put in its attributes; those that this version of torch lacks are left out.
    """
    module = sys.modules.get(name)
    found = {place: getattr(module, place) for place in places if hasattr(module, place)}
    for place in found:
        setattr(module, place, places[place])
    try:
        yield
    finally:
        for place, value in found.items():
            setattr(module, place, value)

"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from evalkit.errors import EvalkitError


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on some parameters and AdamW on others, with one learning rate and weight decay.

    The step of Muon is scaled by 0.2 sqrt(max(rows, columns)), to which an entry of a step of
    AdamW is alike (Liu et al., arXiv 2502.16982), so that both take the same learning rate.

    Args:
        matrices: parameters with two axes, at least one, for Muon.
        others: parameters for AdamW.
        lr: the learning rate of both.
        weight_decay: of both, decoupled.
        momentum: of Muon.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        muon = torch.optim.Muon(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = list(others)
        adamw = [torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay)] if rest else []
        self.parts: list[torch.optim.Optimizer] = [muon, *adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles hold the parts too, which torch does not know of.
        return {**super().__getstate__(), "parts": self.parts}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both; see :meth:`torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            # Groups and state are this optimizer's, which a scheduler or a saved state changes.
            part.param_groups = [group]
            part.state = self.state
            part.step()
        return loss


def hidden_matrices(
    parameters: Iterable[nn.Parameter], model: nn.Module
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that Muon is for, and the others.

    They have two axes and belong neither to an embedding nor to the output layer, for which the
    last matrix in the order of the model is taken.

    Args:
        parameters: those that are trained.
        model: whose they are.

    Raises:
        EvalkitError: there is none.
    """
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    apart = {
        id(value)
        for module in model.modules()
        if isinstance(module, embeddings)
        for value in module.parameters(recurse=False)
    }
    apart |= {id(value) for value in [p for p in model.parameters() if p.dim() == 2][-1:]}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        hidden = parameter.dim() == 2 and id(parameter) not in apart
        (matrices if hidden else others).append(parameter)
    if not matrices:
        raise EvalkitError(
            f"expected trainable matrices of hidden layers in {type(model).__name__} for the "
            "optimizer 'muon', found none; choose another `optimizer`, such as adamw"
        )
    return matrices, others

"""The same work by other means: curvlinops, and per-sample gradients formed by ``vmap(grad)``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, one_hot

import evalkit


class Curvlinops:
    """Fisher-vector products and CG of curvlinops, without its check for determinism.

    Args:
        model: the model.
        inputs: of one batch.
        targets: of the same batch.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        # Here, so that this module can be imported, and checked, where curvlinops is not installed.
        from curvlinops import GGNLinearOperator

        self._batch = (model, inputs, targets)
        self._parameters = [value for value in model.parameters() if value.requires_grad]
        self._fisher = GGNLinearOperator(
            model,
            nn.CrossEntropyLoss(reduction="sum"),
            self._parameters,
            [(inputs, targets)],
            check_deterministic=False,
        )

    def fvp(self, vector: Tensor) -> Tensor:
        """Return F v."""
        return self._fisher @ vector

    def natural_gradient(self, iterations: int) -> Tensor:
        """Return the iterate of CG after some iterations, the gradient's computation included."""
        from curvlinops import CGInverseLinearOperator

        model, inputs, targets = self._batch
        loss = cross_entropy(model(inputs), targets, reduction="sum")
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self._parameters)])
        inverse = CGInverseLinearOperator(
            self._fisher,
            eps=0.0,
            tolerance=0.0,
            max_iter=iterations,
            max_tridiag_iter=0,
            stop_updating_after=0.0,
        )
        return inverse @ gradient


def formed_gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the per-sample gradients by ``vmap(grad)``: (N, P)."""
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, values, (sample.unsqueeze(0),))
        return cross_entropy(logits, target.unsqueeze(0))

    formed = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, labels)
    return torch.cat([formed.pop(name).flatten(1) for name in parameters], 1)


class StepWithGradientsFormed:
    """A step of iEF with every per-sample gradient formed by ``vmap(grad)``.

    Args:
        model: whose trainable parameters it changes.
        inputs: of one batch.
        targets: of the same batch.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self._batch = (model, inputs, targets)

    @torch.no_grad()
    def __call__(self, learning_rate: float = 1e-2, damping: float = 1e-12) -> None:
        """Solve for the weights and change the parameters."""
        model, inputs, targets = self._batch
        residual = model(inputs).softmax(-1) - one_hot(targets, 10)
        rows = formed_gradients(model, inputs, targets)
        gram = (rows @ rows.T).double()
        gram.diagonal().add_(len(rows) ** 2 * damping)
        right = residual.square().sum(1, dtype=torch.float64)
        weights = torch.linalg.solve(gram, right).to(rows) / len(rows)
        direction, used = rows.T @ weights, 0
        for value in model.parameters():
            if value.requires_grad:
                part = direction[used : used + value.numel()]
                value.add_(part.view_as(value), alpha=-learning_rate)
                used += value.numel()


def gram_with_gradients_formed(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the Gram matrix, its products in float64 as ours are, in parts that fit a cache."""
    rows = formed_gradients(model, inputs, targets)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(1 << 14, 1):
        doubled = part.double()
        gram.addmm_(doubled, doubled.T)
    return gram


def scores_with_gradients_formed(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[float]:
    """Return gamma of sgd, ef, ief and sf with every per-sample gradient formed."""

    def solve(rows: Tensor, right: Tensor) -> Tensor:
        gram = (rows @ rows.T).double()
        damped = gram + 1e-12 * torch.eye(len(gram)).to(gram)
        return torch.linalg.lstsq(damped, right.double()[:, None]).solution[:, 0].to(rows)

    with torch.no_grad():
        logits = model(inputs)
    residual = logits.softmax(-1) - one_hot(targets, logits.shape[-1])
    rows = formed_gradients(model, inputs, targets)
    g = rows.sum(0)
    directions = [g]
    for right in (torch.ones_like(residual[:, 0]), residual.square().sum(1)):
        directions.append(rows.T @ solve(rows, right))
    del rows
    sampled = formed_gradients(model, inputs, torch.multinomial(logits.softmax(-1), 1).squeeze(1))
    directions.append(g - sampled.T @ solve(sampled, sampled @ g))
    del sampled
    lin = evalkit.linearize(model, inputs, targets)
    return [evalkit.gamma(lin, direction) for direction in directions]


def factored_direction(
    kind: str, damping: float, model: nn.Module, inputs: Tensor, targets: Tensor
) -> Tensor:
    """Return (F + lambda I)^-1 g for curvlinops' F of Kronecker factors, made from nothing.

    Args:
        kind: the name of the operator.
        damping: lambda.
        model: the model.
        inputs: of one batch.
        targets: of the same batch.
    """
    import curvlinops

    parameters = [value for value in model.parameters() if value.requires_grad]
    operator = getattr(curvlinops, kind)(
        model,
        nn.CrossEntropyLoss(reduction="sum"),
        parameters,
        [(inputs, targets)],
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    inverse = curvlinops.KFACInverseLinearOperator(
        operator, damping=damping, use_exact_damping=True
    )
    loss = cross_entropy(model(inputs), targets, reduction="sum")
    return inverse @ torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

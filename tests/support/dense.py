"""The slow dense float64 reference: every Jacobian and the Fisher matrix are formed.

Nothing here is clever. The Jacobian comes from plain reverse-mode autograd with a unit vector for
each output entry, the output Fisher is written out as a matrix per sample, and every direction is a
textbook linear solve. N samples, E output entries per sample (all positions and classes flattened),
P trainable parameters. All sums are sums over the batch.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


@dataclass(frozen=True)
class Dense:
    """One batch at one checkpoint, with everything formed."""

    logits: Tensor  # (N, ..., C)
    losses: Tensor  # (N,)
    jacobian: Tensor  # (N, E, P), J_n = d z_n / d theta
    residual: Tensor  # (N, E), r_n = d l_n / d z_n
    curvature: Tensor  # (N, E, E), S_n = d2 l_n / d z_n2
    floor_terms: Tensor  # (N,), f_n = r_n^T S_n^+ r_n

    @property
    def num_samples(self) -> int:
        return self.jacobian.shape[0]

    @property
    def num_params(self) -> int:
        return self.jacobian.shape[2]

    @cached_property
    def sample_gradients(self) -> Tensor:
        """G, (N, P): rows G_n = J_n^T r_n."""
        return torch.einsum("nep,ne->np", self.jacobian, self.residual)

    @cached_property
    def gradient(self) -> Tensor:
        """g = G^T 1, (P,)."""
        return self.sample_gradients.sum(0)

    @cached_property
    def fisher(self) -> Tensor:
        """F = sum_n J_n^T S_n J_n, (P, P)."""
        curved = self.curvature @ self.jacobian
        return self.jacobian.flatten(0, 1).T @ curved.flatten(0, 1)

    @cached_property
    def gram(self) -> Tensor:
        """G G^T, (N, N)."""
        return self.sample_gradients @ self.sample_gradients.T

    @property
    def gradient_norms(self) -> Tensor:
        return self.sample_gradients.norm(dim=1)

    @property
    def logit_gradient_norms(self) -> Tensor:
        return self.residual.norm(dim=1)

    @property
    def gamma_floor(self) -> float:
        """(sum_n r_n^T S_n^+ r_n)^(-1/2)."""
        return float(self.floor_terms.sum() ** -0.5)

    def jvp(self, v: Tensor) -> Tensor:
        return (self.jacobian @ v).reshape(self.logits.shape)

    def vjp(self, c: Tensor) -> Tensor:
        return torch.einsum("nep,ne->p", self.jacobian, c.reshape(self.residual.shape))

    def gamma(self, d: Tensor) -> float:
        """sqrt(d^T F d) / |d^T g|."""
        return float((d @ self.fisher @ d).sqrt() / (d @ self.gradient).abs())


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The logits: tuples are positional, dicts are keywords, the output may hold ``.logits``."""
    if isinstance(inputs, dict):
        output = model(**inputs)
    elif isinstance(inputs, tuple):
        output = model(*inputs)
    else:
        output = model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def to_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    """``inputs`` with every floating-point tensor in ``dtype``."""
    if isinstance(inputs, dict):
        return {name: to_dtype(value, dtype) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(to_dtype(value, dtype) for value in inputs)
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def dense(model: nn.Module, inputs: Any, targets: Tensor, likelihood: str) -> Dense:
    """Form everything for one batch, on a float64 copy of ``model``."""
    model = copy.deepcopy(model).double()
    logits = call(model, to_dtype(inputs, torch.float64))
    parameters = [p for _, p in model.named_parameters() if p.requires_grad]
    rows = jacobian_rows(logits.flatten(), parameters)
    logits = logits.detach()
    samples = logits.shape[0]
    output = [LIKELIHOODS[likelihood](z, y) for z, y in zip(logits, targets, strict=True)]
    return Dense(
        logits=logits,
        losses=torch.stack([one[0] for one in output]),
        jacobian=rows.reshape(samples, logits[0].numel(), -1),
        residual=torch.stack([one[1] for one in output]),
        curvature=torch.stack([one[2] for one in output]),
        floor_terms=torch.stack([one[3] for one in output]),
    )


def jacobian_rows(entries: Tensor, parameters: list[Tensor]) -> Tensor:
    """d entries / d theta, (entries, P), parameters in order and flattened row-major.

    All rows at once; one by one where torch has no batched rule for a backward.
    """
    units = torch.eye(len(entries), dtype=entries.dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return gradient_rows(entries, parameters, units, is_grads_batched=True)
    except RuntimeError:
        rows = [gradient_rows(entries, parameters, unit).unsqueeze(0) for unit in units]
        return torch.cat(rows)


def gradient_rows(
    entries: Tensor, parameters: list[Tensor], cotangents: Tensor, is_grads_batched: bool = False
) -> Tensor:
    """cotangents^T d entries / d theta, (..., P), for cotangents (..., entries)."""
    grads = torch.autograd.grad(
        entries,
        parameters,
        cotangents,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=is_grads_batched,
    )
    axes = cotangents.shape[:-1]
    parts = [
        p.new_zeros(*axes, p.numel()) if g is None else g.reshape(*axes, p.numel())
        for g, p in zip(grads, parameters, strict=True)
    ]
    return torch.cat(parts, -1)


Output = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, r (E,), S (E, E) and f = r^T S^+ r of one sample."""


def categorical(z: Tensor, y: Tensor) -> Output:
    """Softmax of logits (..., C) for labels (...): S x = r has the solution -e_y / p_y."""
    positions = zip(z.reshape(-1, z.shape[-1]), y.reshape(-1).tolist(), strict=True)
    loss, term = torch.zeros(2, dtype=z.dtype)
    residuals, blocks = [], []
    for logits, label in positions:
        p, unit = torch.softmax(logits, 0), identity(len(logits))
        others = (1 - unit) @ p  # 1 - p, which loses the digits of p near one
        labelled = float(label != IGNORED)
        r = p
        if labelled:
            odds = others[label] / p[label]
            loss, term = loss + odds.log1p(), term + odds
            r = torch.where(unit[label] > 0, -others, p)
        residuals.append(labelled * r)
        blocks.append(labelled * torch.where(unit > 0, p * others, -torch.outer(p, p)))
    return loss, torch.cat(residuals), torch.block_diag(*blocks), term


def bernoulli(z: Tensor, y: Tensor) -> Output:
    """Independent yes or no per entry, or a probability of yes."""
    z, y = z.flatten(), y.flatten().to(z.dtype)
    labelled = (y != IGNORED).to(z.dtype)
    p, q = torch.sigmoid(z), torch.sigmoid(-z)  # 1 - p loses the digits of p near one
    log = nn.functional.logsigmoid
    loss = -(labelled * (y * log(z) + (1 - y) * log(-z))).sum()
    r, s = labelled * ((1 - y) * p - y * q), p * q
    return loss, r, torch.diag(labelled * s), (r.square() / s).sum()


def gaussian(z: Tensor, y: Tensor) -> Output:
    """Loss 1/2 |z - y|^2, r = z - y, S = I and f = |r|^2."""
    r = (z - y.to(z.dtype)).flatten()
    return 0.5 * r @ r, r, torch.eye(r.numel(), dtype=z.dtype), r @ r


LIKELIHOODS = {"categorical": categorical, "bernoulli": bernoulli, "gaussian": gaussian}


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def sgd(reference: Dense) -> Tensor:
    return reference.gradient


def ef(reference: Dense, damping: float) -> Tensor:
    """G^T (G G^T + lambda I)^-1 1."""
    damped = reference.gram + damping * identity(reference.num_samples)
    ones = torch.ones(reference.num_samples, dtype=torch.float64)
    return reference.sample_gradients.T @ torch.linalg.solve(damped, ones)


def ief(reference: Dense, damping: float) -> Tensor:
    """G^T (G G^T + lambda I)^-1 s with s_n = |r_n|^2."""
    damped = reference.gram + damping * identity(reference.num_samples)
    s = reference.residual.square().sum(1)
    return reference.sample_gradients.T @ torch.linalg.solve(damped, s)


def ief_tikhonov(reference: Dense, damping: float) -> Tensor:
    """(F* + lambda I)^-1 g with F* = G^T diag(s)^-1 G."""
    s = reference.residual.square().sum(1)
    matrix = reference.sample_gradients.T @ torch.diag(1 / s) @ reference.sample_gradients
    return torch.linalg.solve(matrix + damping * identity(len(matrix)), reference.gradient)


def fgn(reference: Dense, damping: float) -> Tensor:
    """G^T (G G^T + lambda I)^-1 f."""
    damped = reference.gram + damping * identity(reference.num_samples)
    return reference.sample_gradients.T @ torch.linalg.solve(damped, reference.floor_terms)


def fgn_tikhonov(reference: Dense, damping: float) -> Tensor:
    """(G^T diag(f)^-1 G + lambda I)^-1 g."""
    f = reference.floor_terms
    matrix = reference.sample_gradients.T @ torch.diag(1 / f) @ reference.sample_gradients
    return torch.linalg.solve(matrix + damping * identity(len(matrix)), reference.gradient)


def polyak(reference: Dense, damping: float) -> Tensor:
    """G^T (G G^T + lambda I)^-1 l."""
    damped = reference.gram + damping * identity(reference.num_samples)
    return reference.sample_gradients.T @ torch.linalg.solve(damped, reference.losses)


def best_weights(reference: Dense) -> Tensor:
    """G^T alpha with G F G^T alpha = G g, the pseudo-inverse taken."""
    rows = reference.sample_gradients
    inverse = torch.linalg.pinv(rows @ reference.fisher @ rows.T, rtol=1e-12, hermitian=True)
    return rows.T @ (inverse @ (rows @ reference.gradient))


def sampled_fisher(reference: Dense, sampled: Tensor) -> Tensor:
    """Gs^T Gs / K, (P, P), from sampled logit gradients (K, N, ..., C)."""
    labels = sampled.reshape(len(sampled), *reference.residual.shape)
    rows = torch.einsum("nep,kne->knp", reference.jacobian, labels).flatten(0, 1)
    return rows.T @ rows / len(sampled)


def sf(reference: Dense, sampled: Tensor, damping: float) -> Tensor:
    """lambda (Gs^T Gs / K + lambda I)^-1 g."""
    matrix = sampled_fisher(reference, sampled) + damping * identity(reference.num_params)
    return damping * torch.linalg.solve(matrix, reference.gradient)


def ngd(reference: Dense, damping: float) -> Tensor:
    """(F + lambda I)^-1 g; F^+ g without damping."""
    if damping == 0:
        return torch.linalg.pinv(reference.fisher, rtol=1e-10, hermitian=True) @ reference.gradient
    damped = reference.fisher + damping * identity(reference.num_params)
    return torch.linalg.solve(damped, reference.gradient)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Every entry within the tolerance, relative to itself and to the largest; any device."""
    found = found.to(expected.device)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)

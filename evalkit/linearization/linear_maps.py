"""The linear maps of one batch: J, its transpose and the exact Fisher matrix between them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evalkit.errors import EvalkitError
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import describe
from evalkit.factor import SMALLEST
from evalkit.likelihoods import Likelihood
from evalkit.linearization.by_parameter import ByParameter
from evalkit.linearization.micro_batches import Made, MicroBatches
from evalkit.reductions import power_of_two


class LinearMaps:
    """J v, J^T c and F v at one model and batch.

    With z_n the logits, J_n = d z_n / d theta and S_n = d2 l_n / d z_n2:

    - ``jvp``: v -> J v and ``vjp``: c -> sum_n J_n^T c_n, each one backward through a kept graph;
    - ``fvp``: v -> F v with F = sum_n J_n^T S_n J_n, the exact Fisher matrix (= GGN) of the
      *summed* loss;
    - ``kernel_product``: c -> J J^T c.

    Args:
        batches: the forward passes.
        likelihood: what the logits mean.
        targets: as given by the caller.

    Attributes:
        likelihood: what the logits mean.
        logits: (N, ..., C), detached.
        targets: in the form the likelihood takes.
    """

    def __init__(self, batches: MicroBatches, likelihood: Likelihood, targets: Tensor) -> None:
        self._batches = batches
        self.likelihood = likelihood
        self.logits = batches.logits
        self.targets = likelihood.check(self.logits, targets)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.logits)

    @property
    def num_params(self) -> int:
        """P, the number of trainable parameters."""
        return sum(value.numel() for value in self.parameters.values())

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters by name, in the order of ``model.named_parameters()``."""
        return self._batches.parameters

    @full_precision()
    def jvp(self, vector: Tensor | ByParameter) -> Tensor:
        """Return J v: (P,) -> like logits. About one backward.

        Raises:
            EvalkitError: v is not a vector of length P.
        """
        if isinstance(vector, ByParameter):
            parts = vector.to(self.logits.dtype).parts
            return self._batches.jvp([parts[name] for name in self.parameters])
        return self._batches.jvp(self.split(vector))

    @full_precision()
    def jvp_of(self, made: Made) -> Tensor:
        """Return J v for v that is made of the parameters: like logits.

        Of a batch that is split over processes, each makes v by itself, and nothing of it is sent.

        Args:
            made: makes it; importable by its name where the batch is split.
        """
        return self._batches.jvp_of(made)

    @full_precision()
    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return sum_n J_n^T c_n: like logits -> (P,). One backward.

        Raises:
            EvalkitError: c does not have the shape of the logits.
        """
        scaled, scale = self._scaled(self._checked(cotangents))
        return self._batches.vjp(scaled, scale)

    @full_precision()
    def kernel_product(self, cotangents: Tensor) -> Tensor:
        """Return J J^T c, the tangent kernel applied to c: like logits -> like logits, float64.

        This is J d for the direction d = sum_n J_n^T c_n, and takes less than the VJP and the JVP
        one after the other: d itself is not formed for layers that have a rule.
        """
        scaled, scale = self._scaled(self._checked(cotangents))
        return self._batches.kernel_product(scaled).double() * scale

    @full_precision()
    def fvp(self, vector: Tensor) -> Tensor:
        """Return F v = sum_n J_n^T S_n J_n v, the exact Fisher-vector product: (P,) -> (P,)."""
        values = self.split(vector)
        total: Tensor | None = None
        # S_n acts on the logits of one sample: push and pull go together, a forward serves both.
        for batch, part in zip(self._batches, self._batches.slices, strict=True):
            moved = batch.tangents.push(values)
            weighted = self.likelihood.fisher_product(self.logits[part], self.targets[part], moved)
            product = batch.tangents.pull(*self._scaled(weighted))
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    def output_fisher(self, vectors: Tensor) -> Tensor:
        """Return S_n u_n for every sample: like logits -> like logits, float64."""
        return self.likelihood.fisher_product(self.logits, self.targets, vectors)

    @full_precision()
    def vjp_norm(self, cotangents: Tensor) -> float:
        """Return the norm of sum_n J_n^T c_n, which is formed.

        Args:
            cotangents: c, like logits.
        """
        scaled, scale = self._scaled(self._checked(cotangents))
        return self._batches.vjp_norm(scaled) * float(scale)

    def pulled_norm(self, cotangents: Tensor, product: Tensor) -> float:
        """Return the norm of d = sum_n J_n^T c_n.

        |d|^2 = c . (J J^T c), a sum of signed terms; where it nearly cancels, d is formed.

        Args:
            cotangents: c, like logits.
            product: J J^T c, like logits.
        """
        terms = self.sample_dots(cotangents, product)
        total, magnitude = torch.stack([terms.sum(), terms.abs().sum()]).tolist()
        # Rounding is relative to the terms: a sum of a hundredth of them has lost two digits, and
        # so have products that underflow.
        if total > max(0.01 * magnitude, SMALLEST):
            return float(total**0.5)
        return self.vjp_norm(cotangents)

    def sample_dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner product of two logit-shaped values for each sample: (N,) float64."""
        return (left.double() * right.double()).flatten(1).sum(1)

    def _checked(self, cotangents: Tensor) -> Tensor:
        """Return cotangents of the shape of the logits.

        Raises:
            EvalkitError: they have another shape.
        """
        if cotangents.shape != self.logits.shape:
            raise EvalkitError(
                f"expected cotangents of the shape of the logits, {tuple(self.logits.shape)}, "
                f"found {tuple(cotangents.shape)}; pass one value per logit"
            )
        return cotangents

    def _scaled(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return cotangents of order one in the dtype of the logits, and the scale taken out."""
        # EF's reach 1e12, and samples that are fitted have gradients that underflow in float32. A
        # power of two rounds nothing.
        cotangents = cotangents.detach().double()
        scale = power_of_two(cotangents)
        return (cotangents / scale).to(self.logits.dtype), scale

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of a vector, (P,), in the shapes of the parameters.

        Raises:
            EvalkitError: it is not a vector of length P.
        """
        if not isinstance(vector, Tensor) or vector.shape != (self.num_params,):
            raise EvalkitError(
                f"expected a vector of length {self.num_params}, the number of trainable "
                f"parameters, found {describe(vector)}; flatten the parameters in the "
                "order of named_parameters()"
            )
        return self._batches.split(vector.detach().to(self.logits))

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector, (P,), in the shapes of the parameters, by their names."""
        return dict(zip(self.parameters, self.split(vector), strict=True))

    def flattened(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return values by parameter's name as a vector, (P,): the inverse of :meth:`by_name`."""
        return torch.cat([values[name].flatten() for name in self.parameters])

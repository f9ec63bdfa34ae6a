"""Numerical accuracy where it is hard to have, and the reference checked by other means."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evalkit
import evalkit.linearization
import evalkit.linearization.gram
from tests.support import dense
from tests.support.blocks import at_most
from tests.support.cases import CASES, Batch, Draw, Net
from tests.support.chosen_cases import SOME, reference
from tests.support.table import initialise
from tests.support.vectors import cosine, random_vectors

# --- the reference itself --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_categorical", "attention_module", "forces_of_an_energy"])
def test_reference_jacobian_agrees_with_finite_differences(name: str) -> None:
    batch = CASES[name].make()
    expected = dense.dense(*batch)
    parameters = [p for p in batch.model.parameters() if p.requires_grad]
    start = nn.utils.parameters_to_vector(parameters).detach()
    v = random_vectors(1, len(start))[0]

    def logits(step: float) -> Tensor:
        nn.utils.vector_to_parameters(start + step * v, parameters)
        return dense.call(batch.model, batch.inputs).detach()

    difference = (logits(1e-5) - logits(-1e-5)) / 2e-5
    torch.testing.assert_close(expected.jvp(v), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["token_labels", "missing_labels_bernoulli", "mlp_gaussian"])
def test_reference_derivatives_agree_with_autograd(name: str) -> None:
    batch = CASES[name].make()
    expected = dense.dense(*batch)

    def loss(z: Tensor) -> Tensor:
        if batch.likelihood == "categorical":
            return F.cross_entropy(z.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        if batch.likelihood == "bernoulli":
            known = batch.targets != -100
            entries = F.binary_cross_entropy_with_logits(z, batch.targets, reduction="none")
            return entries[known].sum()
        return 0.5 * (z - batch.targets).square().sum()

    assert float(expected.losses.sum()) == pytest.approx(float(loss(expected.logits)), rel=1e-12)
    residual, hessian = (
        torch.autograd.functional.jacobian(loss, expected.logits),
        torch.autograd.functional.hessian(loss, expected.logits),
    )
    torch.testing.assert_close(expected.residual, residual.reshape(expected.residual.shape))
    size = expected.residual.numel()
    curvature = torch.block_diag(*expected.curvature)
    torch.testing.assert_close(curvature, hessian.reshape(size, size))


# --- accuracy --------------------------------------------------------------------------------


class Table(nn.Module):
    """Logits are the parameters, so J is the identity and everything is known exactly."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows]


def saturated(margin: float, dtype: torch.dtype) -> tuple[Table, Tensor, Tensor]:
    """Five samples with label 2; the label's logit leads by ``margin``, in the last it trails."""
    logits = Draw(5).normal(5, 4)
    logits[:, 2] = logits[:, 2] + margin
    logits[-1, 2] -= 2 * margin
    logits = logits.to(dtype)
    return Table(logits), torch.arange(5), torch.full((5,), 2)


def exact_categorical(z: Tensor, label: int) -> tuple[float, list[float]]:
    """Loss and logit gradient of one row, without the cancellation in 1 - p and log p."""
    z = z.double()
    odds = [math.exp(float(z[c] - z[label])) for c in range(len(z)) if c != label]
    total = sum(odds)
    gradient = [value / (1 + total) for value in odds]
    gradient.insert(label, -total / (1 + total))
    return math.log1p(total), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [12.0, 40.0, 60.0])
def test_saturated_categorical_samples(margin: float, dtype: torch.dtype) -> None:
    model, rows, labels = saturated(margin, dtype)
    lin = evalkit.linearize(model, rows, labels)
    exact = [exact_categorical(z, 2) for z in model.logits.detach()]
    rel = 1e-5 if dtype == torch.float32 else 1e-10
    assert lin.losses.tolist() == pytest.approx([loss for loss, _ in exact], rel=rel, abs=0)
    norms = [math.hypot(*gradient) for _, gradient in exact]
    assert lin.logit_gradient_norms.tolist() == pytest.approx(norms, rel=rel, abs=0)
    assert lin.gradient_norms.tolist() == pytest.approx(norms, rel=rel, abs=0)
    gradients = torch.tensor([gradient for _, gradient in exact], dtype=torch.float64)
    torch.testing.assert_close(lin.gradient.double().reshape(5, 4), gradients, rtol=rel, atol=0)
    floor = sum(math.expm1(loss) for loss, _ in exact) ** -0.5
    assert lin.gamma_floor == pytest.approx(floor, rel=rel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_where_every_sample_is_saturated(dtype: torch.dtype) -> None:
    """d^T F d by pairs, sum_n sum_{i<j} p_i p_j (u_i - u_j)^2, which never cancels."""
    model, rows, labels = saturated(40.0, dtype)
    lin = evalkit.linearize(model, rows[:-1], labels[:-1])
    d = random_vectors(1, 20)[0].to(dtype)
    u = d.double().reshape(5, 4)[:-1]
    z = model.logits.detach().double()[:-1]
    p = torch.softmax(z, 1)
    pairs = p[:, :, None] * p[:, None, :] * (u[:, :, None] - u[:, None, :]) ** 2
    slope = sum(
        math.fsum(g * float(x) for g, x in zip(exact_categorical(row, 2)[1], along, strict=True))
        for row, along in zip(z, u, strict=True)
    )
    wanted = math.sqrt(float(pairs.sum()) / 2) / abs(slope)
    assert evalkit.gamma(lin, d) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [12.0, 40.0, 60.0])
def test_saturated_bernoulli_samples(margin: float, dtype: torch.dtype) -> None:
    z = torch.tensor([[margin, -margin], [margin + 0.5, 1.0], [-margin, 0.25]], dtype=dtype)
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    lin = evalkit.linearize(Table(z), torch.arange(3), y, likelihood="bernoulli")
    toward_no = torch.where(y == 0, z, -z).double().tolist()
    against = [[math.exp(value) for value in row] for row in toward_no]
    rel = 1e-5 if dtype == torch.float32 else 1e-10
    losses = [sum(math.log1p(odds) for odds in row) for row in against]
    assert lin.losses.tolist() == pytest.approx(losses, rel=rel, abs=0)
    norms = [math.hypot(*(odds / (1 + odds) for odds in row)) for row in against]
    assert lin.logit_gradient_norms.tolist() == pytest.approx(norms, rel=rel, abs=0)
    floor = sum(odds for row in against for odds in row) ** -0.5
    assert lin.gamma_floor == pytest.approx(floor, rel=rel)


def test_hopelessly_saturated_samples_do_not_look_like_interacting_ones() -> None:
    """Logit gradients below float32's smallest number must not cost the fast route."""
    batch = CASES["mlp_categorical"].make(torch.float32)
    with torch.no_grad():
        batch.model[-1].weight.mul_(200)
        labels = batch.model(batch.inputs).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    lin = evalkit.linearize(batch.model, batch.inputs, labels)
    assert 0 < float(lin.logit_gradient_norms.min()) < 1e-45
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool((lin.gram.diagonal() >= 0).all())


@pytest.mark.parametrize("name", ["duplicate_samples", "mlp_categorical"])
def test_rank_of_the_gram_matrix(name: str) -> None:
    """A duplicate adds no rank, and the updates stay those of the distinct samples."""
    batch = CASES[name].make()
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    rank = len({tuple(row) for row in batch.inputs.tolist()})
    values = torch.linalg.eigvalsh(lin.gram)
    assert int((values > 1e-10 * values[-1]).sum()) == rank
    for method, right in (
        ("ef", torch.ones(lin.num_samples)),
        ("ief", expected.residual.norm(dim=1) ** 2),
    ):
        d = evalkit.update(method, lin, damping=1e-12)
        inverse = torch.linalg.pinv(expected.gram, rtol=1e-10, hermitian=True)
        wanted = expected.sample_gradients.T @ inverse @ right.double()
        assert cosine(d, wanted) == pytest.approx(1.0, abs=1e-8)
        assert evalkit.gamma(lin, d) == pytest.approx(expected.gamma(wanted), rel=1e-5)


@pytest.mark.parametrize("name", [*SOME, "convolution_group_norm", "attention_module"])
def test_float32_scores_are_near_float64_scores(name: str) -> None:
    batch = CASES[name].make(torch.float32)
    expected = dense.dense(*batch)
    lin = evalkit.linearize(*batch)
    assert lin.gram.dtype == torch.float64
    damping = 1e-2
    wanted = {
        "sgd": dense.sgd(expected),
        "ef": dense.ef(expected, damping),
        "ief": dense.ief(expected, damping),
        "ief-tikhonov": dense.ief_tikhonov(expected, damping),
        "fgn": dense.fgn(expected, damping),
        "fgn-tikhonov": dense.fgn_tikhonov(expected, damping),
        "polyak": dense.polyak(expected, damping),
        "best-weights": dense.best_weights(expected),
        "sf": dense.sf(expected, lin.sampled_logit_gradients(0, 1), damping),
        "ngd": dense.ngd(expected, damping),
    }
    table = evalkit.score(*batch, methods=tuple(wanted), damping=damping)
    gammas = [expected.gamma(d) for d in wanted.values()]
    assert table["gamma"].tolist() == pytest.approx(gammas, rel=1e-3)
    assert evalkit.update("ief", lin).dtype == torch.float32


def test_gram_in_float32_is_accurate_for_unequal_samples() -> None:
    """Sample gradients over seven decades: each entry accurate relative to |G_n| |G_m|."""
    batch = CASES["mlp_gaussian"].make(torch.float32)
    scale = torch.logspace(0, -6, len(batch.targets)).unsqueeze(1)
    with torch.no_grad():
        logits = batch.model(batch.inputs)
    batch = batch._replace(targets=logits + scale * batch.targets)
    lin, expected = evalkit.linearize(*batch), dense.dense(*batch)
    error = (lin.gram - expected.gram).abs()
    # the targets are rounded to float32 around logits of order one, hence the last samples' share
    rounding = 1e-6 / expected.logit_gradient_norms
    allowed = torch.outer(expected.gradient_norms, expected.gradient_norms)
    assert bool((error <= (1e-5 + rounding[:, None] + rounding) * allowed).all())


def test_gram_where_the_total_gradient_vanishes() -> None:
    """Mirrored targets: G_n and G_(n+4) cancel, so sums over the batch say nothing about rows.

    Row n of the logits comes from row n - 1 of the inputs.
    """
    draw = Draw(3)
    model = Net(
        lambda net, x: net.out(torch.tanh(net.norm(net.hidden(x))).roll(1, 0)),
        hidden=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        out=nn.Linear(6, 2),
    ).double()
    initialise(model, draw)
    inputs, errors = draw.normal(4, 4).repeat(2, 1), draw.normal(4, 2)
    targets = model(inputs).detach() + torch.cat([errors, -errors])
    batch = Batch(model, inputs, targets, "gaussian")
    expected = dense.dense(*batch)
    assert expected.gradient.norm() < 1e-12 * expected.gradient_norms.sum()
    torch.testing.assert_close(evalkit.linearize(*batch).gram, expected.gram)


@pytest.mark.parametrize("elements", [1, 60, 3000])
@pytest.mark.parametrize(
    "name",
    [
        "few_positions_wide_layers",
        "many_positions_narrow_layers",
        "attention_module",
        "samples_that_interact",
    ],
)
def test_gram_in_small_blocks(name: str, elements: int) -> None:
    """The blocks that bound the memory, which tiny cases never fill, change nothing."""
    batch = CASES[name].make()
    found = evalkit.linearize(*batch, budget=at_most(elements)).gram
    torch.testing.assert_close(found, reference(name).gram)


@pytest.mark.parametrize(
    "name",
    ["mlp_categorical", "mlp_bernoulli", "mlp_gaussian", "module_used_twice", "without_bias"],
)
def test_linear_layers_form_no_per_sample_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Tensor:
        raise AssertionError("per-sample gradients were formed")

    monkeypatch.setattr(evalkit.linearization.gram, "inner_products", refused)
    lin = evalkit.linearize(*CASES[name].make())
    assert lin.gram.shape == (lin.num_samples, lin.num_samples)
    evalkit.update("sf", lin, labels_per_sample=2)

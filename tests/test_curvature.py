"""Structured approximations against blocks that are formed and solved densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import evalkit
from evalkit import curvature
from evalkit.curvature.kronecker import Kronecker
from evalkit.curvature.pulled import pulled
from evalkit.updates import compute
from tests.support.blocks import at_most
from tests.support.cases import CASES, Draw, Net
from tests.support.structured import LABELS, Oracle, cotangents
from tests.support.structured_cases import MADE, near
from tests.support.structures import DAMPED, STRUCTURES, full
from tests.support.table import initialise

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "kfac": [{}, {"sharing": "reduce"}, {"style": "pi"}, {"style": "plain", "sharing": "reduce"}],
    "kpsvd": [{}, {"style": "pi"}],
    "kfac-corrected": [{}, {"sharing": "reduce", "floor": 1e-3}],
    "shampoo": [{}, {"style": "pi"}, {"exponent": 0.5}],
}


def assert_direction(oracle: Oracle, structure: str, damping: float, **settings: Any) -> None:
    """Within 1e-8, or without damping within what rounding is said to do, if that is more."""
    draws = settings.pop("labels_per_sample", 1)
    own = {"labels_per_sample": draws} if draws > 1 else {}
    found = compute(structure, oracle.lin, damping, **settings, **own)
    wanted = oracle.direction(structure, damping, draws=draws, **settings)
    tolerance = 1e-8 * float(wanted.norm())
    if damping == 0:
        tolerance = max(tolerance, 8 * found.rounding.moved)
    assert float((found.direction(oracle.lin) - wanted).norm()) <= tolerance, settings


@pytest.mark.filterwarnings("ignore:.*outside of the range")
@pytest.mark.parametrize(("turn", "name"), list(enumerate(MADE)))
def test_every_structure_is_the_dense_one(turn: int, name: str) -> None:
    """A source of labels for each damping in turns, and beside the defaults a variant: labels,
    settings and layers do not feel each other.
    """
    oracle = Oracle(MADE[name]())
    for damping, labels in ((1e-2, LABELS[turn % 5]), (0.0, LABELS[(turn + 2) % 5])):
        for structure in STRUCTURES:
            if (damping == 0 and structure in DAMPED) or (structure == "eva" and labels == "exact"):
                continue
            plain, *others = VARIANTS.get(structure, [{}])
            for settings in (plain, *others[turn % max(len(others), 1) :][:1]):
                assert_direction(oracle, structure, damping, labels=labels, **settings)


def direction(lin: evalkit.Linearization, text: str, damping: float) -> torch.Tensor:
    return evalkit.update(text, lin, damping=damping)


@pytest.mark.parametrize("name", ["convolution_group_norm", "token_labels", "module_used_twice"])
def test_micro_batches_change_nothing(name: str) -> None:
    batch = CASES[name].make()
    whole, parts = evalkit.linearize(*batch), evalkit.linearize(*batch, micro_batch_size=2)
    for structure in STRUCTURES:
        labels = "sampled" if structure == "eva" else "exact"
        text = f"{structure}:labels={labels}"
        assert near(direction(parts, text, 1e-2), direction(whole, text, 1e-2), 1e-7)


def test_what_is_not_held_is_pulled_again() -> None:
    """In parts of a few samples, with Gram matrices where rows are not formed."""
    batch = CASES["convolution_group_norm"].make()
    whole, parts = evalkit.linearize(*batch), evalkit.linearize(*batch, budget=at_most(60))
    for text in ("block", "kfac:labels=floor", "ekfac", "kpsvd:labels=improved", "diagonal"):
        assert near(direction(parts, text, 1e-2), direction(whole, text, 1e-2), 1e-7)


@pytest.mark.parametrize("structure", ["block", "kfac", "ekfac"])
def test_improved_by_positions(structure: str) -> None:
    oracle = Oracle(CASES["token_labels"].make())
    for damping in (1e-2, 0.0):
        assert_direction(oracle, structure, damping, labels="improved", norm="position")


@pytest.mark.parametrize("structure", ["block", "kfac", "ekfac", "eva"])
def test_several_draws(structure: str) -> None:
    oracle = Oracle(CASES["mlp_categorical"].make())
    assert_direction(oracle, structure, 1e-2, labels="sampled", labels_per_sample=3)


# --- exact relations -------------------------------------------------------------------------


def test_all_structures_are_the_block_for_one_sample_with_one_position() -> None:
    lin = evalkit.linearize(*CASES["one_sample"].make())
    for labels in ("empirical", "improved", "floor", "exact"):
        wanted = direction(lin, f"block:labels={labels}", 1e-2)
        for structure in ("kfac", "ekfac", "kpsvd", "shampoo", "eva"):
            if structure != "eva" or labels != "exact":
                assert near(direction(lin, f"{structure}:labels={labels}", 1e-2), wanted)


def test_kfac_is_the_block_in_deep_linear_nets_with_squared_loss() -> None:
    draw = Draw(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2)).double()
    initialise(model, draw)
    lin = evalkit.linearize(model, draw.normal(7, 4), draw.normal(7, 2), "gaussian")
    wanted = direction(lin, "block:labels=exact", 1e-2)
    for structure in ("kfac", "ekfac", "kpsvd"):
        assert near(direction(lin, f"{structure}:labels=exact", 1e-2), wanted, 1e-7)
    other = direction(lin, "block:labels=empirical", 1e-2)
    assert not near(direction(lin, "kfac:labels=empirical", 1e-2), other, 1e-2)


def test_sharing_is_exact_where_its_assumption_holds() -> None:
    """A loss that sums over positions wants expand, one that averages outputs reduce."""
    draw = Draw(0)
    layers = [nn.Linear(4, 5), nn.Linear(5, 2)]
    x, y = draw.normal(6, 3, 4), draw.normal(6, 3, 2)
    summed = nn.Sequential(*layers).double()
    initialise(summed, draw)
    mean = Net(lambda net, x: net.body(x).mean(1), body=summed)
    for model, targets, sharing, other in (
        (summed, y, "expand", "reduce"),
        (mean, y[:, 0], "reduce", "expand"),
    ):
        lin = evalkit.linearize(model, x, targets, "gaussian")
        wanted = direction(lin, "block:labels=exact", 1e-2)
        assert near(direction(lin, f"kfac:labels=exact:sharing={sharing}", 1e-2), wanted, 1e-7)
        assert not near(direction(lin, f"kfac:labels=exact:sharing={other}", 1e-2), wanted, 1e-2)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_one_layer_is_the_whole_matrix(likelihood: str) -> None:
    draw, model = Draw(0), nn.Linear(5, 3).double()
    initialise(model, draw)
    targets = {
        "categorical": draw.integers(3, 7),
        "bernoulli": draw.bits(7, 3),
        "gaussian": draw.normal(7, 3),
    }[likelihood]
    lin = evalkit.linearize(model, draw.normal(7, 5), targets, likelihood)
    whole = {"empirical": "ef", "improved": "ief-tikhonov", "exact": "ngd", "sampled": "sf"}
    for labels, method in whole.items():
        d, scale = direction(lin, method, 1e-3), 1e-3 if labels == "sampled" else 1.0
        assert near(scale * direction(lin, f"block:labels={labels}", 1e-3), d, 1e-7)
    if "fgn-tikhonov" in evalkit.methods():
        d = direction(lin, "fgn-tikhonov", 1e-3)
        assert near(direction(lin, "block:labels=floor", 1e-3), d, 1e-7)


def test_many_draws_are_the_exact_matrix() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    wanted = direction(lin, "kfac:labels=exact", 1e-1)
    far = [
        float((direction(lin, f"kfac:labels_per_sample={k}", 1e-1) - wanted).norm() / wanted.norm())
        for k in (10, 400)
    ]
    assert far[1] < 0.05 < far[0]


def formed(solver: Any) -> torch.Tensor:
    """The matrix of a block with one group, (out in, out in)."""
    factors = (solver.out, solver.inside) if isinstance(solver, Kronecker) else solver.bases
    basis = torch.kron(*(one.vectors[0] for one in factors))
    if isinstance(solver, Kronecker):
        values = torch.kron(*(one.values[0, :-1] for one in factors))
    else:
        values = solver.values[0, :-1, :-1].flatten()
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("labels", ["exact", "improved"])
def test_errors_of_approximations_are_in_the_order_that_they_must_have(labels: str) -> None:
    oracle = Oracle(CASES["token_labels"].make())
    layers = oracle.layers(cotangents(oracle.reference, oracle.lin, labels))
    found = pulled(oracle.lin, curvature.Source(labels))
    made = {one.__name__: one(found) for one in (curvature.kfac, curvature.ekfac, curvature.kpsvd)}
    for names, layer in layers.items():
        fisher = full(layer.a[0], layer.d[0])
        own = {kind: formed(blocks[names]) for kind, blocks in made.items()}
        error = {kind: float((one - fisher).norm()) for kind, one in own.items()}
        assert error["ekfac"] < error["kfac"]
        assert error["kpsvd"] < error["kfac"]
        assert float(own["ekfac"].trace()) == pytest.approx(float(fisher.trace()), rel=1e-9)


def test_a_product_design_is_a_product() -> None:
    """Every input with every output gradient: F_l = B (x) A, and all products find it."""
    draw, model = Draw(0), nn.Linear(3, 4, bias=False).double()
    a, d = draw.normal(5, 3), draw.normal(6, 4)
    inputs, wanted = a.repeat_interleave(6, 0), d.repeat(5, 1)
    targets = model(inputs).detach() - wanted
    lin = evalkit.linearize(model, inputs, targets, "gaussian")
    direct = torch.linalg.solve(
        torch.kron(d.T @ d, a.T @ a) + 1e-2 * torch.eye(12), lin.gradient.double()
    )
    for structure in ("block", "kfac", "ekfac", "kpsvd"):
        assert near(direction(lin, f"{structure}:labels=empirical", 1e-2), direct)


def test_order_of_samples_and_copies_of_one() -> None:
    batch = CASES["mlp_bernoulli"].make()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    lin = evalkit.linearize(*batch)
    other = evalkit.linearize(batch.model, batch.inputs[order], batch.targets[order], "bernoulli")
    one = evalkit.linearize(batch.model, batch.inputs[:1], batch.targets[:1], "bernoulli")
    rows = torch.zeros(5, dtype=torch.long)
    five = evalkit.linearize(batch.model, batch.inputs[rows], batch.targets[rows], "bernoulli")
    for structure in STRUCTURES:
        text = f"{structure}:labels=improved"
        assert near(direction(other, text, 1e-2), direction(lin, text, 1e-2), 1e-7)
        assert near(direction(five, text, 5e-2), direction(one, text, 1e-2), 1e-7)

"""Where approximations layer by layer are exact, and what no reweighting of samples changes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

import evalkit
from tests.properties.laws import linearized
from tests.support import dense
from tests.support.dense import assert_near
from tests.support.strategies import Plan
from tests.support.table import Batch

WHOLE = {
    "empirical": "ef",
    "improved": "ief-tikhonov",
    "floor": "fgn-tikhonov",
    "sampled": "sf",
}
"""Methods on the whole matrix, by the labels of the blocks that they are with one layer."""
ALIKE = ("kfac", "ekfac", "kpsvd", "shampoo")
"""Structures that are the block itself where all inputs of a layer are one vector."""
WEIGHTED = ("ef", "ief", "fgn", "polyak")
TOLERANCE = 1e-6


def of_the_head(plan: Plan) -> Batch:
    """A batch of which the last layer alone is trained."""
    batch = plan.make()
    batch.model.requires_grad_(False)
    batch.model.head.requires_grad_(True)
    return batch


def damping_of(lin: evalkit.Linearization) -> float:
    """A damping beside which matrices are not so large that solves lose their digits."""
    norms = lin.gradient_norms
    lengths = norms / lin.logit_gradient_norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return max(0.1 * float(norms.max()) ** 2, 1e-8 * float(lengths.max()) ** 2)


def check_one_layer(plan: Plan) -> None:
    """Blocks of one layer are the whole matrix; with one input vector, so is every structure."""
    batch = of_the_head(plan)
    lin, expected = linearized(batch), dense.dense(*batch)
    if not float(lin.gradient_norms.min()) > 1e-6 * float(lin.gradient_norms.max()):
        return  # r / |r| of a sample without a gradient is held to the exact numbers
    damping = damping_of(lin)
    blocks = {
        labels: evalkit.update(f"block:labels={labels}", lin, damping)
        for labels in (*WHOLE, "exact")
    }
    for labels, method in WHOLE.items():
        scale = damping if method == "sf" else 1.0  # sf leaves out a factor 1 / lambda
        whole = evalkit.update(method, lin, damping)
        assert_near(scale * blocks[labels], whole, TOLERANCE)
    assert_near(blocks["exact"], dense.ngd(expected, damping), TOLERANCE)
    one_vector = plan.inputs in ("features", "images") or plan.positions == 1
    if not one_vector or (plan.samples > 1 and plan.same != "all"):
        return
    for labels, block in blocks.items():
        for structure in ALIKE:
            found = evalkit.update(f"{structure}:labels={labels}", lin, damping)
            assert_near(found, block, TOLERANCE)
    if plan.samples == 1:
        assert_near(evalkit.update("eva", lin, damping), blocks["empirical"], TOLERANCE)


def check_whole(plan: Plan) -> None:
    """One output per sample; the best weights; the order of samples."""
    batch = plan.make()
    lin, expected = linearized(batch), dense.dense(*batch)
    if not float(expected.gradient.norm()) > 1e-3 * float(lin.gradient_norms.max()):
        return  # what cancels is held to the exact numbers
    damping = damping_of(lin)
    entries = expected.residual.shape[1]
    # A sample with r_n = 0 has a part in F, and r / sqrt(f) none to show for it.
    shown = bool((lin.logit_gradient_norms > 0).all())
    if shown and (entries == 1 or (entries == 2 and plan.likelihood == "categorical")):
        found = evalkit.update("fgn-tikhonov", lin, damping)
        assert_near(found, dense.ngd(expected, damping), TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = evalkit.score(
            *batch, methods=("best-weights", *WEIGHTED), damping=damping, dtype="float64"
        )
    best = rows.iloc[0]
    for row in rows.itertuples():
        slack = row.error + best.error + 1e-9
        assert best.gamma <= row.gamma * (1 + slack), (row.method, plan)
    moved = linearized(batch._replace(inputs=batch.inputs.flip(0), targets=batch.targets.flip(0)))
    for structure in (*ALIKE, "diagonal", "block"):
        for labels in ("exact", "empirical"):
            name = f"{structure}:labels={labels}"
            there, back = (evalkit.update(name, one, damping) for one in (lin, moved))
            assert_near(there, back, TOLERANCE)


def single(plan: Plan) -> Plan:
    """The plan with one sample at one position."""
    return replace(plan, samples=1, positions=1)

"""Methods that combine or leave the blocks of a structure, against what is formed densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.curvature import Source, block, kfac
from evalkit.curvature.direction import operator
from evalkit.updates import compute
from tests.support.cases import CASES, Batch, Draw
from tests.support.structured import Oracle, cotangents
from tests.support.table import initialise
from tests.test_curvature import MADE, near

pytestmark = pytest.mark.filterwarnings("ignore:.*outside of the range")


def places_of(oracle: Oracle) -> list[tuple[Tensor, bool]]:
    """Where each block lies in a vector, (out, in) or as the parameter, and whether it is a layer."""
    c = cotangents(oracle.reference, oracle.lin, "empirical")
    found, covered = [], set()
    for names, layer in oracle.layers(c).items():
        covered |= set(names)
        found += [(places, True) for places in oracle.matrix_places(layer)]
    return found + [(p, False) for name, p in oracle.places.items() if name not in covered]


# --- SWAN ------------------------------------------------------------------------------------


def swan(oracle: Oracle, center: bool) -> Tensor:
    g, d = oracle.reference.gradient, torch.full_like(oracle.reference.gradient, torch.nan)
    for places, is_layer in places_of(oracle):
        rows = g[places] if is_layer else g[places].reshape(1, -1)
        if center and is_layer:
            rows = rows - rows.mean(1, keepdim=True)
        lengths = rows.norm(dim=1, keepdim=True)
        some = lengths > 1e-10 * lengths.max()
        rows = torch.where(some, rows / lengths, torch.zeros_like(rows))
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        inverse = torch.where(values > 1e-12 * values[-1], values.rsqrt(), 0.0)
        d[places.flatten()] = (vectors @ torch.diag(inverse) @ vectors.T @ rows).flatten()
    assert not d.isnan().any()
    return d


@pytest.mark.parametrize("name", MADE)
def test_swan_is_the_inverse_root_of_what_is_formed(name: str) -> None:
    oracle = Oracle(MADE[name]())
    for center in (False, True):
        found = compute("swan", oracle.lin, 1e-3, center=center).direction(oracle.lin)
        assert near(found, swan(oracle, center)), center

"""Methods that combine or leave the blocks of a structure, against what is formed densely."""

from __future__ import annotations

import functools
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit.cli import main
from evalkit.curvature import Source, block, coarse, kfac
from evalkit.curvature.direction import block_matrix
from evalkit.scoring import check_request
from evalkit.storage.run_folder import read_run
from evalkit.updates import compute
from tests.support.cases import CASES, Batch, Draw
from tests.support.documents import ROOT
from tests.support.structured import LABELS, Oracle, cotangents
from tests.support.structured_cases import MADE, near
from tests.support.structures import kfac_factors, kronecker

pytestmark = pytest.mark.filterwarnings("ignore:.*outside of the range")


@functools.cache
def oracle_of(name: str) -> Oracle:
    return Oracle(MADE[name]())


def places_of(oracle: Oracle) -> list[tuple[Tensor, bool]]:
    """Where each block lies in a vector, and whether it is a layer's: (out, in)."""
    c = cotangents(oracle.reference, oracle.lin, "empirical")
    found, covered = [], set()
    for names, layer in oracle.layers(c).items():
        covered |= set(names)
        found += [(places, True) for places in oracle.matrix_places(layer)]
    return found + [(p, False) for name, p in oracle.places.items() if name not in covered]


def test_a_structure_solves_for_any_vector() -> None:
    """With blocks by their Gram matrix and by their parameters, damped and not."""
    for name in ("mlp_categorical", "convolution_group_norm"):
        oracle = oracle_of(name)
        lin, v = oracle.lin, Draw(1).normal(oracle.lin.num_params)
        for structure in (block, kfac):
            for labels in ("improved", "sampled"):
                source = Source(labels)
                matrix = block_matrix(lin, source, (structure.__name__, "test"), structure)
                c = cotangents(oracle.reference, lin, labels)
                for damping in (1e-2, 0.0):
                    wanted = torch.zeros_like(v)
                    for places, solve in oracle.blocks(
                        structure.__name__, oracle.rows(c), oracle.layers(c)
                    ):
                        wanted[places.flatten()] = solve(v[places], damping).flatten()
                    assert near(matrix.solve(v, damping), wanted, 1e-7), (structure, labels)


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
    oracle = oracle_of(name)
    for center in (False, True):
        found = compute("swan", oracle.lin, 1e-3, center=center).direction(oracle.lin)
        assert near(found, swan(oracle, center)), center


def test_swan_knows_no_scale_and_no_damping() -> None:
    """Nor that of a row of the gradient."""
    draw, layer = Draw(0), nn.Linear(4, 3).double()
    x, y = draw.normal(6, 4), draw.normal(6, 3)
    lin = evalkit.linearize(layer, x, y, "gaussian")
    found = evalkit.update("swan", lin, damping=1.0)
    assert torch.equal(found, evalkit.update("swan", lin, damping=0.0))
    matrix = torch.cat([found[:12].view(3, 4), found[12:, None]], 1)
    assert near(matrix @ matrix.T, torch.eye(3).double())
    rows = torch.tensor([8.0, 1.0, 1e-3]).double()
    with torch.no_grad():
        y = layer(x) - rows * (layer(x) - y)
    other = evalkit.linearize(layer, x, y, "gaussian")  # a gradient with other rows
    assert near(evalkit.update("swan", other, damping=1.0), found)
    assert float(found @ lin.gradient) > 0


# --- FOP -------------------------------------------------------------------------------------


def damped_product(b: Tensor, a: Tensor, damping: float, style: str) -> Tensor:
    """The damped block, (out in, out in)."""
    if style == "tikhonov" or damping == 0:
        return torch.kron(b, a) + damping * torch.eye(len(b) * len(a)).double()
    left = right = damping
    if style == "pi":
        pi = float(((a.trace() / len(a)) / (b.trace() / len(b))).sqrt())
        left, right = damping**0.5 / pi, damping**0.5 * pi
    eye_b, eye_a = torch.eye(len(b)).double(), torch.eye(len(a)).double()
    return torch.kron(b + left * eye_b, a + right * eye_a)


def fop(
    oracle: Oracle,
    damping: float,
    labels: str,
    sharing: str = "expand",
    style: str = "tikhonov",
    step_sizes: bool = False,
) -> Tensor:
    """d as its formulas are written, with everything formed."""
    reference, half = oracle.reference, oracle.reference.num_samples // 2
    g1, g2 = (part.sum(0) for part in reference.sample_gradients.tensor_split([half]))
    d = oracle.direction("kfac", damping, labels, sharing=sharing, style=style)
    c = cotangents(reference, oracle.lin, labels)
    for layer in oracle.layers(c).values():
        for group, places in enumerate(oracle.matrix_places(layer)):
            b, a = kfac_factors(layer.a[group], layer.d[group], sharing)
            matrix, solve = damped_product(b, a, damping, style), kronecker(b, a, style)
            mean, apart = (g1 + g2)[places] / 2, (g1 - g2)[places]
            if not mean.any():  # a layer that is not used
                continue
            image = (matrix @ mean.flatten()).view_as(mean)
            orthogonal = apart - (apart * image).sum() / (mean * image).sum() * mean
            length = orthogonal.flatten() @ matrix @ orthogonal.flatten()
            whole = apart.flatten() @ matrix @ apart.flatten()
            beta = 0.0
            if length > 1e-24 * whole:
                other = solve(orthogonal, damping)
                beta = (mean * other).sum() / (orthogonal * other).sum()
            combined = mean + beta * orthogonal
            own = solve(combined, damping)
            eta = ((g1 + g2)[places] * own).sum() / (combined * own).sum() if step_sizes else 1.0
            d[places.flatten()] = (2 * eta * own).flatten()
    return d


def assert_fop(oracle: Oracle, damping: float, labels: str, **settings: Any) -> None:
    found = compute("fop", oracle.lin, damping, labels=labels, **settings)
    wanted = fop(oracle, damping, labels, **settings)
    tolerance = 1e-8 * float(wanted.norm())
    if damping == 0:
        tolerance = max(tolerance, 8 * found.rounding.moved)
    assert float((found.direction(oracle.lin) - wanted).norm()) <= tolerance, settings


@pytest.mark.parametrize(("turn", "name"), list(enumerate(MADE)))
def test_fop_is_its_formula(turn: int, name: str) -> None:
    oracle = oracle_of(name)
    labels = LABELS[turn % 5], LABELS[(turn + 2) % 5]
    assert_fop(oracle, 1e-2, labels[0])
    assert_fop(oracle, 1e-2, labels[1], step_sizes=True)
    assert_fop(oracle, 1e-2, labels[0], sharing="reduce", style=("pi", "plain")[turn % 2])
    assert_fop(oracle, 0.0, labels[1])


def test_fop_is_kfac_where_the_halves_say_the_same() -> None:
    one = CASES["one_sample"].make()
    batch = CASES["mlp_categorical"].make()
    twice = torch.arange(len(batch.inputs)).repeat(2)
    copies = Batch(batch.model, batch.inputs[twice], batch.targets[twice], batch.likelihood)
    for given in (one, copies):
        lin = evalkit.linearize(*given)
        for damping in (0.0, 1e-12, 1e-2):
            found = evalkit.update("fop:labels=improved", lin, damping=damping)
            assert near(found, evalkit.update("kfac:labels=improved", lin, damping=damping))


# --- two levels ------------------------------------------------------------------------------


def two_level(oracle: Oracle, damping: float, labels: str, coarse: str, sharing: str) -> Tensor:
    """d as its formula is written, with everything formed."""
    reference = oracle.reference
    d0 = oracle.direction("kfac", damping, labels, sharing=sharing)
    matrix = reference.fisher + damping * torch.eye(len(d0)).double()
    residual = reference.gradient - matrix @ d0
    column = {"ones": torch.ones_like(d0), "residual": residual, "direction": d0}[coarse]
    z = torch.zeros(len(d0), len(places_of(oracle))).double()
    for i, (places, _) in enumerate(places_of(oracle)):
        z[places.flatten(), i] = column[places.flatten()]
        z[:, i] /= z[:, i].norm().clamp_min(1e-300)
    inverse = torch.linalg.pinv(z.T @ matrix @ z, hermitian=True, rtol=1e-13)
    return d0 + z @ inverse @ z.T @ residual


@pytest.mark.parametrize(("turn", "name"), list(enumerate(MADE)))
def test_two_levels_are_their_formula(turn: int, name: str) -> None:
    oracle = oracle_of(name)
    if len(places_of(oracle)) == 1:
        pytest.skip("one block")
    for i, kind in enumerate(("ones", "residual", "direction")):
        labels, sharing = LABELS[(turn + i) % 5], ("expand", "reduce")[(turn + i) % 2]
        for damping in (1e-2, 0.0):
            settings = {"labels": labels, "sharing": sharing, "coarse": kind}
            found = compute("two-level-kfac", oracle.lin, damping, **settings)
            wanted = two_level(oracle, damping, **settings)
            tolerance = 1e-8 * float(wanted.norm())
            if damping == 0:
                tolerance = max(tolerance, 8 * found.rounding.moved)
            assert float((found.vector - wanted).norm()) <= tolerance, (damping, settings)


def test_a_second_level_is_the_deepest_of_its_kind() -> None:
    """No other weights on the columns are deeper in the quadratic model, nor is KFAC."""
    lin = evalkit.linearize(*CASES["mlp_bernoulli"].make())

    def depth(d: Tensor) -> float:
        return float(d @ lin.gradient - (d @ lin.fvp(d) + 1e-3 * d @ d) / 2)

    plain = evalkit.update("kfac", lin, damping=1e-3)
    for kind in ("ones", "residual", "direction"):
        found = evalkit.update("two-level-kfac", lin, damping=1e-3, coarse=kind)
        assert depth(found) > depth(plain)
        column = {"ones": torch.ones_like(plain), "direction": plain}.get(
            kind, lin.gradient - lin.fvp(plain) - 1e-3 * plain
        )
        for values in lin.by_name(column).values():
            assert values.any()
        left = lin.gradient - lin.fvp(found) - 1e-3 * found
        parts = list(lin.by_name(left * column).values())
        layers = [float(w.sum() + b.sum()) for w, b in zip(parts[::2], parts[1::2], strict=True)]
        assert max(map(abs, layers)) < 1e-9 * float((left * column).abs().sum() + 1)


# --- what all share --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_categorical", "duplicate_samples", "conv1d_groups"])
def test_float32_scores_are_within_their_errors(name: str) -> None:
    batch = CASES[name].make(torch.float32)
    exact = evalkit.linearize(*batch).in_float64()
    seen = []
    for text in (
        "swan",
        "swan:center=true",
        "fop:labels=exact",
        "fop:labels=improved:step_sizes=true",
        "two-level-kfac:labels=empirical",
        "two-level-kfac:labels=floor:coarse=direction",
        "two-level-kfac:labels=exact:coarse=residual",
    ):
        for row in evalkit.score(*batch, text, [0.0, 1e-6, 1e-3], dtype="float32").itertuples():
            wanted = evalkit.gamma(exact, evalkit.update(text, exact, damping=row.damping))
            assert abs(row.gamma / wanted - 1) <= row.error, (text, row.damping)
            seen.append(row.error)
    assert sum(error < 5e-3 for error in seen) > len(seen) / 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("two-level-kfac:coarse=one", "one of ones, residual, direction"),
        ("two-level-kfac:style=pi", "unknown setting 'style'"),
        ("fop:step_sizes=maybe", "expected true or false"),
        ("fop:labels=exact:labels_per_sample=2", "labels_per_sample with labels=sampled alone"),
        ("swan:labels=exact", "unknown setting 'labels'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(text: str, sentence: str) -> None:
    with pytest.raises(evalkit.EvalkitError, match=sentence):
        check_request([text], 1e-3)


def test_one_layer_has_no_second_level() -> None:
    model = nn.Linear(4, 3).double()
    lin = evalkit.linearize(model, Draw(0).normal(5, 4), Draw(0).integers(3, 5))
    with pytest.raises(evalkit.EvalkitError, match="found one; use kfac"):
        evalkit.update("two-level-kfac", lin)


def test_columns_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "MOST_NUMBERS", 10)
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    with pytest.raises(evalkit.EvalkitError, match=r"at most 10 numbers in J z.*smaller batches"):
        evalkit.update("two-level-kfac", lin)


def test_no_difference_of_halves_helps_in_the_batch_with_the_exact_matrix() -> None:
    """g'^T F^-1 g does not vanish, but d = F^-1 g is the best there is for these samples."""
    reference = oracle_of("mlp_bernoulli").reference
    half = reference.num_samples // 2
    g1, g2 = (part.sum(0) for part in reference.sample_gradients.tensor_split([half]))
    matrix = reference.fisher + 1e-6 * torch.eye(reference.num_params).double()
    mean, apart = (g1 + g2) / 2, g1 - g2
    rest = apart - (apart @ matrix @ mean) / (mean @ matrix @ mean) * mean

    def gamma(beta: float) -> float:
        d = torch.linalg.solve(matrix, mean + beta * rest)
        return float((d @ matrix @ d).sqrt() / (d @ (g1 + g2)).abs())

    for beta in (-1.0, -1e-2, 1e-2, 1.0):
        assert gamma(beta) > gamma(0.0)


def test_fop_beside_kfac_in_the_batch_and_on_held_out_samples() -> None:
    compared = runpy.run_path(str(ROOT / "docs/guides/examples/fop_held_out.py"))["compared"]
    rows = compared(ROOT / "checkpoints/digits-mlp", ["step-000276"], batches=2, batch_size=40)
    assert [(row["checkpoint"], row["method"]) for row in rows] == [
        ("step-000276", "kfac"),
        ("step-000276", "fop"),
    ]
    assert all(0 < row[key] < math.inf for row in rows for key in ("batch", "held_out"))


@pytest.mark.parametrize("text", ["fop:labels=exact", "two-level-kfac:labels=exact", "swan"])
def test_micro_batches_change_nothing(text: str) -> None:
    batch = CASES["convolution_group_norm"].make()
    whole, parts = evalkit.linearize(*batch), evalkit.linearize(*batch, micro_batch_size=2)
    found = evalkit.update(text, parts, damping=1e-2)
    assert near(found, evalkit.update(text, whole, damping=1e-2), 1e-7)


def test_they_are_scored_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = str(ROOT / "checkpoints/digits-mlp/step-000276.safetensors"), tmp_path / "run"
    words = ["score", folder, "--task", "digits-mlp", "--batches", "1", "--batch-size", "20"]
    methods = ["--methods", "kfac,fop,two-level-kfac,swan", "--damping", "1e-3"]
    assert main([*words, *methods, "--out", str(run)]) == 0, capsys.readouterr().err
    scores = read_run(run).scores
    assert set(scores["method"]) == {"kfac", "fop", "two-level-kfac", "swan"}
    assert (scores["error"] < 1e-2).all()

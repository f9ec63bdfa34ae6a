"""``evalkit.score`` against the dense reference, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import evalkit
from evalkit import EvalkitError
from evalkit.doubts import MARKED
from evalkit.scoring import score_linearization
from evalkit.updates import CotangentUpdate
from evalkit.updates.types import Term
from tests.support import dense
from tests.support.cases import CASES, Batch
from tests.support.chosen_cases import every_case, linearized, reference
from tests.support.expected_scores import NGD, expected_row
from tests.support.left_alone import state
from tests.support.table import Counter

COLUMNS = [
    "method",
    "damping",
    "gamma",
    "ratio",
    "efficiency",
    "fisher_norm",
    "slope",
    "norm",
    "cosine_sgd",
    "iterations",
    "relative_residual",
    "converged",
    "solver",
    "error",
    "dtype",
]


# --- score -----------------------------------------------------------------------------------


def wanted_directions(name: str, damping: float) -> dict[str, Tensor]:
    """Method name, settings included, to its dense direction."""
    expected, lin = reference(name), linearized(name)
    return {
        "sgd": dense.sgd(expected),
        "ef": dense.ef(expected, damping),
        "ief": dense.ief(expected, damping),
        "ief-tikhonov": dense.ief_tikhonov(expected, damping),
        "fgn": dense.fgn(expected, damping),
        "fgn-tikhonov": dense.fgn_tikhonov(expected, damping),
        "polyak": dense.polyak(expected, damping),
        "best-weights": dense.best_weights(expected),
        "sf": dense.sf(expected, lin.sampled_logit_gradients(3, 1), damping),
        "sf:labels_per_sample=4": dense.sf(expected, lin.sampled_logit_gradients(3, 4), damping),
        NGD: dense.ngd(expected, damping),
    }


@every_case
def test_every_column_of_score(name: str) -> None:
    expected, damping = reference(name), 1e-2
    wanted = wanted_directions(name, damping)
    batch = CASES[name].make()
    table = evalkit.score(*batch, methods=tuple(wanted), damping=damping, seed=3)
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == COLUMNS
    assert list(table["method"]) == list(wanted)
    assert list(table["damping"]) == [damping] * len(wanted)
    for row, d in zip(table.to_dict("records"), wanted.values(), strict=True):
        numbers = expected_row(expected, d)
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-6)
        assert abs(row["gamma"] / numbers["gamma"] - 1) <= row["error"] + 1e-12
        assert row["error"] < MARKED
        assert row["dtype"] == "float64"


def test_solver_columns_are_empty_for_direct_methods_only() -> None:
    batch = CASES["mlp_categorical"].make()
    table = evalkit.score(*batch, methods=("sgd", "ef", "ief", "sf", NGD), damping=1e-2)
    solver = table[["iterations", "relative_residual", "converged"]]
    assert list(table["solver"].fillna("")) == ["", "", "", "", "direct"]
    assert solver.iloc[:4].isna().all(axis=None)
    iterations, residual, converged = solver.iloc[4]
    assert int(iterations) > 0
    assert 0 <= float(residual) <= 1e-12
    assert bool(converged)


def test_unfinished_solve_says_so() -> None:
    batch, expected = CASES["mlp_categorical"].make(), reference("mlp_categorical")
    name = "ngd:max_iterations=2:tolerance=1e-12:solver=cg"
    row = evalkit.score(*batch, methods=(name,), damping=1e-2).iloc[0]
    lin = linearized("mlp_categorical")
    d = evalkit.update(name, lin, damping=1e-2)
    residual = expected.gradient - expected.fisher @ d - 1e-2 * d
    assert row["iterations"] == 2
    assert not row["converged"]
    wanted = float(residual.norm() / expected.gradient.norm())
    assert row["relative_residual"] == pytest.approx(wanted, rel=1e-6)


def test_settings_of_own_methods_take_what_their_hints_say() -> None:
    @evalkit.method("own")
    def own(
        lin: evalkit.Linearization,
        damping: float,
        norm: Literal["none", "rows"] = "none",
        power: Literal[1, 2] | Literal[3] = 1,
    ) -> Tensor:
        return lin.gradient**power

    @evalkit.method("unknown-hints")
    def unknown(lin, damping, norm: "nowhere.Known" = "none"):  # type: ignore # noqa: F821, UP037
        return lin.gradient

    batch = CASES["mlp_categorical"].make()
    names = ("own:norm=rows:power=3", "unknown-hints:norm=rows")
    assert list(evalkit.score(*batch, methods=names)["method"]) == list(names)
    with pytest.raises(EvalkitError, match="'norm' of method 'own' to be one of none, rows, found"):
        evalkit.score(*batch, methods="own:norm=columns")
    with pytest.raises(EvalkitError, match="'power' of method 'own' to be one of 1, 2, 3, found"):
        evalkit.score(*batch, methods="own:power=4")


def test_score_defaults() -> None:
    table = evalkit.score(*CASES["mlp_categorical"].make())
    assert list(table["method"]) == ["sgd", "ef", "ief", "sf"]
    assert list(table["damping"]) == [1e-12] * 4
    assert table["ratio"][0] == pytest.approx(1.0)


def test_rows_of_a_sweep() -> None:
    """One row per method and damping: methods outermost, both in the order given."""
    methods, dampings = ("ief", "sgd", "ef"), (1e-1, 1e-6, 1e-3)
    table = evalkit.score(*CASES["mlp_categorical"].make(), methods=methods, damping=dampings)
    pairs = list(zip(table["method"], table["damping"], strict=True))
    assert pairs == [(method, damping) for method in methods for damping in dampings]
    expected = reference("mlp_categorical")
    solves = {"ief": dense.ief, "ef": dense.ef, "sgd": lambda dense_batch, _: dense_batch.gradient}
    wanted = [expected.gamma(solves[method](expected, damping)) for method, damping in pairs]
    assert list(table["gamma"]) == pytest.approx(wanted, rel=1e-8)


def test_one_row_does_not_depend_on_the_others() -> None:
    batch = CASES["mlp_categorical"].make()
    alone = evalkit.score(*batch, methods=("sf",), damping=1e-3, seed=5)
    crowd = evalkit.score(
        *batch, methods=("ngd", "sf:labels_per_sample=2", "ef", "sf"), seed=5, damping=(1e-1, 1e-3)
    )
    pd.testing.assert_frame_equal(
        alone, crowd.tail(1).reset_index(drop=True), check_dtype=False, rtol=1e-10
    )


def test_seed_decides_the_sampled_labels() -> None:
    lin = linearized("mlp_categorical")
    first = evalkit.update("sf", lin, damping=1e-3, seed=0)
    assert torch.equal(first, evalkit.update("sf", lin, damping=1e-3, seed=0))
    others = [evalkit.update("sf", lin, damping=1e-3, seed=seed) for seed in range(1, 6)]
    assert not any(torch.equal(first, other) for other in others)


# --- what is left alone ----------------------------------------------------------------------


def use_everything(batch: Batch) -> None:
    lin = evalkit.linearize(*batch)
    lin.fvp(lin.gradient)
    _ = lin.gram
    evalkit.natural_gradient(lin, damping=1e-2, max_iterations=3)
    past = evalkit.past_task(batch.model, [(batch.inputs, batch.targets)], batch.likelihood)
    optimizer = torch.optim.AdamW(batch.model.parameters(), lr=1e-3)
    given = {"past": past, "optimizer": optimizer}
    evalkit.score(*batch, methods=(*evalkit.methods(),), damping=1e-2, **given)


@pytest.mark.parametrize(
    "name",
    [
        "mlp_categorical",
        "attention_module",
        "convolution_group_norm",
        "batch_norm_in_eval_mode",
        "frozen_parameters",
        "hooks_that_change_values",
        "embedding_tied_by_attribute",
        "weight_normalised",
    ],
)
def test_model_and_process_are_left_alone(name: str) -> None:
    batch = CASES[name].make()
    trained = [p for p in batch.model.parameters() if p.requires_grad]
    trained[0].grad = torch.ones_like(trained[0])
    before = state(batch.model)
    use_everything(batch)
    assert state(batch.model) == before


def test_mixed_modes_and_buffers_are_left_alone() -> None:
    batch = CASES["mlp_categorical"].make()
    model = nn.Sequential(Counter(), nn.Dropout(0.5).eval(), batch.model, nn.Identity().eval())
    batch = batch._replace(model=model)
    before = state(model)
    use_everything(batch)
    assert state(model) == before


def test_inputs_and_targets_are_left_alone() -> None:
    batch = CASES["dict_inputs_and_output_object"].make()
    copies = {name: value.clone() for name, value in batch.inputs.items()}
    targets = batch.targets.clone()
    use_everything(batch)
    assert list(batch.inputs) == list(copies)
    assert all(torch.equal(batch.inputs[name], value) for name, value in copies.items())
    assert torch.equal(batch.targets, targets)


def test_frozen_parameters_are_left_out() -> None:
    batch = CASES["frozen_parameters"].make()
    trained = [p for p in batch.model.parameters() if p.requires_grad]
    lin = linearized("frozen_parameters")
    assert lin.num_params == sum(p.numel() for p in trained)
    assert lin.gradient.shape == (lin.num_params,)
    assert all(p.grad is None for p in batch.model.parameters())


def test_products_of_a_method_are_never_those_of_another() -> None:
    """Cotangents that a method makes and drops leave their place in memory to the next one's."""
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    ones = torch.ones_like(lin.losses)

    def fresh(scale: float) -> Callable[..., Any]:
        def found(lin: evalkit.Linearization, damping: float) -> CotangentUpdate:
            powers = lin.logit_gradients.sign() * lin.logit_gradients.abs() ** scale
            return CotangentUpdate.summed([Term(powers, ones)], None, None)

        return found

    for scale in range(1, 9):
        evalkit.method(f"power-{scale}")(fresh(scale))
    rows = score_linearization(lin, [f"power-{s}" for s in range(1, 9)], (0.0, 1e-3), seed=0)
    for row in rows:
        d = evalkit.update(row.method, lin, row.damping)
        assert row.gamma == pytest.approx(evalkit.gamma(lin, d), rel=1e-9)


def test_a_method_takes_a_linearization_and_a_damping() -> None:
    """Said where it is registered, by its own name."""
    with pytest.raises(
        EvalkitError, match=r"found alone\(lin\); write it as alone\(lin, damping\)"
    ):

        @evalkit.method("takes-too-little")
        def alone(lin):
            return lin.gradient

    with pytest.raises(EvalkitError, match="settings with defaults"):
        evalkit.method("needs-a-setting")(lambda lin, damping, power: lin.gradient)
    assert "takes-too-little" not in evalkit.methods()

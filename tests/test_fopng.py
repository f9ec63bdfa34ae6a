"""FOPNG: a diagonal natural gradient beside past tasks, against what is formed densely."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import evalkit
from evalkit.curvature import PastTask
from evalkit.scoring import check_request
from evalkit.updates import compute
from tests.support.cases import CASES, Batch, Draw
from tests.support.structured import LABELS, Oracle, cotangents
from tests.support.structured_cases import MADE, near

pytestmark = pytest.mark.filterwarnings("ignore:.*outside of the range")
FORMS = ("projection", "published")
NAMES = (
    "mlp_categorical",
    "mlp_bernoulli",
    "mlp_gaussian",
    "one_sample",
    "convolution_group_norm",
    "conv2d_depthwise_stride",
    "low_rank_adapter",
    "module_used_twice",
    "frozen_parameters",
    "unused_parameters",
    "duplicate_samples",
    "attention_module",
    "two_modules_with_one_weight",
    "weight_with_and_without_its_bias",
)


def earlier(batch: Batch) -> Batch:
    """The batch at other values of its model, which stand for the end of a past task."""
    model, draw = copy.deepcopy(batch.model), Draw(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * draw.normal(*parameter.shape).to(parameter))
    return batch._replace(model=model)


def first(batch: Batch, count: int) -> Batch:
    """Some of its samples."""
    inputs = tree_map(lambda leaf: leaf[:count], batch.inputs)
    return batch._replace(inputs=inputs, targets=batch.targets[:count])


def diagonal(oracle: Oracle, labels: str) -> Tensor:
    """diag(F), from rows that are formed."""
    return oracle.rows(cotangents(oracle.reference, oracle.lin, labels)).square().sum(0)


@dataclass
class Setting:
    """A batch with two past batches, everything formed.

    Attributes:
        oracle: of the batch.
        past: as evalkit has it.
        constraint: C = F_old G, (P, 2).
    """

    oracle: Oracle
    past: PastTask
    constraint: Tensor

    def projector(self, s: Tensor, damping: float, form: str) -> Tensor:
        """P*, with diag(F_new) + lambda I = s."""
        c, m = self.constraint, self.constraint.shape[1]
        a = c.T @ torch.diag(1 / s) @ c + damping * torch.eye(m).double()
        last = torch.diag(1 / s) if form == "projection" else torch.eye(len(s)).double()
        return torch.eye(len(s)).double() - c @ torch.linalg.pinv(a, hermitian=True) @ c.T @ last

    def direction(self, labels: str, damping: float, form: str) -> Tensor:
        """v as its formula is written."""
        s = diagonal(self.oracle, labels) + damping
        g = self.oracle.reference.gradient
        return self.projector(s, damping, form) @ g / s


@functools.cache
def setting(name: str, labels: str = "exact", dtype: torch.dtype = torch.float64) -> Setting:
    batch: Batch = MADE[name]() if dtype == torch.float64 else CASES[name].make(dtype)
    before = earlier(batch)
    half = max(1, len(batch.targets) // 2)
    parts = [before, first(before, half)]
    past = evalkit.past_task(
        before.model, [(one.inputs, one.targets) for one in parts], before.likelihood, labels
    )
    oracles = [Oracle(one) for one in parts]
    fisher = torch.stack([diagonal(one, labels) for one in oracles]).mean(0)
    gradients = torch.stack([one.reference.gradient for one in oracles], 1)
    return Setting(Oracle(batch), past, fisher[:, None] * gradients)


@pytest.mark.parametrize(("turn", "name"), list(enumerate(NAMES)))
def test_both_forms_are_their_formulas(turn: int, name: str) -> None:
    labels, old = LABELS[turn % 5], LABELS[(turn + 2) % 5]
    given = setting(name, old)
    lin = given.oracle.lin
    for form in FORMS:
        for damping in (1e-2, 1.0):
            found = compute("fopng", lin, damping, labels=labels, form=form, past=given.past)
            wanted = given.direction(labels, damping, form)
            assert near(found.direction(lin), wanted), (form, damping)
            before = given.constraint.T @ (
                given.oracle.reference.gradient / (diagonal(given.oracle, labels) + damping)
            )
            residual = float((given.constraint.T @ wanted).norm() / before.norm())
            assert found.report is not None
            assert found.report.relative_residual == pytest.approx(residual, rel=1e-5, abs=1e-9)


def test_the_projection_is_one_and_meets_its_constraint_and_the_published_form_does_not() -> None:
    given = setting("mlp_categorical")
    lin, s = given.oracle.lin, diagonal(given.oracle, "exact")
    assert float(s.min()) > 1e-9
    residuals: dict[str, list[float]] = {form: [] for form in FORMS}
    for form in FORMS:
        for damping in (1e-3, 1e-6, 1e-9, 0.0):
            d = compute("fopng:labels=exact", lin, damping, form=form, past=given.past)
            assert d.report is not None
            residuals[form].append(d.report.relative_residual)
        v = d.direction(lin)  # undamped
        assert near(v, given.direction("exact", 0.0, form), 1e-7)
        again = given.projector(s, 0.0, form) @ (s * v)
        assert near(again, s * v, 1e-7) == (form == "projection")
    first, second, third, last = residuals["projection"]
    assert second == pytest.approx(1e-3 * first, rel=0.1)
    assert third == pytest.approx(1e-3 * second, rel=0.1)
    assert last < 1e-12
    assert min(residuals["published"]) > 0.1


def test_a_gradient_that_is_orthogonal_already_is_left_as_it_is() -> None:
    oracle = Oracle(CASES["mlp_categorical"].make())
    lin = oracle.lin
    free = oracle.reference.gradient / (diagonal(oracle, "exact") + 1e-3)
    column = Draw(3).normal(lin.num_params)
    column -= (column @ free) / (free @ free) * free
    ones = {name: torch.ones_like(value) for name, value in lin.by_name(column).items()}
    past = PastTask({name: one[None] for name, one in lin.by_name(column).items()}, ones)
    found = compute("fopng:labels=exact", lin, 1e-3, past=past)
    assert near(found.direction(lin), free)
    assert found.report is not None
    assert found.report.relative_residual == 0


def test_where_all_parameters_have_factors_a_past_of_zeros_leaves_the_diagonal() -> None:
    lin = evalkit.linearize(*CASES["mlp_categorical"].make())
    zeros = {name: torch.zeros_like(value) for name, value in lin.parameters.items()}
    past = PastTask({name: value[None] for name, value in zeros.items()}, zeros)
    for damping in (1e-3, 0.0):
        found = evalkit.update("fopng", lin, damping, past=past)
        assert near(found, evalkit.update("diagonal", lin, damping))


@pytest.mark.parametrize("name", ["mlp_categorical", "duplicate_samples", "conv1d_groups"])
def test_float32_scores_are_within_their_errors(name: str) -> None:
    given, seen = setting(name, "improved", torch.float32), []
    for labels in ("exact", "empirical", "sampled"):
        for form in FORMS:
            text = f"fopng:labels={labels}:form={form}"
            table = evalkit.score(
                *given.oracle.batch, text, [1e-12, 1e-6, 1e-3], dtype="float32", past=given.past
            )
            for row in table.itertuples():
                wanted = given.oracle.reference.gamma(given.direction(labels, row.damping, form))
                assert abs(row.gamma / wanted - 1) <= row.error, (text, row.damping)
                seen.append(row.error)
    assert sum(error < 1e-2 for error in seen) > len(seen) / 2


def test_past_tasks_are_joined_and_fit_the_parameters_that_are_left() -> None:
    batch = CASES["convolution_group_norm"].make()
    before = earlier(batch)
    pairs = [(one.inputs, one.targets) for one in (before, first(before, 3))]
    given = before.likelihood, "exact"
    whole = evalkit.past_task(before.model, pairs, *given)
    parts = [evalkit.past_task(before.model, [pair], *given) for pair in pairs]
    assert whole.batches == 2
    text, methods = "fopng:labels=exact", ("sgd", "fopng:labels=exact")
    lin = evalkit.linearize(*batch)
    found = evalkit.update(text, lin, 1e-2, past=parts)
    assert near(found, evalkit.update(text, lin, 1e-2, past=whole), 1e-10)
    left = Oracle(batch).left()
    table = evalkit.score(*batch, methods=methods, damping=1e-2, others="leave", past=whole)
    frozen = evalkit.score(*left.batch, methods=methods, damping=1e-2, past=whole)
    assert table["gamma"].tolist() == pytest.approx(frozen["gamma"].tolist(), rel=1e-9)
    assert table["relative_residual"].isna().tolist() == [True, False]
    assert table["solver"].iloc[1] == "projection"


def test_what_does_not_fit_is_said() -> None:
    batch: Any = CASES["mlp_categorical"].make()
    pairs = [(batch.inputs, batch.targets)]
    past = evalkit.past_task(batch.model, pairs, batch.likelihood)
    other = evalkit.past_task(nn.Linear(2, 2), [(Draw(0).normal(3, 2), torch.arange(3) % 2)])
    lin = evalkit.linearize(*batch)
    for sentence, call in (
        ("past tasks for method 'fopng', found none", lambda: check_request(["fopng"], 1e-3)),
        ("past tasks for method 'fopng'", lambda: evalkit.score(*batch, methods="fopng")),
        ("past tasks for method 'fopng'", lambda: evalkit.update("fopng", lin)),
        ("'past' for all methods", lambda: evalkit.update("fopng:past=1", lin, past=past)),
        ("one of projection, published", lambda: check_request("fopng:form=x", 1, True)),
        ("parameters of the model", lambda: evalkit.update("fopng", lin, past=other)),
        ("parameters", lambda: evalkit.score(*batch, methods=("sgd", "fopng"), past=other)),
        ("past tasks of one model", lambda: PastTask.joined([past, other])),
        ("at least one past task", lambda: PastTask.joined([])),
        ("evalkit.past_task returns", lambda: evalkit.score(*batch, methods="fopng", past=3)),
        ("at least one batch", lambda: evalkit.past_task(batch.model, [])),
        ("batches as pairs", lambda: evalkit.past_task(batch.model, batch.inputs)),
    ):
        with pytest.raises(evalkit.EvalkitError, match=sentence):
            call()

"""The worked example of the documentation: each of its numbers, by evalkit and by the formula."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import evalkit
from tests.support.documents import document, python_files

PAGE = document("concepts/example.md")
J = np.array([[1.0, 1, 1], [2, 0, 1]])
P = np.array([0.75, 0.9])
Y = np.array([1.0, 0])
R, S = P - Y, P * (1 - P)
G = R[:, None] * J
FISHER = J.T @ (S[:, None] * J)
GRAM = G @ G.T
LOSSES = -np.log(np.where(Y == 1, P, 1 - P))
GRADIENT = G.sum(0)
TARGETS = {"ef": np.ones(2), "ief": R**2, "polyak": LOSSES, "fgn": R**2 / S}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's own code makes."""
    found: dict[str, Any] = {}
    exec(python_files(PAGE)["by_hand.py"], found)
    return found


def table(heading: str) -> list[list[str]]:
    """Return the cells of the rows below a heading, code and formulas included."""
    section = PAGE[PAGE.index(f"## {heading}") :].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def numbers(text: str) -> list[float]:
    """Return the numbers of a cell, behind the last sign of equality."""
    return [
        float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text.rpartition("=")[2].replace("−", "-"))
    ]


def close(text: str, *values: Any) -> None:
    """Expect the numbers of a cell, as exactly as they are written."""
    wanted = np.concatenate([np.ravel(np.asarray(value, dtype=float)) for value in values])
    np.testing.assert_allclose(numbers(text), wanted, atol=0.5001e-4, rtol=0)


def test_the_samples(names: dict[str, Any]) -> None:
    lin = names["lin"]
    rows = [row for row in table("The samples") if row[0] in "12"]
    for n, row in enumerate(rows):
        close(row[1], J[n, :2])
        for cell, value in zip(row[2:8], (Y, np.log(3) * J[:, 0], P, LOSSES, R, S), strict=True):
            close(cell, value[n])
        close(row[8], J[n])
        close(row[9], G[n])
        close(row[5], lin.losses[n])
        close(row[6], lin.logit_gradients[n])
        close(row[9], lin.sample_gradients(lin.logit_gradients[None])[n])


def test_the_quantities(names: dict[str, Any]) -> None:
    lin = names["lin"]
    told = {row[0]: row[2] for row in table("The samples") if len(row) == 3}
    upper = np.triu_indices(2)
    identity = torch.eye(3, dtype=torch.float64)
    lengths, logits = lin.gradient_norms, lin.logit_gradient_norms
    by_formula = {
        "loss": LOSSES.sum(),
        "gradient": GRADIENT,
        "Gram matrix": GRAM[upper],
        "tangent kernel": (J @ J.T)[upper],
        "Fisher matrix": FISHER,
        "imbalance": np.sqrt(GRAM[1, 1] / GRAM[0, 0]),
        "logit imbalance": 3.6,
        "target probability": np.exp(-LOSSES).mean(),
        "floor terms": R**2 / S,
        "floor": (R**2 / S).sum() ** -0.5,
    }
    by_toolkit = {
        "loss": lin.losses.sum(),
        "gradient": lin.gradient,
        "Gram matrix": lin.gram[upper],
        "Fisher matrix": torch.stack([lin.fvp(row) for row in identity]),
        "imbalance": lengths.max() / lengths.min(),
        "logit imbalance": logits.max() / logits.min(),
        "floor terms": lin.floor_terms,
        "floor": lin.gamma_floor,
    }
    assert list(told) == ["quantity", *by_formula]
    for found in (by_formula, by_toolkit):
        for name, value in found.items():
            close(told[name], value)


def rows_of(heading: str) -> dict[str, list[str]]:
    return {row[0].split("`")[1]: row for row in table(heading) if row[0].startswith("`")}


def direction(method: str, damping: float, drawn: np.ndarray | None = None) -> np.ndarray:
    """Return a direction by its formula."""
    identity = np.eye(2)
    if method == "sgd":
        return GRADIENT
    if method == "ief-tikhonov":
        return G.T @ np.linalg.solve(GRAM + damping * np.diag(R**2), R**2)
    if method in TARGETS:
        return G.T @ np.linalg.solve(GRAM + damping * identity, TARGETS[method])
    matrix = FISHER if drawn is None else J.T @ (drawn[:, None] ** 2 * J)
    return np.linalg.pinv(matrix + damping * np.eye(3), rcond=1e-10) @ GRADIENT


def test_the_directions(names: dict[str, Any]) -> None:
    rows = rows_of("The directions")
    assert list(rows) == ["sgd", "ef", "ief", "polyak", "fgn", "ngd"]
    model, x, y = names["model"], names["x"], names["y"]
    scores = evalkit.score(model, x, y, "bernoulli", tuple(rows), damping=0.0).set_index("method")
    plain = np.sqrt(GRADIENT @ FISHER @ GRADIENT) / (GRADIENT @ GRADIENT)
    floor = (R**2 / S).sum() ** -0.5
    for method, row in rows.items():
        d = direction(method, 0.0)
        gamma = np.sqrt(d @ FISHER @ d) / (d @ GRADIENT)
        moved = names["lin"].jvp(evalkit.update(method, names["lin"], damping=0.0))
        for values in (
            (J @ d, d @ FISHER @ d, d @ GRADIENT, gamma, gamma / plain, floor / gamma),
            (moved, *(scores.loc[method, ["fisher_norm"]] ** 2), *scores.loc[method, _SCORED]),
        ):
            for cell, value in zip(row[1:], values, strict=True):
                close(cell, value)


_SCORED = ["slope", "gamma", "ratio", "efficiency"]


def test_the_drawn_labels(names: dict[str, Any]) -> None:
    drawn = names["lin"].sampled_logit_gradients(0, 1).flatten()
    told = re.search(
        r"rs = (\(.*?\)).*?r / rs² = (\(.*?\)): γ = ([\d.]+).*?of ([\d.]+\d)\.", PAGE, re.DOTALL
    )
    assert told
    close(told[1], drawn)
    close(told[2], R / drawn.numpy() ** 2)
    batch = names["model"], names["x"], names["y"], "bernoulli"
    row = evalkit.score(*batch, ("sf",), damping=1e-12, seed=0).iloc[0]
    close(told[3], row["gamma"])
    close(told[4], row["efficiency"])


def test_damping(names: dict[str, Any]) -> None:
    rows = rows_of("Damping")
    batch = names["model"], names["x"], names["y"], "bernoulli"
    scores = evalkit.score(*batch, tuple(rows), damping=0.1, seed=0).set_index("method")
    drawn = names["lin"].sampled_logit_gradients(0, 1).flatten().numpy()
    for method, row in rows.items():
        d = direction(method, 0.1, drawn if method == "sf" else None)
        gamma = np.sqrt(d @ FISHER @ d) / (d @ GRADIENT)
        cosine = d @ GRADIENT / np.linalg.norm(d) / np.linalg.norm(GRADIENT)
        efficiency = (R**2 / S).sum() ** -0.5 / gamma
        for cell, value in zip(row[1:], (gamma, efficiency, cosine), strict=True):
            close(cell, value)
        for cell, column in zip(row[1:], ("gamma", "efficiency", "cosine_sgd"), strict=True):
            close(cell, scores.loc[method, column])


def test_the_step_of_the_optimiser(names: dict[str, Any]) -> None:
    """Damping 0.025 of the mean loss is 0.1 of the sum, and its step is d / N."""
    model, x, y = names["model"], names["x"], names["y"]
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    evalkit.optim.IEF(model.parameters(), lr=1.0, damping=0.025, likelihood="bernoulli").step(
        lambda: (model(x), y)
    )
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    np.testing.assert_allclose(before - after, direction("ief", 0.1) / 2, rtol=1e-9)

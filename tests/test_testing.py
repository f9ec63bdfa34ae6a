"""Assertions on quality, and the examples of docs/guides/guard.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import evalkit
from evalkit.checkpoints import open_trajectory
from evalkit.cli import main
from evalkit.testing import assert_quality, checkpoint_batches
from tests.support.documents import FILES, ROOT, document, python_files
from tests.support.folders import BUNDLED, sentence

GUARD = document("guides/guard.md")
WORKFLOW = document("guides/examples/evalkit-gate.yml")


@pytest.fixture(scope="module")
def lin() -> evalkit.Linearization:
    """Return a batch at the middle of the bundled trajectory."""
    batches = checkpoint_batches(BUNDLED, batches=1, batch_size=24)
    return dict(batches)["step-000460, batch 0"]


def iterated(lin: evalkit.Linearization, damping: float) -> Tensor:
    return evalkit.natural_gradient(lin, damping, max_iterations=20).solution


def uphill(lin: evalkit.Linearization, damping: float) -> Tensor:
    return -lin.gradient


def test_what_is_good_enough_passes(lin: evalkit.Linearization) -> None:
    assert_quality(iterated, lin, ratio_at_most=0.9, efficiency_at_least=0.9)
    assert_quality("ngd", [lin, ("again", lin)], efficiency_at_least=0.99)
    assert_quality(lambda lin, damping: lin.gradient, lin, ratio_at_most=1)


@pytest.mark.parametrize(
    ("direction", "bounds", "complaint"),
    [
        (iterated, {"ratio_at_most": 0.1}, "a ratio to SGD of at most 0.1"),
        (iterated, {"efficiency_at_least": 1.1}, "an efficiency of at least 110%"),
        (iterated, {"ratio_at_most": 9.0, "efficiency_at_least": 1.1}, "an efficiency"),
        ("ef", {"ratio_at_most": 1.0}, "a ratio to SGD of at most 1"),
        (uphill, {"ratio_at_most": 9.0}, "a direction of descent"),
        (lambda lin, damping: 0 * lin.gradient, {"ratio_at_most": 9.0}, "a direction of descent"),
        (iterated, {"ratio_at_most": float("nan")}, "a ratio"),
    ],
)
def test_a_missed_bound_names_what_was_obtained(
    lin: evalkit.Linearization, direction: Any, bounds: dict[str, float], complaint: str
) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_quality(direction, [lin, ("the second", lin)], **bounds)
    found = str(caught.value)
    assert f"batch 0: expected {complaint}" in found
    assert re.search(r"obtained ratio \S+, efficiency \S+; for comparison sgd ratio 1, ", found)
    assert ", ief ratio 0." in found
    assert "\n" not in found


def test_the_message_names_method_damping_and_batch(lin: evalkit.Linearization) -> None:
    with pytest.raises(AssertionError, match=r"^iterated at damping 0.001, the second: expected"):
        assert_quality(iterated, [("the second", lin)], damping=1e-3, ratio_at_most=0.1)


def test_requests_that_check_nothing_are_refused(lin: evalkit.Linearization) -> None:
    assert "a bound" in sentence(lambda: assert_quality(iterated, lin))
    assert "one batch" in sentence(lambda: assert_quality(iterated, [], ratio_at_most=1))


@pytest.mark.parametrize(
    "result", [None, torch.zeros(3), torch.full((8970,), torch.nan)], ids=["none", "short", "nan"]
)
def test_what_is_no_direction_is_refused(lin: evalkit.Linearization, result: Any) -> None:
    found = sentence(lambda: assert_quality(lambda lin, damping: result, lin, ratio_at_most=1))
    assert found.startswith("expected method '<lambda>' to return")


def test_batches_are_those_of_a_study() -> None:
    found = list(checkpoint_batches(BUNDLED, batches=2, batch_size=24))
    names = [checkpoint.name for checkpoint in open_trajectory(BUNDLED).checkpoints]
    assert [name for name, _ in found] == [f"{name}, batch {b}" for name in names for b in (0, 1)]
    # Each keeps the parameters of its checkpoint, so that a list of them can be used.
    first, last = found[0][1], found[-1][1]
    assert float(first.losses.mean()) > 10 * float(last.losses.mean())
    assert torch.equal(first.targets, found[2][1].targets)
    product = first.kernel_product(first.logit_gradients)
    torch.testing.assert_close(first.gradient_jvp, product)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a working folder with the files that README and docs/guides/guard.md show."""
    for name, content in {**FILES, **python_files(GUARD)}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_library", None)


def test_the_assertion_of_the_page_passes_and_is_five_lines(folder: Path) -> None:
    source = (folder / "test_my_library.py").read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) == 5
    names: dict[str, Any] = {}
    exec(source, names)
    names["test_quality"]()
    import my_library  # type: ignore[import-not-found]

    names["my_update"] = lambda lin, damping: my_library.my_update(lin, damping) * -1
    with pytest.raises(AssertionError, match="descent"):
        names["test_quality"]()
    last = GUARD[GUARD.rindex("```python\n") + len("```python\n") :].split("```")[0]
    task = evalkit.tasks.loading.load_task("digits-mlp")
    samples = task.training_samples()
    names |= {"evalkit": evalkit, "model": task.build_model(0), "my_update": my_library.my_update}
    names["inputs"], names["targets"] = samples.take(slice(0, 24))
    exec(last, names)


def test_the_commands_of_the_page_and_of_the_workflow(folder: Path) -> None:
    quick = ["--epochs", "3", "--checkpoint-every", "3"]
    assert main(["train", "my_task.py:task", "--out", "my-checkpoints", *quick]) == 0
    lines = [line.split() for line in GUARD.splitlines() if line.startswith("    ")]
    page = [words for words in lines if words[0] in ("evalkit", "rm")]
    folded = re.sub(r"\n +(?=--)", " ", WORKFLOW)
    workflow = [line.split() for line in folded.splitlines() if line.strip().startswith("evalkit")]
    assert [words[:2] for words in page if words[0] == "evalkit"] == [
        *(["evalkit", "score"], ["evalkit", "check"], ["evalkit", "score"], ["evalkit", "check"])
    ]
    assert workflow == page[-2:]
    for words in page:
        if words[0] == "rm":
            shutil.rmtree(words[-1])
        else:
            assert main(words[1:]) == 0
    made = {path.name for path in (folder / "runs" / "gate").rglob("*")}
    assert {"gate.xml", "gate.md", "differences.png", "differences.svg"} <= made

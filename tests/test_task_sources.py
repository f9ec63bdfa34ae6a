"""What tasks are made of and cannot be: one sentence, and exit status 2 on the command line."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")

from evalkit.cli import main
from evalkit.extras import INSTALL
from evalkit.tasks import load_task
from tests.support import hub
from tests.support.folders import sentence


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def cola(own_data_cache: None, tmp_path: Path) -> Path:
    return hub.save_cola(tmp_path / "glue")


def of(model: Path | str, data: Path | str, **settings: str) -> list[str]:
    chosen = {"model": model, "data": data, **settings}
    texts = [f"{name}={value}" for name, value in chosen.items()]
    return ["glue-cola", *(part for text in texts for part in ("--set", text))]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """Train with settings that must be refused, and return the one sentence."""
    out = folder / "checkpoints"
    assert main(["train", *arguments, "--batch-size", "4", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("evalkit: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    assert not out.exists()
    return lines[0]


def test_a_missing_tokenizer(
    bert: Path, cola: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((bert / name).read_bytes())
    text = refused(capsys, tmp_path, *of(bare, cola))
    assert f"expected the files of a tokenizer at '{bare}', found none" in text
    assert "--set tokenizer=PATH" in text
    missing = tmp_path / "missing"
    text = refused(capsys, tmp_path, *of(bert, cola, tokenizer=str(missing)))
    assert f"expected a tokenizer at '{missing}'" in text


def test_a_tokenizer_without_padding(bert: Path, cola: Path, tmp_path: Path) -> None:
    special = {"unk_token": "[UNK]"}
    hub.save_tokenizer(tmp_path / "tokenizer", "$A", list(special.values()), **special)
    settings = {"model": str(bert), "data": str(cola), "tokenizer": str(tmp_path / "tokenizer")}
    text = sentence(load_task("glue-cola", settings).training_samples)
    assert "expected a tokenizer with a padding token" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"label": [-1] * hub.ROWS},
            "labels from 0 to 1 .* \\(unacceptable, acceptable\\), found -1",
        ),
        ({"label": [0, 2] * (hub.ROWS // 2)}, "labels from 0 to 1 .*found 2"),
        ({"label": []}, "columns sentence, label .*found no 'label'"),
        ({"sentence": []}, "columns sentence, label .*found no 'sentence'"),
    ],
)
def test_rows_that_do_not_fit(
    changes: dict[str, Any],
    expected: str,
    bert: Path,
    own_data_cache: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = hub.save_cola(tmp_path / "glue", **changes)
    text = refused(capsys, tmp_path, *of(bert, data))
    assert re.search(expected, text)
    assert str(data) in text


def test_folders_of_one_name_and_rows_that_change(bert: Path, cola: Path, tmp_path: Path) -> None:
    """The library's own cache takes such folders for the same."""
    other = hub.save_cola(tmp_path / "other" / "glue", label=[1] * hub.ROWS)
    for data, expected in ((cola, [0, 1]), (other, [1]), (cola, [0, 1])):
        task = load_task("glue-cola", {"model": str(bert), "data": str(data)})
        assert task.training_samples().targets.unique().tolist() == expected
    hub.save_cola(other, label=[0] * hub.ROWS)
    task = load_task("glue-cola", {"model": str(bert), "data": str(other)})
    assert task.training_samples().targets.unique().tolist() == [0]


def test_a_configuration_that_the_data_lacks(bert: Path, cola: Path) -> None:
    task = load_task("glue-rte", {"model": str(bert), "data": str(cola)})
    text = sentence(task.training_samples)
    assert "expected a data set 'rte' with a split 'train'" in text
    assert "{'data': PATH}" in text


def test_a_folder_that_holds_no_model(
    cola: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, tmp_path, *of(tmp_path, cola))
    assert f"expected a model at '{tmp_path}'" in text
    assert "--set model=PATH" in text


def test_a_model_without_queries_and_values(tmp_path: Path) -> None:
    from evalkit.tasks.pretrained import with_lora

    model = nn.Sequential(nn.Linear(2, 2))
    text = sentence(lambda: with_lora(model, None, bias="none", kept=()))
    assert "projections to queries and values" in text
    assert "Sequential" in text


def test_a_path_from_the_home_folder(
    bert: Path, cola: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(bert)
    monkeypatch.setenv("HOME", str(tmp_path))
    task = load_task("glue-cola", {"model": "~/model", "data": "~/glue"})
    assert len(task.training_samples()) == hub.ROWS
    assert sum(p.requires_grad for p in task.build_model(0).parameters()) == 6


# --- without a network, and without libraries ----------------------------------------------------


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name can be resolved and there is no proxy, as on a machine without a network."""

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


NOWHERE = "no-such-owner/no-such-name"


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("model", {"model": NOWHERE}),
        ("tokenizer", {"tokenizer": NOWHERE}),
        ("data", {"data": NOWHERE}),
    ],
)
def test_no_network_and_no_local_path(
    part: str, changes: dict[str, str], bert: Path, cola: Path, cut_off: None
) -> None:
    import datasets

    task = load_task("glue-cola", {"model": str(bert), "data": str(cola), **changes})
    action: Callable[[], Any] = task.training_samples
    if part == "model":
        action = lambda: task.build_model(0)  # noqa: E731
    before, start = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    text = sentence(action)
    assert time.monotonic() - start < 5
    assert before == datasets.config.HF_HUB_OFFLINE
    assert f"'{NOWHERE}'" in text
    assert "no such path, and no network to ask the hub" in text
    assert f"{{'{part}': PATH}}" in text


def test_local_paths_need_no_network(bert: Path, cola: Path, cut_off: None) -> None:
    task = load_task("glue-cola", {"model": str(bert), "data": str(cola)})
    assert len(task.training_samples()) == hub.ROWS
    assert isinstance(task.build_model(0), nn.Module)


@pytest.mark.parametrize("library", ["transformers", "peft", "datasets"])
def test_a_missing_library(
    library: str,
    bert: Path,
    cola: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    text = refused(capsys, tmp_path, *of(bert, cola))
    assert f"expected the package {library}" in text
    assert INSTALL.format(extra="hf") in text

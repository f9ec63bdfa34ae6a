"""What data, models and settings of a folder may ask for: nothing outside, and nothing endless."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import evalkit
from evalkit.checkpoints import open_trajectory
from evalkit.checkpoints.manifest import read_manifest
from evalkit.checkpoints.saved import find_saved
from evalkit.figures.layouts import SCREEN
from evalkit.report.comparison import compare_folders
from evalkit.storage.json_files import read_object
from evalkit.storage.training_folder import read_training
from evalkit.tasks import load_task
from evalkit.training.resuming import check_same
from tests.fuzz import guards
from tests.support import hub, written_trainings
from tests.support.idx import save_idx
from tests.support.refusals import refusal

# --- names and links -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "x/" * 2000 + "step-1.pt", "ü" * 130 + ".pt"])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    entry = {"file": name, "step": 1, "progress": 1.0}
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps({"format": 1, "checkpoints": [entry]}))
    assert "a file inside the folder" in refusal(lambda: read_manifest(path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert "the name of a file beside" in refusal(lambda: find_saved(tmp_path))


def test_a_run_of_a_folder_that_no_file_system_has(tmp_path: Path) -> None:
    training = written_trainings.write_training(tmp_path / "first")
    run = written_trainings.write_scores(tmp_path / "run", training, {"ief": (0.5, 0.4, 0.3)})
    record = json.loads((run / "run.json").read_text())
    for name in ("x" * 5000, "x\0"):
        (run / "run.json").write_text(json.dumps({**record, "trajectory": name}))
        assert "found nothing at 'x" in refusal(lambda: compare_folders([run]))


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "step-1.pt").symlink_to("step-1.pt")
    assert "a link without end" in refusal(lambda: open_trajectory(tmp_path))


# --- JSON ------------------------------------------------------------------------------------


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    """Which of them counts would depend on the reader."""
    path = tmp_path / "x.json"
    path.write_text('{"a": {"seed": 1, "x": 2, "seed": 3}}')
    assert "found two entries 'seed' of one object" in refusal(lambda: read_object(path))


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", "0.1"), ("schedule", 1), ("x", []), ("epochs", {})]
)
def test_a_recipe_with_values_of_another_kind(name: str, value: object, tmp_path: Path) -> None:
    training = written_trainings.write_training(tmp_path / "first", **{name: value})
    assert f"another value of '{name}'" in refusal(lambda: read_training(training))


@pytest.mark.parametrize("versions", [[1], "x", 5, None])
def test_versions_of_another_kind(versions: object, tmp_path: Path) -> None:
    found = {"versions": {"evalkit": "1", "torch": "2"}}
    said = refusal(lambda: check_same(tmp_path, {"versions": versions}, found))
    assert "expected evalkit to be none" in said or "expected evalkit none" in said


def test_long_texts_are_cut(tmp_path: Path) -> None:
    content = {"format": "x" * 10_000, "checkpoints": []}
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(content))
    assert len(refusal(lambda: read_manifest(path)).replace(str(path), "")) < 300
    content = {"format": 1, "checkpoints": [{"x" * 10_000: 1}]}
    path.write_text(json.dumps(content))
    assert len(refusal(lambda: read_manifest(path)).replace(str(path), "")) < 300
    assert len(refusal(lambda: load_task("x" * 10_000))) < 1000


# --- pictures --------------------------------------------------------------------------------


def test_idx_files_that_unpack_to_more_than_they_say(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", hub.pixels(4, 28, 28), hub.pixels(4) % 10)
    task = load_task("mlp-fashion-mnist", {"data": str(tmp_path)})
    assert len(task.training_samples()) == 4
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for content, said in (
        (whole[:16] + bytes(40_000_000), "found more"),
        (struct.pack(">4I", 2051, 2**31, 28, 28) + bytes(100), "about as large as its pictures"),
        (struct.pack(">4I", 2051, 2**32 - 1, 28, 28), "about as large as its pictures"),
        (struct.pack(">4I", 2051, 4, 2**20, 28), "the shape ('N', 28, 28)"),
        (whole[:-1], "found 3135"),
        (whole[:9], "an IDX file with the number 2051"),
    ):
        path.write_bytes(gzip.compress(content, 1))
        guards.forget_peak()
        before = guards.peak()
        assert said in refusal(task.training_samples)
        assert guards.peak() - before < 20 * 2**20
    path.unlink()
    os.mkfifo(path)
    assert "found a pipe" in refusal(task.training_samples)


def _png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _pictures(folder: Path, cells: list[dict[str, object]]) -> None:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = datasets.Features(
        {"img": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"img": cells, "label": [0] * len(cells)}
    made = datasets.Dataset.from_dict(rows, plain).cast_column("img", datasets.Image())
    folder.mkdir()
    for split in ("train", "test"):
        # Not by the library, which looks for the files that rows name.
        parquet.write_table(made.data.table, folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.usefixtures("own_data_cache")
def test_pictures_of_other_places_and_of_other_sizes(tmp_path: Path) -> None:
    picture = io.BytesIO()
    image = pytest.importorskip("PIL.Image")
    image.fromarray(hub.pixels(1, 32, 32, 3)[0]).save(picture, "PNG")
    (tmp_path / "secret.png").write_bytes(picture.getvalue())
    inside = tmp_path / "inside"
    _pictures(inside, [{"bytes": picture.getvalue(), "path": "x.png"}])
    assert len(load_task("mlp-cifar10", {"data": str(inside)}).training_samples()) == 1
    for number, (cell, said) in enumerate(
        (
            ({"bytes": None, "path": str(tmp_path / "secret.png")}, "inside of the data"),
            ({"bytes": None, "path": "../secret.png"}, "inside of the data"),
            ({"bytes": None, "path": "https://127.0.0.1/x.png"}, "inside of the data"),
            ({"bytes": _png(12_000), "path": "x.png"}, "about as large as their files"),
        )
    ):
        data = tmp_path / f"data-{number}"
        _pictures(data, [cell])
        task = load_task("mlp-cifar10", {"data": str(data)})
        assert said in refusal(task.training_samples)


# --- models and adapters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_hidden_layers", 10**9, "at most 10000 layers"),
        ("vocab_size", 10**8, "the weights of the model"),
        ("intermediate_size", 10**8, "the weights of the model"),
    ],
)
def test_a_configuration_of_a_giant(name: str, value: int, said: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from evalkit.tasks.pretrained import load_model

    folder = hub.save_bert(tmp_path / "model")
    kind = "AutoModelForSequenceClassification"
    load_model(kind, str(folder), num_labels=2)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with guards.watched(tmp_path, seconds=60):
        assert said in refusal(lambda: load_model(kind, str(folder), num_labels=2))


@pytest.mark.parametrize("asked", ["kernels-community/flash-attn2", "x/y:z", "flash_attention_2"])
def test_no_kernel_of_the_hub_is_fetched(asked: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from evalkit.tasks.pretrained import load_model

    folder = hub.save_bert(tmp_path / "model")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attn_implementation": asked}))
    if transformers.AutoConfig.from_pretrained(folder)._attn_implementation != asked:
        pytest.skip("this transformers takes no implementation from a file")
    kind = "AutoModelForSequenceClassification"
    assert "by transformers itself" in refusal(lambda: load_model(kind, str(folder), num_labels=2))


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "rank_pattern"])
def test_patterns_that_would_take_for_ever(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests.support import adapters

    adapters.save_adapter(tmp_path / "checkpoint-1", adapters.lora())
    for pattern in (r"(\w+\.?)+!", r"(a|a)*", r".*.*.*.*.*.*.*.*!", r"(\w{1,}){1,}!"):
        value = {pattern: 2} if name == "rank_pattern" else pattern
        adapters.edit_config(tmp_path / "checkpoint-1", **{name: value})
        with guards.watched(tmp_path, seconds=60):
            assert "without repeated groups" in adapters.refused(tmp_path)
    pattern = r".*\.(query|value)"
    adapters.edit_config(tmp_path / "checkpoint-1", target_modules=pattern, exclude_modules=None)
    adapters.edit_config(tmp_path / "checkpoint-1", rank_pattern={})
    adapters.opened(tmp_path)


# --- the folder that a command is given in ---------------------------------------------------


def test_no_matplotlibrc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "other")
    with matplotlib.rc_context(SCREEN.settings()):
        assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["svg.hashsalt"] == "evalkit"


def test_no_file_of_the_folder_hides_a_package(tmp_path: Path) -> None:
    for name in ("click", "numpy", "torch", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')")
    home = str(Path(evalkit.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-m", "evalkit", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
    )
    assert found.stdout == f"evalkit, version {evalkit.__version__}\n", found.stderr

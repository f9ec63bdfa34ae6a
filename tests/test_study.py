"""The main job: the same rows whatever is scored beside them, resumed where they stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from evalkit import EvalkitError
from evalkit.checkpoints import load_into, open_trajectory, trajectory_task
from evalkit.scoring import score
from evalkit.settings import Settings
from evalkit.storage.run_folder import read_run
from evalkit.storage.tables import BATCHES_FILE, SCORES_FILE, names_of
from evalkit.study.batches import batch_seed, draw_batch
from evalkit.study.running import run_study
from evalkit.tasks.loading import load_code, load_task
from evalkit.updates import registry
from tests.support.folders import BUNDLED

SMALL = Settings(methods=("sgd", "ief", "sf"), batches=2, batch_size=12)


class StopError(Exception):
    """Stands for whatever ends a study early."""


def study(folder: Path, settings: Settings = SMALL, stop_after: int | None = None) -> pd.DataFrame:
    trajectory = open_trajectory(BUNDLED)
    calls = []

    def watch(progress: object) -> None:
        calls.append(progress)
        if stop_after is not None and len(calls) > stop_after:
            raise StopError

    run_study(trajectory, trajectory_task(trajectory), settings, folder, watch)
    return read_run(folder).scores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read or copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    study(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_holds_every_cell_and_the_columns_of_the_contract(finished: Path) -> None:
    run = read_run(finished)
    scores, checkpoints = run.scores, open_trajectory(BUNDLED).checkpoints
    assert tuple(scores.columns) == names_of(SCORES_FILE)
    assert len(scores) == len(checkpoints) * 2 * 3
    assert tuple(run.batches.columns) == names_of(BATCHES_FILE)
    assert (run.batches["num_samples"] == 12).all()
    hashes = [item["sha256"] for item in run.provenance["checkpoints"]]
    assert hashes == [checkpoint.sha256 for checkpoint in checkpoints]
    assert run.provenance["finished"] is not None


def test_a_row_is_what_score_gives_for_that_batch(finished: Path) -> None:
    scores = read_run(finished).scores
    trajectory = open_trajectory(BUNDLED)
    task = trajectory_task(trajectory)
    samples = task.training_samples()
    checkpoint = trajectory.checkpoints[3]
    model = task.build_model(0)
    load_into(model, checkpoint)
    inputs, targets = samples.take(draw_batch(len(samples), 12, 0, 1))
    expected = score(
        model, inputs, targets, methods=SMALL.methods, seed=batch_seed(0, 1, "methods")
    )
    found = scores[(scores["checkpoint"] == checkpoint.name) & (scores["batch"] == 1)]
    pd.testing.assert_frame_equal(
        found[list(expected.columns)].reset_index(drop=True), expected, check_dtype=False, rtol=1e-9
    )


def test_rows_do_not_depend_on_what_is_scored_beside_them(finished: Path, tmp_path: Path) -> None:
    few = read_run(finished).scores
    settings = Settings(methods=("sf", "ef", "sgd", "ief"), batches=3, batch_size=12)
    many = study(tmp_path / "many", settings)
    key = ["checkpoint", "batch", "method"]
    joined = few.merge(many, on=key, suffixes=("", "_many"), validate="one_to_one")
    assert len(joined) == len(few)
    for column in ("gamma", "ratio", "norm"):
        assert (joined[column] == joined[f"{column}_many"]).all()


def test_an_interrupted_study_goes_on_and_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        study(tmp_path / "halves", stop_after=5)
    assert 0 < len(read_run(tmp_path / "halves").batches) < 22
    study(tmp_path / "halves")
    for name in ("scores.csv", "batches.csv"):
        assert (tmp_path / "halves" / name).read_bytes() == (finished / name).read_bytes()


def test_more_batches_extend_a_run(tmp_path: Path) -> None:
    study(tmp_path / "run", Settings(methods=("sgd",), batches=1, batch_size=12))
    scores = study(tmp_path / "run", Settings(methods=("sgd",), batches=3, batch_size=12))
    assert sorted(scores["batch"].unique()) == [0, 1, 2]
    assert read_run(tmp_path / "run").provenance["settings"]["batches"] == 3


def test_fewer_batches_do_not_finish_a_run_that_was_interrupted(tmp_path: Path) -> None:
    """Some checkpoints have batches that others lack: means over them would not be comparable."""
    settings = Settings(methods=("sgd",), batches=3, batch_size=12)
    with pytest.raises(StopError):
        study(tmp_path / "run", settings, stop_after=4)
    study(tmp_path / "run", replace(settings, batches=1))
    assert read_run(tmp_path / "run").provenance["finished"] is None
    study(tmp_path / "run", settings)
    assert read_run(tmp_path / "run").provenance["finished"] is not None


def test_a_finished_run_is_left_as_it_is(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    study(copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_methods_of_another_text_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    code, name = tmp_path / "methods.py", "test_study_scaled"
    text = f"import evalkit\n\n@evalkit.method('{name}')\ndef scaled(lin, damping):\n"
    settings = Settings(methods=("sgd", name), batches=1, batch_size=12)
    try:
        code.write_text(f"{text}    return lin.gradient\n")
        load_code(str(code))
        study(tmp_path / "run", settings)
        provenance = read_run(tmp_path / "run").provenance
        assert provenance["code"] == {"methods.py": sha256(code.read_bytes()).hexdigest()}
        code.write_text(f"{text}    return 2 * lin.gradient\n")
        with pytest.raises(EvalkitError, match="another code"):
            study(tmp_path / "run", replace(settings, batches=2))
    finally:
        registry._METHODS._entries.pop(name, None)


def test_a_task_of_another_text_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    code, settings = tmp_path / "mine.py", Settings(methods=("sgd",), batches=1, batch_size=12)
    code.write_text(
        "import evalkit\nfrom evalkit.tasks import load_task\n"
        "bundled = load_task('digits-mlp')\n\n"
        "def model():\n    return bundled.model()\n\n"
        "def data():\n    return bundled.data()\n\n"
        "task = evalkit.Task(model=model, data=data, likelihood='categorical')\n"
    )
    trajectory, task = open_trajectory(BUNDLED), load_task(f"{code}:task")
    run_study(trajectory, task, settings, tmp_path / "run")
    recorded = read_run(tmp_path / "run").provenance["code"]
    assert recorded == {"mine.py": sha256(code.read_bytes()).hexdigest()}
    code.write_text(code.read_text() + "# edited\n")
    with pytest.raises(EvalkitError, match="another code"):
        run_study(trajectory, task, settings, tmp_path / "run")


@pytest.mark.parametrize(
    "damage",
    [
        {"settings": None},
        {"settings": {"batches": "9"}},
        {"settings": {}},
        {"checkpoints": 5},
        {"checkpoints": ["x"]},
    ],
)
def test_a_damaged_run_is_refused_in_one_sentence(copied: Path, damage: dict[str, Any]) -> None:
    path = copied / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(EvalkitError, match="choose another folder"):
        study(copied)


def test_a_folder_with_another_run_is_refused_and_kept(copied: Path) -> None:
    before = (copied / "scores.csv").read_bytes()
    with pytest.raises(EvalkitError, match="another seed"):
        study(copied, Settings(methods=SMALL.methods, batches=2, batch_size=12, seed=1))
    assert (copied / "scores.csv").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_before_the_first_score(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvalkitError, match=r"made at .*run, found: Not a dir"):
        study(tmp_path / "file" / "run", stop_after=1)


def test_a_study_that_ends_before_the_first_score_leaves_no_folder(tmp_path: Path) -> None:
    settings = replace(SMALL, methods=("ngd:solver=cg",))
    with pytest.raises(EvalkitError, match="StopError"):  # at its first iteration
        study(tmp_path / "some" / "run", settings, stop_after=1)
    assert not list(tmp_path.iterdir())


def test_batches_are_drawn_without_repeats_and_independently() -> None:
    first, second = (draw_batch(100, 40, 0, batch) for batch in (0, 1))
    assert len(set(first.tolist())) == 40
    assert not torch.equal(first, second)
    assert torch.equal(first, draw_batch(100, 40, 0, 0))
    assert not torch.equal(first, draw_batch(100, 40, 1, 0))


def test_the_bundled_trajectory_shows_what_the_readme_says(tmp_path: Path) -> None:
    whole, settings = open_trajectory(BUNDLED), Settings(methods=("sgd", "ef", "ief"), batches=4)
    end = replace(whole, checkpoints=whole.checkpoints[-1:])
    run_study(end, trajectory_task(end), settings, tmp_path / "run")
    last = read_run(tmp_path / "run").scores.groupby("method")["ratio"].mean()
    assert last["ief"] < 1 < last["ef"]


def test_a_sample_without_label_is_refused_before_the_first_score(tmp_path: Path) -> None:
    trajectory = open_trajectory(BUNDLED)
    task = trajectory_task(trajectory)
    samples = task.training_samples()
    targets = samples.targets.clone()
    targets[-1] = -100
    unlabelled = replace(task, data=lambda: (samples.inputs, targets))
    with pytest.raises(EvalkitError, match="label in every sample"):
        run_study(trajectory, unlabelled, SMALL, tmp_path / "run")
    assert not (tmp_path / "run").exists()

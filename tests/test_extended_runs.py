"""A run goes on with the same data and code, is extended, and gets back rows that were lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalkit.checkpoints import open_trajectory
from evalkit.errors import EvalkitError
from evalkit.gate.baseline import update_baseline
from evalkit.storage.lost_rows import lost_rows
from evalkit.storage.run_folder import read_provenance, read_run
from evalkit.study import execution
from evalkit.study.identity import check_same_run
from evalkit.study.notes import notes_on
from evalkit.study.plan import Unit
from evalkit.study.provenance import checkpoint_entry
from evalkit.study.running import Start
from tests.support.small_studies import SMALL, study, tables, task, task_on, tensors


class Watch:
    """Counts the cells that are scored, and what is scored in them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pairs: list[set[tuple[str, float]]] = []
        execute = execution.execute

        def watched(*arguments: Any) -> Any:
            unit = next(one for one in arguments if isinstance(one, Unit))
            self.pairs.append(set(unit.pairs))
            return execute(*arguments)

        patch.setattr(execution, "execute", watched)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize(
    ("first", "steps"),
    [
        ({"methods": ("ef", "sgd")}, (1, 2)),
        ({"dampings": (1e-3,)}, (1, 2)),
        ({"batches": 1}, (1, 2)),
        ({}, (2,)),
        ({"methods": ("ief",), "dampings": (1e-3,), "batches": 1}, (1,)),
    ],
)
def test_an_extended_run_is_one_that_was_asked_for_everything_at_once(
    first: dict[str, Any], steps: tuple[int, ...], tmp_path: Path
) -> None:
    everything = replace(SMALL, methods=("sgd", "ief", "ef"), dampings=(1e-6, 1e-3))
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole").mkdir()
    study(tmp_path / "parts", replace(everything, **first), steps)
    found = study(tmp_path / "parts", everything)
    assert found == study(tmp_path / "whole", everything)
    run, whole = (read_run(tmp_path / name / "run") for name in ("parts", "whole"))
    assert run.provenance["settings"] == whole.provenance["settings"]
    assert run.provenance["checkpoints"] == whole.provenance["checkpoints"]
    assert run.provenance["finished"] is not None
    assert lost_rows(run) == ""


def test_what_is_there_is_not_scored_again(tmp_path: Path, watch: Watch) -> None:
    study(tmp_path)
    watch.pairs.clear()
    study(tmp_path, replace(SMALL, methods=("sgd", "ief", "ef"), dampings=(1e-12, 1e-3)))
    lacking = {("ef", 1e-12), ("ef", 1e-3), ("sgd", 1e-3), ("ief", 1e-3)}
    assert watch.pairs == [lacking] * 4


def test_a_request_for_less_leaves_a_run_as_it_is(tmp_path: Path, watch: Watch) -> None:
    before = study(tmp_path)
    provenance = (tmp_path / "run" / "run.json").read_bytes()
    watch.pairs.clear()
    assert study(tmp_path, replace(SMALL, methods=("ief",), batches=1)) == before
    assert (tmp_path / "run" / "run.json").read_bytes() == provenance
    assert watch.pairs == []


def test_an_extension_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.done == 1:
            raise StopError

    (tmp_path / "parts").mkdir()
    (tmp_path / "whole").mkdir()
    more = replace(SMALL, methods=("sgd", "ief", "ef"))
    study(tmp_path / "parts")
    with pytest.raises(StopError):
        study(tmp_path / "parts", more, on_progress=stop)
    run = read_run(tmp_path / "parts" / "run")
    assert run.provenance["finished"] is None
    assert "3 of 12 rows are missing" in lost_rows(run)
    assert study(tmp_path / "parts", more) == study(tmp_path / "whole", more)


def test_a_checkpoint_that_is_gone_or_another_is_refused(tmp_path: Path) -> None:
    before = study(tmp_path)
    path = tmp_path / "checkpoints" / "step-1.pt"
    saved, state = path.read_bytes(), torch.load(path)
    torch.save({name: value + 1 for name, value in state.items()}, path)
    with pytest.raises(EvalkitError, match="another checkpoint 'step-1'"):
        study(tmp_path, steps=())
    path.write_bytes(saved)
    opened = open_trajectory(tmp_path / "checkpoints")
    keyed = [replace(checkpoint, key="ema") for checkpoint in opened.checkpoints]
    known = [checkpoint_entry(checkpoint) for checkpoint in opened.checkpoints]
    earlier = read_provenance(tmp_path / "run")
    assert earlier["checkpoints"] == known
    now = earlier | {"checkpoints": [checkpoint_entry(checkpoint) for checkpoint in keyed]}
    with pytest.raises(EvalkitError, match=r"another checkpoint 'step-1'.*, key ema"):
        check_same_run(tmp_path / "run", earlier, now)
    path.unlink()
    with pytest.raises(EvalkitError, match="'step-1' is: in the run instead of missing"):
        study(tmp_path, steps=())
    assert tables(tmp_path) == before


@pytest.mark.parametrize("line", [2, 8])
def test_a_lost_row_is_told_and_scored_again(line: int, tmp_path: Path, watch: Watch) -> None:
    whole = study(tmp_path)
    path = tmp_path / "run" / "scores.csv"
    lines = whole[0].splitlines(True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    found = lost_rows(read_run(tmp_path / "run"))
    assert "1 of 8 rows is missing" in found
    with pytest.raises(EvalkitError, match="1 of 8 rows is missing"):
        update_baseline(tmp_path / "baseline.csv", read_run(tmp_path / "run"))
    watch.pairs.clear()
    assert study(tmp_path) == whole
    assert [len(pairs) for pairs in watch.pairs] == [1]


def test_a_lost_batch_is_told_and_scored_again(tmp_path: Path) -> None:
    whole = study(tmp_path)
    path = tmp_path / "run" / "batches.csv"
    path.write_bytes(b"".join(whole[1].splitlines(True)[:-1]))
    assert "the rows of 1 of 4 batches are missing" in lost_rows(read_run(tmp_path / "run"))
    assert study(tmp_path) == whole


@pytest.mark.parametrize("changed", ["inputs", "targets"])
def test_other_data_do_not_go_on_with_a_run(changed: str, tmp_path: Path) -> None:
    inputs, targets = tensors()
    known = task_on(inputs.clone(), targets.clone())
    if changed == "inputs":
        inputs[-1, -1] += 1e-6
    else:
        targets[-1] = (targets[-1] + 1) % 3
    # Batches of all samples: the one that changed is drawn.
    settings = replace(SMALL, methods=("sgd",), batch_size=64)
    before = study(tmp_path, settings, task=known)
    for request in (settings, replace(settings, batches=5), replace(settings, methods=("ief",))):
        with pytest.raises(EvalkitError, match=r"expected batch 0 to hold the data"):
            study(tmp_path, request, task=task_on(inputs, targets))
    with pytest.raises(EvalkitError, match="another batch_size"):
        study(tmp_path, replace(settings, batch_size=8), task=known)
    assert tables(tmp_path) == before


def test_data_that_change_between_checkpoints_are_refused(tmp_path: Path) -> None:
    class Drifting(torch.utils.data.Dataset):
        calls = 0

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            Drifting.calls += 1
            return torch.full((8,), float(Drifting.calls)), index % 3

    with pytest.raises(EvalkitError, match="draw nothing at random"):
        study(tmp_path, task=task(Drifting))


def test_what_a_data_set_draws_at_random_is_the_same_at_every_checkpoint(tmp_path: Path) -> None:
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            noise = np.random.rand()  # noqa: NPY002 (as augmentations draw)
            return torch.randn(8) + noise, index % 3

    study(tmp_path, task=task(Noisy))
    batches = read_run(tmp_path / "run").batches
    assert (batches.groupby("batch")["data_sha256"].nunique() == 1).all()
    assert batches["data_sha256"].nunique() == 2


def test_a_run_without_hashes_goes_on(tmp_path: Path) -> None:
    """As runs of earlier versions are."""
    whole = study(tmp_path)
    path = tmp_path / "run" / "batches.csv"
    lines = whole[1].decode().splitlines()
    path.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in lines[:-1]))
    study(tmp_path)
    assert read_run(tmp_path / "run").batches["data_sha256"].notna().tolist() == [False] * 3 + [
        True
    ]


def test_what_is_known_before_the_first_score(tmp_path: Path) -> None:
    starts: list[Start] = []
    settings = replace(SMALL, batch_size=60)
    study(tmp_path, settings, on_start=starts.append)
    assert [start.cells for start in starts] == [4]
    assert starts[0].seconds > 0
    rank, overlap = starts[0].notes
    assert "120 free outputs (60 samples of 2) and the model 27 parameters" in rank
    assert "lower `batch_size` to 13 or less" in rank
    assert "94% of a batch are in any other" in overlap
    assert notes_on(read_run(tmp_path / "run").provenance) == starts[0].notes
    study(tmp_path, settings, on_start=starts.append)
    assert len(starts) == 1


@pytest.mark.parametrize("batches", [10**10, 2**62])
def test_more_batches_than_anyone_can_score(batches: int, tmp_path: Path) -> None:
    study(tmp_path)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["settings"]["batches"], record["finished"] = batches, None
    path.write_text(json.dumps(record))
    study(tmp_path)
    assert read_run(tmp_path / "run").provenance["finished"] is None

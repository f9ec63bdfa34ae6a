"""A study of several ranks or shards: the tables of one process, to the last byte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

import evalkit.study.loaded
from evalkit.checkpoints import Checkpoint, open_trajectory
from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.launch import Launch, Shard
from evalkit.storage.run_folder import read_run
from evalkit.study.loaded import Loaded, read_through
from evalkit.study.ranks import Ranks
from evalkit.study.running import Progress
from evalkit.work import Rates, machine_rates
from tests.support.folders import BUNDLED
from tests.support.small_studies import SMALL, model, save_checkpoint, study, tables

LAUNCH = Launch(0, 2, 0, 2, 0, "localhost", 0, True)
SETTINGS = replace(SMALL, batches=4)
STEPS = (1, 2, 3)


class KilledError(BaseException):
    """Stands for the end of a process: nothing is said or closed."""


STARTED: list[Ranks] = []


@pytest.fixture
def store() -> Iterator[dist.Store]:
    yield dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for ranks in STARTED:
        ranks._ended.set()
        ranks._heart.join()
    STARTED.clear()


def rank(store: dist.Store, number: int, restart: int = 0, world: int = 2) -> Ranks:
    launch = replace(LAUNCH, rank=number, restart=restart, world=world)
    ranks = Ranks(launch, store, beat=0.01, dead=0.1)
    STARTED.append(ranks)
    return ranks


def killed_after(count: int, ranks: Ranks, folder: Path) -> None:
    """Let a rank be killed when it has stored so many cells, the last one told to nobody."""
    calls = 0

    def watch(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls > count:  # the first call is at the start
            ranks._ended.set()
            raise KilledError

    with pytest.raises(KilledError):
        study(folder, SETTINGS, STEPS, ranks=ranks, on_progress=watch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    return study(tmp_path_factory.mktemp("alone"), SETTINGS, STEPS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_killed_rank_is_gone_on_with_by_another(
    store: dist.Store, tmp_path: Path, expected: tuple[bytes, bytes], count: int
) -> None:
    killed_after(count, rank(store, 1), tmp_path)
    seen: list[Progress] = []
    assert study(tmp_path, SETTINGS, STEPS, ranks=rank(store, 0), on_progress=seen.append) == (
        expected
    )
    assert not (tmp_path / "run" / "parts").exists()
    assert seen[-1].done == seen[-1].total == 12
    assert seen[0].done == count  # those of the other rank


@pytest.mark.parametrize(
    ("world", "restart"), [(2, 1), (3, 0), (1, 0)], ids=["again", "more ranks", "one rank"]
)
def test_the_next_start_goes_on_with_any_number_of_ranks(
    store: dist.Store, tmp_path: Path, expected: tuple[bytes, bytes], world: int, restart: int
) -> None:
    killed_after(3, rank(store, 0), tmp_path)
    killed_after(2, rank(store, 1), tmp_path)
    assert len(read_run(tmp_path / "run").batches) == 5
    assert study(tmp_path, SETTINGS, STEPS, ranks=rank(store, 0, restart, world)) == expected


def test_a_process_alone_goes_on_too(
    store: dist.Store, tmp_path: Path, expected: tuple[bytes, bytes]
) -> None:
    killed_after(3, rank(store, 1), tmp_path)
    assert study(tmp_path, SETTINGS, STEPS) == expected


def test_a_rank_that_finds_nothing_left_ends(store: dist.Store, tmp_path: Path) -> None:
    before = study(tmp_path, SETTINGS, STEPS, ranks=rank(store, 0))
    assert study(tmp_path, SETTINGS, STEPS, ranks=rank(store, 1)) == before


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_in_any_order_make_the_same_tables(
    tmp_path: Path, expected: tuple[bytes, bytes], order: tuple[int, ...]
) -> None:
    for number in order:
        study(tmp_path, SETTINGS, STEPS, shard=Shard(number, 3))
        assert (tmp_path / "run" / "parts").exists() == (number != order[-1])
    assert tables(tmp_path) == expected


def test_each_checkpoint_is_loaded_once(
    store: dist.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = evalkit.study.loaded.load_into

    def counted(model: object, checkpoint: Checkpoint) -> None:
        loads.append(checkpoint.name)
        load(model, checkpoint)

    monkeypatch.setattr(evalkit.study.loaded, "load_into", counted)
    study(tmp_path, SETTINGS, STEPS, ranks=rank(store, 0))
    assert loads == ["step-1", "step-2", "step-3"]


def test_a_store_that_is_gone_is_told_where_units_are_left(tmp_path: Path) -> None:
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
    ranks = rank(client, 1)
    ranks._ended.set()
    held = [server]
    del server
    with pytest.raises(EvalkitError, match=r"11 batches left.*the same command goes on"):
        study(
            tmp_path,
            SETTINGS,
            STEPS,
            ranks=ranks,
            on_start=lambda start: held.clear(),
        )


def test_all_writers_choose_by_the_rates_of_the_run(
    store: dist.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Solvers are chosen by how fast the machine is found to be, which differs by process."""
    found: list[Rates] = []
    measured = [Rates(2.0**30, 2.0**29, 2.0**20), Rates(2.0**40, 2.0**39, 2.0**10)]

    def noted(start: object) -> None:
        import torch

        found.append(machine_rates(torch.device("cpu")))

    for number, rates in enumerate(measured, start=1):
        monkeypatch.setattr("evalkit.work._measured", lambda *_, rates=rates: rates)
        study(tmp_path, SETTINGS, STEPS, shard=Shard(number, 2), on_start=noted)
    assert found == [measured[0], measured[0]]


def test_the_next_checkpoint_is_read_ahead_where_loading_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "evalkit.study.loaded.read_through", lambda checkpoint: read.append(checkpoint.name)
    )
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step)
    checkpoints = open_trajectory(tmp_path).checkpoints
    after = {"step-1": "step-2", "step-2": "step-3", "step-3": "step-4"}
    clock = iter([0.0, 1.0, 10.0, 11.0, 1000.0, 1001.0, 1002.0, 1003.0])
    monkeypatch.setattr("evalkit.study.loaded.time.monotonic", lambda: next(clock))
    loaded = Loaded(model(), checkpoints, None, after.get)
    for name in ("step-1", "step-1", "step-2", "step-3", "step-4"):
        loaded.hold(name)
        for thread in threading.enumerate():
            if thread is loaded._reading:
                thread.join()
    # The first load tells nothing, the second took a second of ten, the third one of a thousand.
    assert read == ["step-3"]


def test_what_memory_would_not_hold_twice_is_not_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1)
    checkpoint = open_trajectory(tmp_path).checkpoints[0]
    read_through(checkpoint)
    monkeypatch.setattr(Path, "open", None)
    with pytest.raises(TypeError):
        read_through(checkpoint)
    monkeypatch.setattr("evalkit.study.loaded.free_memory", lambda: 100)
    read_through(checkpoint)


@pytest.mark.parametrize(
    ("number", "more", "said"),
    [
        ("0", ["--shard", "1/2"], "--shard without torchrun"),
        ("1", ["--shard", "1/2"], ""),
        ("0", ["--shard", "3/2"], "from 1/2 to 2/2"),
        ("1", ["--batches", "many"], ""),
    ],
)
def test_one_rank_says_what_is_wrong_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: str,
    more: list[str],
    said: str,
) -> None:
    given = {"RANK": number, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["score", str(BUNDLED), *more]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert bool(said) == bool(printed)


def test_a_shard_does_not_start_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(BUNDLED), "--shard", "1/2", "--fresh"]) == 2
    assert "--shard without --fresh" in capsys.readouterr().err


def test_ranks_and_shards_of_the_command(tmp_path: Path) -> None:
    """Two ranks of torchrun, and two shards: the tables of one process."""
    asked = ["score", str(BUNDLED), "--batches", "2", "--batch-size", "8"]
    asked += ["--methods", "sgd,ief", "--out"]
    assert main([*asked, str(tmp_path / "alone")]) == 0
    for shard in ("2/2", "1/2"):
        assert main([*asked, str(tmp_path / "shards"), "--shard", shard]) == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*start, "-m", "evalkit", *asked, str(tmp_path / "ranks")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Tables in") == 1
    # By the time of a product of rank 0, which the other may have left without a batch.
    assert run.stderr.count("batches to score") <= 1
    for folder in ("shards", "ranks"):
        for name in ("scores.csv", "batches.csv"):
            found, alone = (tmp_path / place / name for place in (folder, "alone"))
            assert found.read_bytes() == alone.read_bytes(), (folder, name)

"""The order of checkpoints by their names: right or refused, never a guess."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from evalkit.checkpoints import open_trajectory
from evalkit.cli import main
from tests.support.folders import model, save, sentence


def folder_with(folder: Path, names: list[str]) -> Path:
    for name in names:
        save(folder / f"{name}.ckpt", {"w": torch.zeros(1)})
    return folder


def order_of(folder: Path, **options: object) -> list[str]:
    return [c.name for c in open_trajectory(folder, **options).checkpoints]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ordered", "progress"),
    [
        (["epoch=0-val_acc=33", "epoch=1-val_acc=95", "epoch=2-val_acc=81"], [0, 0.5, 1]),
        (["epoch=9-acc=10-v1", "epoch=10-acc=2"], [0.9, 1]),
        (["epoch=1-step=20", "epoch=2-step=40"], [0.5, 1]),
        (["epoch1_step500", "epoch1_step900", "epoch2_step100"], [0, 0.5, 1]),
        (["epoch1step500", "epoch2step1000"], [0.5, 1]),
        (["acc_95_iter_5", "acc_90_iter_10"], [0.5, 1]),
        (["5_epochs", "10_epochs"], [0.5, 1]),
        (["500steps", "1000steps"], [0.5, 1]),
        (["vit_b16_ep5", "vit_b16_ep10"], [0.5, 1]),
        (["step_20_of_1000", "step_100_of_1000"], [0.2, 1]),
        (["model_500", "model_2.5k", "model_10k"], [0.05, 0.25, 1]),
        (["step=5k", "step=1M"], [0.005, 1]),
        (["model_20240501_2300", "model_20240502_0100", "model_20240502_0200"], [0, 0.5, 1]),
        (["model_2024-05-31", "model_2024-06-01"], [0, 1]),
        (["m_1714550000", "m_1714560000"], [0, 1]),
        (["model_20240501_500", "model_20240501_10k"], [0.05, 1]),
        (["5_acc85", "10_acc80"], [0.5, 1]),
        (["lr1e-4_10", "lr1e-4_20"], [0.5, 1]),
        (["weights.10-0.95", "weights.20-0.85"], [0.5, 1]),
        (["ckpt-5", "ckpt-10"], [0.5, 1]),
    ],
)
def test_names_that_tell_the_order(
    tmp_path: Path, ordered: list[str], progress: list[float]
) -> None:
    folder_with(tmp_path, ordered)
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ordered
    assert [c.progress for c in trajectory.checkpoints] == pytest.approx(progress)
    assert f"{len(ordered)} checkpoints, by " in trajectory.notes[-1]
    assert trajectory.notes[-1].endswith(", ".join(ordered))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["acc_95", "acc_90"], "only the number after 'acc'"),
        (["seed_1", "seed_2"], "only the number after 'seed'"),
        (["model-v1", "model-v2"], "only the number after 'v'"),
        (["resnet18", "vgg16"], "names that differ in more than a number"),
        (["begin", "end"], "names that differ in more than a number"),
        (["best", "last"], "names that differ in more than a number"),
        (["e1_s100", "e2_s50"], "several numbers"),
        (["run1_100", "run2_200"], "several numbers"),
        (["model_20240501_500", "model_20240502_100"], "a time and a number that disagree"),
        (["step_1e4", "step_1e5"], "one whole number after 'step'"),
        (["epoch=1.5", "epoch=2"], "one whole number after 'epoch'"),
        (["epoch1_best_epoch2", "epoch3_best_epoch2"], "one whole number after 'epoch'"),
        (["112px", "224px"], "other units"),
        (["loss0.5", "loss0.7"], "no whole number"),
        (["iter=5-step=7", "iter=6-step=6"], "that disagree"),
        (["step-1", "begin"], "'begin' without one"),
        (["step-1", "0002"], "names that differ in more than a number"),
    ],
)
def test_names_that_tell_none(tmp_path: Path, names: list[str], found: str) -> None:
    folder_with(tmp_path, names)
    text = sentence(lambda: open_trajectory(tmp_path))
    assert found in text
    assert "pass `order`: name, time, or the names" in text
    assert order_of(tmp_path, order=[f"{names[1]}.ckpt", names[0]]) == [names[1], names[0]]


@pytest.mark.parametrize(
    "aside", ["last", "best", "final", "model_best", "best-epoch=2", "ema_epoch=2"]
)
def test_asides_beside_numbered_checkpoints(tmp_path: Path, aside: str) -> None:
    folder_with(tmp_path, ["epoch=1", "epoch=2", aside])
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["epoch=1", "epoch=2"]
    assert f"set aside: {aside}.ckpt" in trajectory.notes[0]
    chosen = open_trajectory(tmp_path, order=["epoch=1", aside])
    assert [(c.name, c.progress) for c in chosen.checkpoints] == [("epoch=1", 0.0), (aside, 1.0)]


def test_asides_among_folders(tmp_path: Path) -> None:
    for name in ("step-1", "step-2", "final"):
        save(tmp_path / name / "model.safetensors", model().state_dict())
    trajectory = open_trajectory(tmp_path)
    assert [c.name for c in trajectory.checkpoints] == ["step-1", "step-2"]
    assert "set aside: final" in trajectory.notes[0]


def test_a_second_run_in_the_folder(tmp_path: Path) -> None:
    folder_with(tmp_path, ["epoch=1", "epoch=2", "last", "last-v1"])
    text = sentence(lambda: open_trajectory(tmp_path))
    assert "'last-v1', which a second run writes" in text
    assert order_of(tmp_path, order=["epoch=1", "last-v1"]) == ["epoch=1", "last-v1"]


def test_orders_to_choose(tmp_path: Path) -> None:
    folder_with(tmp_path, ["a_10_3", "a_9_4", "a_2_5"])
    assert order_of(tmp_path, order="name") == ["a_2_5", "a_9_4", "a_10_3"]
    for seconds, name in enumerate(["a_9_4", "a_2_5", "a_10_3"]):
        os.utime(tmp_path / f"{name}.ckpt", (seconds, seconds))
    assert order_of(tmp_path, order="time") == ["a_9_4", "a_2_5", "a_10_3"]
    os.utime(tmp_path / "a_2_5.ckpt", (0, 0))
    assert "two of one time" in sentence(lambda: open_trajectory(tmp_path, order="time"))
    chosen = open_trajectory(tmp_path, order=["a_10_3", "a_9_4"])
    assert [c.name for c in chosen.checkpoints] == ["a_10_3", "a_9_4"]
    assert "set aside: a_2_5.ckpt (not in `order`)" in chosen.notes[0]
    for wrong, found in (
        (["a_9_4", "a_9_5"], "did you mean 'a_9_4'"),
        (["a_9_4", "a_9_4"], "'a_9_4' twice"),
        ([], "found nothing"),
    ):
        assert found in sentence(lambda wrong=wrong: open_trajectory(tmp_path, order=wrong))


TASK = """
import torch
import evalkit


def model():
    return torch.nn.Linear(3, 2)


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=generator), torch.arange(8) % 2


task = evalkit.Task(model=model, data=data)
"""


def test_the_order_is_printed_before_the_first_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "order_task.py"
    task.write_text(TASK)
    for name in ("b", "a"):
        state = {f"net.{n}": v for n, v in torch.nn.Linear(3, 2).state_dict().items()}
        other = {f"dis.{n}": v + 1 for n, v in torch.nn.Linear(3, 2).state_dict().items()}
        save(tmp_path / "run" / f"{name}.pt", {**state, **other})
    command = ["score", str(tmp_path / "run"), "--task", f"{task}:task", "--batches", "1"]
    command += ["--batch-size", "4", "--methods", "sgd", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "pass --order" in capsys.readouterr().err
    assert main([*command, "--order", "b,a"]) == 2
    assert "choose with --key, as in --key" in capsys.readouterr().err
    assert main([*command, "--order", "b,a", "--key", "net"]) == 0
    printed = capsys.readouterr().out
    assert printed.index(
        "2 checkpoints, as --order names them, equally spaced: b, a"
    ) < printed.index("gamma relative")
    assert main([*command, "--order", "b,a", "--key", "dis"]) == 2
    assert "another checkpoint 'b'" in capsys.readouterr().err

"""Whole inputs, as evalkit and training libraries write them: small, and read without errors."""

from __future__ import annotations

import argparse
import json
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import nn

from evalkit.checkpoints.tensors import read_tensor_file
from evalkit.storage.run_folder import append_failure
from evalkit.tasks import Recipe, Task
from evalkit.tasks.families import register
from evalkit.training import train
from tests.support import folders, hub, idx, written_runs, written_trainings

INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()


def small_model(seed: int = 0) -> nn.Module:
    return folders.model(seed)


def _model() -> nn.Module:
    return folders.model(0)


@cache
def small_task() -> Task:
    """Return the registered task ``fuzzed``."""
    recipe = Recipe(learning_rate=0.05, epochs=4, batch_size=6, checkpoint_every=1)
    task = Task(model=_model, data=lambda: (INPUTS, LABELS), recipe=recipe, name="fuzzed")
    return register(task)


def safetensors_files(folder: Path) -> None:
    for step in (0, 5):
        folders.save(folder / f"step-{step}.safetensors", small_model(step).state_dict())


def pickle_files(folder: Path) -> None:
    for step, suffix in ((0, "pt"), (5, "bin")):
        folders.save(folder / f"step-{step}.{suffix}", small_model(step).state_dict())


def old_pickles(folder: Path) -> None:
    torch.save(
        small_model(0).state_dict(), folder / "step-0.pth", _use_new_zipfile_serialization=False
    )


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def wrapped_files(folder: Path) -> None:
    """As training scripts and Lightning save them."""
    model = small_model(1)
    optimizer = _optimizer(model).state_dict()
    script = {
        "epoch": 1,
        "args": argparse.Namespace(lr=1e-3, name="x"),
        "model": model.state_dict(),
        "optimizer": optimizer,
        "ema": {name: value * 2 for name, value in model.state_dict().items()},
        "best": float("nan"),
    }
    folders.save(folder / "epoch-1.pth", script)
    lightning = {
        "epoch": 2,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x"}},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "hyper_parameters": {"width": 3, "betas": (0.9, 0.95)},
    }
    folders.save(folder / "epoch-2.ckpt", lightning)


def sharded(folder: Path) -> None:
    for name, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        place = folder / ("checkpoint-1" if name == "model" else "checkpoint-2")
        state = list(small_model(2).state_dict().items())
        where = {}
        for part, items in enumerate((state[:2], state[2:]), start=1):
            shard = f"{name}-0000{part}-of-00002.{ending}"
            folders.save(place / shard, dict(items))
            where |= {key: shard for key, _ in items}
        index = {"metadata": {"total_size": 92}, "weight_map": where}
        (place / f"{name}.{ending}.index.json").write_text(json.dumps(index))


def distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as distributed_checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed_checkpoint.save(
            {"model": small_model().state_dict()}, checkpoint_id=folder / "step-1", no_dist=True
        )


def _trainer_state(step: int) -> str:
    history = [{"epoch": 0.5, "loss": 0.7, "step": 1}, {"epoch": 1.0, "loss": 0.6, "step": 2}]
    state = {"epoch": step / 4, "global_step": step, "max_steps": 8, "log_history": history}
    return json.dumps({**state, "best_metric": None, "is_world_process_zero": True})


def trainer_folders(folder: Path) -> None:
    for step in (4, 8):
        place = folder / f"checkpoint-{step}"
        folders.save(place / "model.safetensors", small_model(step).state_dict())
        (place / "trainer_state.json").write_text(_trainer_state(step))
        (place / "config.json").write_text('{"model_type": "x"}')


def manifests(folder: Path) -> None:
    folders.with_manifest(folder, settings={"width": 3, "name": "x"}, seed=0)


def optimizer_states(folder: Path) -> None:
    """As evalkit, the Trainer and scripts write them."""
    for step in (1, 2):
        place = folder / f"checkpoint-{step}"
        model = small_model(step)
        state = _optimizer(model).state_dict()
        folders.save(place / "model.safetensors", model.state_dict())
        if step == 1:
            folders.save(place / "optimizer.pt", state)
            (place / "trainer_state.json").write_text(_trainer_state(1))
        else:
            names = [[name for name, _ in model.named_parameters()]]
            settings = {"learning_rate": 1e-3, "weight_decay": 0.01}
            own = {"optimizer": "adamw", "settings": settings, "names": names, "step": 2}
            folders.save(folder / "checkpoint-2.optimizer.pt", {**own, "state_dict": state})


def unfinished(folder: Path) -> None:
    """A training that stopped after its second checkpoint."""

    place = folder / "training"
    train(small_task(), folder=place, seed=0)
    manifest = json.loads((place / "trajectory.json").read_text())
    kept = [entry for entry in manifest["checkpoints"] if entry["epoch"] < 4]
    for entry in manifest["checkpoints"]:
        if entry not in kept:
            (place / entry["file"]).unlink()
            (place / entry["optimizer"]).unlink()
    (place / "trajectory.json").unlink()
    (place / "unfinished.json").write_text(json.dumps({**manifest, "checkpoints": kept}))
    lines = (place / "history.csv").read_text().splitlines(True)
    (place / "history.csv").write_text("".join(lines[: 1 + kept[-1]["step"]]))


def trainings(folder: Path) -> None:
    for name, losses in (("first", (2.0, 1.0, 0.5)), ("second", (2.0, 1.5, 1.0))):
        optimizer = "sgd" if name == "first" else "adamw"
        written_trainings.write_training(folder / name, optimizer, losses=losses)
    ratios = {"ief": (0.5, 0.4, 0.3)}
    written_trainings.write_scores(folder / "run", folder / "first", ratios)


def runs(folder: Path) -> None:
    """A run of which a later start is to score a cell that failed."""
    _run(folder, batches=4)
    row = {"checkpoint": ["last"], "step": [5], "progress": [1.0], "batch": [3]}
    append_failure(folder / "run", {**row, "reason": ["expected memory, found none; buy some"]})


def _run(folder: Path, batches: int) -> None:
    """A run with three batches at each of two checkpoints, of so many that are asked for."""
    rows = [written_runs.score_row("sgd", 1.0), written_runs.score_row("ief", 0.5)]
    rows.append(written_runs.ngd_row(0.3, solver="cg", error=1e-5, dtype="float32"))
    cells = [
        written_runs.cell(name, step, step / 5, batch, rows)
        for step, name in ((0, "first"), (5, "last"))
        for batch in range(3)
    ]
    listed = [{"name": name, "sha256": "ab" * 32, "step": 0} for name in ("first", "last")]
    settings = {
        "methods": ["sgd", "ief", "ngd"],
        "dampings": [1e-12],
        "seed": 0,
        "batches": batches,
    }
    settings |= {"batch_size": 8, "likelihood": "categorical", "dtype": "float32"}
    written_runs.write_run(
        folder / "run",
        cells,
        {
            **written_runs.PROVENANCE,
            "settings": settings,
            "checkpoints": listed,
            "trainable_parameters": 23,
            "training_samples": 100,
            "outputs_per_sample": 1.5,
            "without_factors": ["x"],
        },
    )


def extended_runs(folder: Path) -> None:
    from evalkit.cli import main

    small_task()
    safetensors_files(folder / "checkpoints")
    place, out = str(folder / "checkpoints"), str(folder / "run")
    sizes = ["--batches", "2", "--batch-size", "4"]
    main(["score", place, "--task", "fuzzed", "--methods", "sgd", *sizes, "--out", out])


def baselines(folder: Path) -> None:
    from evalkit.gate.baseline import update_baseline
    from evalkit.storage.run_folder import read_run

    _run(folder, batches=3)
    update_baseline(folder / "baseline.csv", read_run(folder / "run"))


def settings(folder: Path) -> None:
    content = {"task": "mlp-cifar10", "settings": {"data": "x", "widths": "4-4", "samples": "3"}}
    (folder / "settings.json").write_text(json.dumps(content))


def adapters(folder: Path) -> None:
    import peft

    for step in (1, 2):
        config = peft.LoraConfig(r=2, target_modules=["0", "2"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(small_model(), config)
            adapted.save_pretrained(folder / f"checkpoint-{step}")
    path = folder / "checkpoint-2" / "adapter_model.safetensors"
    folders.save(
        path.with_name("adapter_model.bin"),
        read_tensor_file(path),
    )
    path.unlink()


def model_folders(folder: Path) -> None:
    hub.save_bert(folder / "model")


def text_data(folder: Path) -> None:
    hub.save_bert(folder / "model")
    (folder / "data").mkdir()
    hub.save_cola(folder / "data")


def picture_data(folder: Path) -> None:
    (folder / "data").mkdir()
    hub.save_pictures(folder / "data", list(hub.pixels(6, 32, 32, 3)))


def idx_data(folder: Path) -> None:
    (folder / "data").mkdir()
    for part in ("train", "t10k"):
        pixels = hub.pixels(20, 28, 28)
        idx.save_idx(folder / "data", part, pixels, hub.pixels(20) % 10)

"""The readers that are fuzzed: what a whole input of each is, and what reads it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evalkit.errors import EvalkitError
from tests.fuzz import inputs

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """What reads a folder.

    Attributes:
        name: how it is called.
        write: writes whole inputs into an empty folder.
        read: reads the folder, with all that users do with what was read.
        only: the ends of the names of files that are changed; any where there is none.
        weight: its share of the inputs, by how fast it is.
    """

    name: str
    write: Callable[[Path], object]
    read: Read
    only: tuple[str, ...] = ()
    weight: int = 10


def command(arguments: list[str]) -> None:
    """Run a command in this process.

    Raises:
        EvalkitError: it refuses, in one sentence.
        AssertionError: it says anything else than a sentence, or has another exit status.
    """
    from evalkit.cli import main

    told, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(errors):
        status = main(arguments)
    text = errors.getvalue()
    assert status in (0, 1, 2), f"exit status {status}"
    assert "Traceback" not in text, text[-500:]
    assert "an error of its own" not in text, text[-700:]
    if status == 2:
        sentences = [line for line in text.splitlines() if line.startswith("evalkit: error: ")]
        assert len(sentences) == 1, text[-500:]
        raise EvalkitError(sentences[0])


def checkpoints(folder: Path) -> None:
    from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory

    trajectory = open_trajectory(folder)
    verify_trajectory(trajectory, inputs.small_model())
    model = inputs.small_model()
    for checkpoint in trajectory.checkpoints:
        load_into(model, checkpoint)


def optimizer_states(folder: Path) -> None:
    from evalkit.checkpoints import open_trajectory
    from evalkit.checkpoints.optimizer_files import read_optimizer
    from evalkit.training.saved_optimizers import restored

    for checkpoint in open_trajectory(folder).checkpoints:
        restored(read_optimizer(checkpoint), inputs.small_model())


def resumed_training(folder: Path) -> None:
    from evalkit.training import train

    train(inputs.small_task(), folder=folder / "training", seed=0, resume=True)


def trainings(folder: Path) -> None:
    from evalkit.report.comparison import compare_folders
    from evalkit.results.comparisons import shown_table
    from evalkit.results.rankings import correlation_sentences

    comparison = compare_folders([folder / "run", folder / "second"])
    shown_table(comparison)
    correlation_sentences(comparison.correlations)


def runs(folder: Path) -> None:
    from evalkit.storage.lost_rows import lost_rows
    from evalkit.storage.run_folder import finished_cells, read_run, repair
    from evalkit.study.notes import notes_on

    run = read_run(folder / "run")
    lost_rows(run)
    notes_on(run.provenance)
    repair(folder / "run")
    finished_cells(folder / "run")


def derived_tables(folder: Path) -> None:
    from evalkit.report.writing import derived_of, mark_notes, overlap_notes
    from evalkit.storage.run_folder import read_run

    run = read_run(folder / "run")
    derived_of(run)
    mark_notes([run])
    overlap_notes([run])


def extended_runs(folder: Path) -> None:
    place, out = str(folder / "checkpoints"), str(folder / "run")
    sizes = ["--batches", "3", "--batch-size", "4"]
    command(["score", place, "--task", "fuzzed", "--methods", "sgd,ief", *sizes, "--out", out])


def reports(folder: Path) -> None:
    command(["report", str(folder / "run")])
    page = folder / "run" / "report.html"
    assert "<script>alert" not in page.read_text(encoding="utf-8"), "script in the page"


def baselines(folder: Path) -> None:
    from evalkit.gate.baseline import baseline_of, update_baseline
    from evalkit.gate.baseline_file import read_baseline
    from evalkit.gate.check import check
    from evalkit.gate.output import headline, junit, markdown, terminal_table
    from evalkit.storage.run_folder import read_run

    run = read_run(folder / "run")
    path = folder / "baseline.csv"
    try:
        found = check(baseline_of(run), read_baseline(path), 0.01)
        for told in (headline, junit, markdown, terminal_table):
            told(found)
    finally:
        update_baseline(path, run)


def gates(folder: Path) -> None:
    written = ["--junit", str(folder / "j.xml"), "--markdown", str(folder / "m.md")]
    command(["check", str(folder / "run"), "--baseline", str(folder / "baseline.csv"), *written])


def settings(folder: Path) -> None:
    from evalkit.storage.json_files import read_object
    from evalkit.tasks import load_task

    content = read_object(folder / "settings.json")
    if isinstance(content.get("settings"), dict):
        values = {str(name): value for name, value in content["settings"].items()}
        load_task(str(content.get("task")), {n: str(v) for n, v in values.items()})


def adapters(folder: Path) -> None:
    from evalkit.checkpoints import load_into, open_trajectory, verify_trajectory
    from evalkit.checkpoints.adapters import model_for

    trajectory = open_trajectory(folder)
    model = model_for(trajectory, inputs.small_task(), 0)
    verify_trajectory(trajectory, model)
    load_into(model, trajectory.checkpoints[-1])


def model_folders(folder: Path) -> None:
    from evalkit.tasks.pretrained import load_configuration, load_model, load_tokenizer
    from evalkit.tasks.user_code import user_code

    place = str(folder / "model")
    load_configuration(place)
    load_model("AutoModelForSequenceClassification", place, num_labels=2)
    tokenizer = load_tokenizer(place)
    with user_code("the data of the task"):  # as tasks call it
        tokenizer("some words", truncation=True, max_length=8)


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Let the library of data sets write what it converts into a folder."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / ".cache"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def text_data(folder: Path) -> None:
    from evalkit.tasks import load_task

    names = {"model": str(folder / "model"), "data": str(folder / "data"), "samples": 8}
    task = load_task("glue-cola", {**names, "max_length": 16})
    with _cache_in(folder):
        task.training_samples()


def picture_data(folder: Path) -> None:
    from evalkit.tasks import load_task

    with _cache_in(folder):
        load_task("mlp-cifar10", {"data": str(folder / "data"), "widths": "4"}).training_samples()


def idx_data(folder: Path) -> None:
    from evalkit.tasks import load_task

    load_task("mlp-fashion-mnist", {"data": str(folder / "data"), "widths": "4"}).training_samples()


READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("safetensors", inputs.safetensors_files, checkpoints, weight=42),
        Reader("pickles", inputs.pickle_files, checkpoints, weight=72),
        Reader("old pickles", inputs.old_pickles, checkpoints, weight=30),
        Reader("wrapped", inputs.wrapped_files, checkpoints, weight=42),
        Reader("sharded", inputs.sharded, checkpoints, weight=24),
        Reader("distributed", inputs.distributed, checkpoints, weight=9),
        Reader("trainer folders", inputs.trainer_folders, checkpoints, weight=24),
        Reader("manifests", inputs.manifests, checkpoints, weight=36),
        Reader("optimizer states", inputs.optimizer_states, optimizer_states, (".pt", ".json"), 48),
        Reader("trainings that go on", inputs.unfinished, resumed_training, weight=12),
        Reader("trainings", inputs.trainings, trainings, weight=24),
        Reader("runs", inputs.runs, runs, weight=42),
        Reader("derived tables", inputs.runs, derived_tables, weight=2),
        Reader("extended runs", inputs.extended_runs, extended_runs, (".csv", "run.json"), 1),
        Reader("reports", inputs.runs, reports, weight=1),
        Reader("baselines", inputs.baselines, baselines, weight=5),
        Reader("gates", inputs.baselines, gates, weight=1),
        Reader("settings", inputs.settings, settings, weight=18),
        Reader("adapters", inputs.adapters, adapters, weight=24),
        Reader("model folders", inputs.model_folders, model_folders, weight=18),
        Reader("text data", inputs.text_data, text_data, (".parquet", ".md"), 6),
        Reader("picture data", inputs.picture_data, picture_data, (".parquet", ".md"), 6),
        Reader("idx data", inputs.idx_data, idx_data, weight=12),
    )
}


@cache
def whole_input(name: str, home: Path) -> Path:
    """Return the folder with the whole input of a reader, made once."""
    folder = home / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    READERS[name].write(folder)
    return folder

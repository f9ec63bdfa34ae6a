"""Trainings side by side: tables and figures of their losses, their gammas, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evalkit.errors import EvalkitError, shortened
from evalkit.figures import save_figures
from evalkit.figures.comparison_figures import draw_comparison
from evalkit.figures.layouts import SCREEN, Layout
from evalkit.report.writing import write_table
from evalkit.results.comparisons import Comparison, compared
from evalkit.results.optimizer_ratios import Scored
from evalkit.results.trainings import contender_table, training_table
from evalkit.storage.files import make_folder
from evalkit.storage.run_folder import PROVENANCE_FILE, Run, read_run
from evalkit.storage.training_folder import Training, is_training, read_training


def compare_folders(
    folders: Sequence[str | os.PathLike[str]], reference: str | os.PathLike[str] | None = None
) -> Comparison:
    """Return the comparison of trainings, and of the runs that scored them.

    Args:
        folders: RUNs of ``evalkit score``, which name the training that they scored, and folders of
            ``evalkit train``; in any order.
        reference: a RUN whose trajectory is the one on which the gamma of all methods is read.

    Raises:
        EvalkitError: a folder is neither, is given twice or cannot be read, or the trainings are
            not of one task.
    """
    _check_each_once(folders)
    trainings: dict[Path, Training] = {}
    runs: dict[Path, list[Run]] = {}
    for folder in map(Path, folders):
        run = None
        if (folder / PROVENANCE_FILE).is_file():
            run = read_run(folder)
        elif not is_training(folder):
            raise EvalkitError(
                f"expected a RUN of 'evalkit score' or a folder of 'evalkit train' at '{folder}', "
                f"found {'neither' if folder.is_dir() else 'no folder'}; check the path"
            )
        training = read_training(folder) if run is None else _training_of(run)
        place = training.folder.resolve()
        trainings.setdefault(place, training)
        if run is not None:
            runs.setdefault(place, []).append(run)
    scored = [Scored(trainings[place], tuple(found)) for place, found in runs.items()]
    there = None
    if reference is not None:
        run = read_run(reference)
        there = Scored(_training_of(run), (run,))
    return compared(list(trainings.values()), scored, there)


def _check_each_once(folders: Sequence[str | os.PathLike[str]]) -> None:
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise EvalkitError(f"expected different runs, found '{folder}' twice; name it once")


def _training_of(run: Run) -> Training:
    """Return the training whose checkpoints a run scored."""
    folder = run.provenance.get("trajectory")
    if not isinstance(folder, str) or not os.path.isdir(folder):
        found = "no name" if folder is None else f"nothing at {shortened(repr(folder))}"
        raise EvalkitError(
            f"expected the folder of the training that '{run.folder / PROVENANCE_FILE}' names "
            f"('trajectory'), found {found}; "
            "give the command in the folder that 'evalkit score' was given in"
        )
    return read_training(folder)


def write_comparison(
    comparison: Comparison, out: str | os.PathLike[str], layouts: Sequence[Layout] = (SCREEN,)
) -> Path:
    """Write the tables and figures of a comparison.

    Args:
        comparison: of :func:`compare_folders`.
        out: the folder to write to, made when missing.
        layouts: sizes and formats of the figures.

    Returns:
        The folder.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    folder = make_folder(out)
    tables = {
        "comparison.csv": contender_table(comparison.contenders),
        "trainings.csv": training_table(comparison.contenders),
        "ratios.csv": comparison.ratios,
        "correlations.csv": comparison.correlations,
    }
    for name, table in tables.items():
        if len(table):
            write_table(table, folder / name)
    for layout in layouts:
        save_figures(draw_comparison(comparison, layout), folder, layout)
    return folder

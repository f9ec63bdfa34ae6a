"""The figures of a run, or of several, as files that stay the same for the same tables."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from evalkit.figures.layouts import SCREEN, Layout
from evalkit.figures.multipanel import (
    damping_figure,
    discussion_figure,
    efficiency_figure,
    efficiency_of_runs_figure,
    pairs_figure,
    ratio_figure,
)
from evalkit.results.pairs import Pair
from evalkit.results.sweeps import damping_discussion, discussed_dampings, is_sweep
from evalkit.storage.files import make_folder, write_atomically
from evalkit.storage.run_folder import Run


def draw_figures(
    run: Run, layout: Layout = SCREEN, pairs: Sequence[Pair] = ()
) -> dict[str, Figure]:
    """Return every figure of a run by file name.

    Always ratio and efficiency; pairs where some are named; damping for a sweep, and discussion
    where EF and iEF were swept.
    """
    with matplotlib.rc_context(layout.settings()):
        figures = {"ratio": ratio_figure(run, layout), "efficiency": efficiency_figure(run, layout)}
        if pairs:
            figures["pairs"] = pairs_figure([run], pairs, layout)
        if is_sweep(run):
            figures["damping"] = damping_figure(run, layout)
            if {"ef", "ief"} <= set(run.scores["method"]):
                table = damping_discussion(run, discussed_dampings(run))
                figures["discussion"] = discussion_figure(table, layout)
        return {name: settled(figure) for name, figure in figures.items()}


def draw_figures_of_runs(
    runs: Sequence[Run], pairs: Sequence[Pair], layout: Layout = SCREEN
) -> dict[str, Figure]:
    """Return the figures of several runs by file name: pairs, and efficiency of their methods."""
    members = [member.method for pair in pairs for member in (pair.first, pair.second)]
    with matplotlib.rc_context(layout.settings()):
        figures = {
            "pairs": pairs_figure(runs, pairs, layout),
            "efficiency": efficiency_of_runs_figure(runs, list(dict.fromkeys(members)), layout),
        }
        return {name: settled(figure) for name, figure in figures.items()}


def settled(figure: Figure) -> Figure:
    """Lay a figure out for good, panels on round places: the solver repeats itself only nearly."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # A placeholder is left, for which matplotlib would draw the figure twice for every file.
    figure._layout_engine = None  # type: ignore[attr-defined]
    for ax in figure.axes:
        ax.set_position(Bbox(np.round(ax.get_position().get_points(), 5)))
    return figure


def write_figures(
    run: Run,
    folder: str | os.PathLike[str],
    layout: Layout = SCREEN,
    pairs: Sequence[Pair] = (),
) -> list[Path]:
    """Write every figure of a run; the same run gives the same bytes.

    Args:
        run: its tables.
        folder: made when missing.
        layout: sizes and formats.
        pairs: the pairs of methods to divide.

    Returns:
        The files, one per figure and format.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    return save_figures(draw_figures(run, layout, pairs), folder, layout)


def save_figures(
    figures: Mapping[str, Figure], folder: str | os.PathLike[str], layout: Layout
) -> list[Path]:
    """Write figures in every format of a layout, and return the files.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    folder = make_folder(Path(folder) / layout.folder)
    paths = []
    for name, figure in figures.items():
        for kind in layout.formats:
            path = folder / f"{name}.{kind}"
            write_atomically(path, render(figure, kind, layout))
            paths.append(path)
    return paths


def render(figure: Figure, kind: str, layout: Layout = SCREEN) -> bytes:
    """Return a figure as a file of one kind, without a date."""
    file = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context(layout.settings()):
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()

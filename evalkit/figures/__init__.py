"""Figures: a plot takes a table and an axis; layouts, palette and files are apart from it."""

from evalkit.figures.run_figures import (
    draw_figures,
    draw_figures_of_runs,
    render,
    save_figures,
    settled,
    write_figures,
)
from evalkit.figures.slide import slide_figure

__all__ = [
    "draw_figures",
    "draw_figures_of_runs",
    "render",
    "save_figures",
    "settled",
    "slide_figure",
    "write_figures",
]

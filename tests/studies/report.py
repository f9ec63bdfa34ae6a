"""What a study of optimizers leaves in ``reports/studies``: tables, figures, and ``report.md``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from evalkit.cli import main
from evalkit.names import display_name
from evalkit.report.comparison import compare_folders, write_comparison
from evalkit.report.writing import write_table
from evalkit.results.comparisons import Comparison, shown_table
from evalkit.results.rankings import correlation_sentences
from evalkit.results.spreads import format_number
from evalkit.storage.run_folder import read_run
from tests.benchmarks.markdown import line, lines, machine
from tests.studies.study import TUNING_SEED, Done, Study


def write_report(study: Study, done: Done, work: Path, folder: Path) -> Path:
    """Write everything that a study found, and return the page.

    Args:
        study: what was done.
        done: what was found.
        work: where trainings and scores are.
        folder: to write to; what is there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    comparison = compare_folders(done.runs, done.reference)
    write_comparison(comparison, folder)
    write_table(done.grid, folder / "grid.csv")
    if done.reference is not None:
        _draw(done.reference, folder / "reference")
        if study.sweep:
            sweep = work / "scores" / "sweep"
            dampings = ",".join(f"{damping:g}" for damping in study.sweep)
            command = ["score", str(done.baseline), "--damping", dampings, "--out", str(sweep)]
            command += ["--batches", str(study.batches)]
            if main([*command, "--batch-size", str(study.scored_batch_size)]) == 0:
                _draw(sweep, folder / "sweep")
    page = folder / "report.md"
    page.write_text(page_of(study, done, comparison), encoding="utf-8")
    return page


def _draw(run: Path, folder: Path) -> None:
    """Draw a run of scores, and copy it without its page, which is large."""
    methods = read_run(run).scores["method"].unique()
    pairs = ",".join(f"{method}/sgd" for method in methods if method != "sgd")
    main(["report", str(run), *(["--pairs", pairs] if pairs else [])])
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html"))


def page_of(study: Study, done: Done, comparison: Comparison) -> str:
    """Return the report of a study in Markdown."""
    settings = ", ".join(f"`{name}={value}`" for name, value in study.settings.items())
    parts = [
        f"# {study.task}, {len(comparison.contenders)} optimizers\n",
        f"`{study.task}`{f' with {settings}' if settings else ''}, {study.epochs} epochs of "
        f"batches of {study.batch_size}, {study.seeds} seeds; gamma on "
        f"{study.batches} batches of {study.scored_batch_size} at every checkpoint, of "
        f"{min(study.scored_seeds, study.seeds)} seeds. {machine('cpu')}\n",
        "## Losses, accuracy, gamma\n",
        _table(_with_published(shown_table(comparison), study, comparison)),
        "Final loss: mean of the last 100 steps, mean and one sigma over seeds. Best accuracy: on "
        "validation samples, of all checkpoints. Own, reference: gamma relative to SGD's at the "
        "start, middle and end of the optimizer's own trajectory, and of that of "
        f"{display_name(study.reference)}.\n",
        "![Curves](curves.png)\n",
        *_bullets(correlation_sentences(comparison.correlations)),
        "![Final loss against gamma](ranking.png)\n" if len(comparison.correlations) else "",
        *_bullets([*comparison.notes, *done.failures]),
        "## Learning rates\n",
        "Final training loss of each, bold where it is chosen"
        + (
            f"; by trainings of seed {TUNING_SEED}, which are not compared. A grid is extended "
            "while its best value lies at an end.\n"
            if done.grid["final_loss"].notna().any()
            else f"; a single one is {study.rates_of}.\n"
        ),
        _grid_table(study, done.grid),
    ]
    return "\n".join(part for part in parts if part)


def _with_published(table: pd.DataFrame, study: Study, comparison: Comparison) -> pd.DataFrame:
    """Return the table with what a paper has beside it."""
    if not study.published:
        return table
    by_label = {one.label: study.published.get(one.optimizer, "") for one in comparison.contenders}
    return table.assign(**{"paper: validation (test) accuracy": table["optimizer"].map(by_label)})


def _table(table: pd.DataFrame) -> str:
    names = [name.replace("\n", ", ") for name in table.columns]
    return lines(*names) + "".join(line(*row) for row in table.itertuples(index=False))


def _grid_table(study: Study, grid: pd.DataFrame) -> str:
    """Return a row per optimizer with the loss of every learning rate, and its other settings."""
    rows = []
    for candidate in study.candidates:
        own = grid[grid["optimizer"] == candidate.optimizer]
        options = ", ".join(f"{name} {value}" for name, value in candidate.options.items())
        tried = "; ".join(map(_tried, own.to_dict("records")))
        rows.append(line(display_name(candidate.optimizer), options, tried))
    return lines(
        "optimizer", "settings (weight decay 0 else)", "learning rate: final loss"
    ) + "".join(rows)


def _tried(row: dict[str, object]) -> str:
    loss, rate = float(str(row["final_loss"])), float(str(row["learning_rate"]))
    text = f"{rate:.3g}"
    if not math.isnan(loss):
        text += f": {format_number(loss) if math.isfinite(loss) else 'failed'}"
    return f"**{text}**" if row["chosen"] else text


def _bullets(sentences: Sequence[str] | Iterable[str]) -> list[str]:
    return ["".join(f"- {sentence}\n" for sentence in sentences)]

"""Matrix errors and layer scales at every checkpoint, on the batches that a run scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from evalkit.checkpoints import Trajectory, load_into, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.curvature.others import linearized
from evalkit.diagnosis.matrix_errors import check_have_blocks, check_probes, matrix_errors
from evalkit.diagnosis.scales import layer_scales
from evalkit.errors import EvalkitError
from evalkit.evaluation.devices import check_device
from evalkit.evaluation.full_precision import full_precision
from evalkit.evaluation.given import Inputs
from evalkit.scoring import check_request
from evalkit.settings import PROBES, Settings
from evalkit.storage.columns import Source, columns_of, csv_line, csv_rows, parse_csv
from evalkit.storage.files import check_regular, check_writable, make_folder, write_atomically
from evalkit.storage.json_files import read_object
from evalkit.storage.rows import Cell, LayerScale, MatrixError
from evalkit.study.batches import batch_seed, samples_to_score, take_batch
from evalkit.study.plan import cells_of
from evalkit.study.provenance import describe_study, now
from evalkit.tasks import Task
from evalkit.tasks.user_code import user_code

ERRORS_FILE, SCALES_FILE, PROVENANCE_FILE = "errors.csv", "scales.csv", "errors.json"
COLUMNS = {
    ERRORS_FILE: columns_of(Cell, MatrixError),
    SCALES_FILE: columns_of(Cell, LayerScale),
}
"""Columns by file."""
ANOTHER = "name another folder by `out`"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        settings: the methods with blocks, dampings of the scales, batches, seed, precision.
        scales: methods, with blocks or without, whose layer scales alone are found beside.
        probes: for blocks that are too large for anything else.
    """

    settings: Settings
    scales: tuple[str, ...] = ()
    probes: int = PROBES

    @property
    def scaled(self) -> tuple[str, ...]:
        """All methods whose layer scales are found."""
        return tuple(dict.fromkeys((*self.settings.methods, *self.scales)))

    def check(self) -> None:
        """Refuse what cannot be compared, before anything is loaded.

        Raises:
            EvalkitError: a method is unknown or has no blocks, or a number is out of range.
        """
        check_request(self.settings.methods, self.settings.dampings)
        check_request(self.scaled, self.settings.dampings)
        check_probes(self.probes)
        check_have_blocks(self.settings.methods)


@dataclass(frozen=True, eq=False)
class Tables:
    """What was found, a row per cell and more.

    Attributes:
        errors: the columns of ``errors.csv``.
        scales: the columns of ``scales.csv``.
    """

    errors: pd.DataFrame
    scales: pd.DataFrame


def run_errors(
    trajectory: Trajectory,
    task: Task,
    request: Request,
    folder: Path | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Tables:
    """Return the errors and scales at every checkpoint, on the batches that a run scores.

    With a folder, tables are written after every cell (a checkpoint and a batch), and the same
    request goes on where it stopped.

    Args:
        trajectory: the checkpoints.
        task: the model and the training samples that batches are drawn from.
        request: what is asked for.
        folder: of the tables; new, or one of the same request; None to write nothing.
        on_progress: called with the cells done, their number, and the next checkpoint.

    Raises:
        EvalkitError: the request or a checkpoint cannot be used, or the folder holds the tables of
            another request or cannot be written to.
    """
    request.check()
    settings = request.settings
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    samples = task.fit_labels(samples, model)
    verify_trajectory(trajectory, model)
    described = describe_study(trajectory, task, settings, model, len(samples))
    described |= {"scales": list(request.scales), "probes": request.probes}
    cells = list(cells_of(trajectory.checkpoints, settings.batches))
    kept = _Kept(folder, described, cells)
    checkpoints = {checkpoint.name: checkpoint for checkpoint in trajectory.checkpoints}
    loaded = ""
    for place, cell in enumerate(cells):
        if on_progress is not None:
            on_progress(place, len(cells), cell.checkpoint)
        if kept.has(cell):
            continue
        if cell.checkpoint != loaded:
            load_into(model, checkpoints[cell.checkpoint])
            loaded = cell.checkpoint
        batch = take_batch(samples, settings, cell.batch)
        kept.put(cell, *_execute(model, batch, task, request, cell))
    if on_progress is not None:
        on_progress(len(cells), len(cells), loaded or cells[-1].checkpoint)
    kept.close()
    return kept.tables()


def _execute(
    model: nn.Module, batch: tuple[Inputs, Tensor], task: Task, request: Request, cell: Cell
) -> tuple[list[MatrixError], list[LayerScale]]:
    """Return the rows of a cell."""
    settings = request.settings
    try:
        with user_code(f"the scoring of task '{task.name}'"), full_precision():
            micro, dtype = settings.micro_batch_size, settings.dtype
            given = *batch, task.likelihood, micro, dtype, settings.others
            # That of scores: the same labels are drawn.
            seed = batch_seed(settings.seed, cell.batch, "methods")
            with linearized(model, *given) as (lin, _):
                errors = matrix_errors(lin, settings.methods, request.probes, seed, settings.others)
                scales = request.scaled, settings.dampings, seed, settings.others
                return errors, layer_scales(lin, *scales)
    except EvalkitError as error:
        place = f"checkpoint '{cell.checkpoint}', batch {cell.batch}"
        raise EvalkitError(f"{place}: {error}") from error


class _Kept:
    """The tables so far, in memory and, with a folder, on the disk.

    Args:
        folder: where they are written.
        described: what ``errors.json`` says of a request that starts now.
        cells: all that are asked for, in the order of the tables.
    """

    def __init__(
        self, folder: Path | None, described: dict[str, Any], cells: Sequence[Cell]
    ) -> None:
        self._folder = folder
        self._order = [(cell.checkpoint, cell.batch) for cell in cells]
        self._described = described | {"done": [], "rows": []}
        self._texts: dict[str, dict[tuple[str, int], str]] = {name: {} for name in COLUMNS}
        if folder is None:
            return
        if (folder / PROVENANCE_FILE).exists():
            self._read(folder)
        elif there := [name for name in COLUMNS if (folder / name).exists()]:
            raise EvalkitError(
                f"expected no {there[0]} in {folder} without an {PROVENANCE_FILE} that tells what "
                f"it is of, found one; {ANOTHER}"
            )
        check_writable(folder)

    def has(self, cell: Cell) -> bool:
        """Return whether the rows of a cell are there."""
        return [cell.checkpoint, cell.batch] in self._described["done"]

    def put(self, cell: Cell, errors: list[MatrixError], scales: list[LayerScale]) -> None:
        """Keep the rows of a cell; they are on the disk when this returns."""
        for name, rows in ((ERRORS_FILE, errors), (SCALES_FILE, scales)):
            table = _table(cell, rows)
            self._texts[name][cell.checkpoint, cell.batch] = csv_rows(table, COLUMNS[name])
        self._described["done"].append([cell.checkpoint, cell.batch])
        self._described["rows"].append([len(errors), len(scales)])
        self._write()

    def close(self) -> None:
        """Mark the tables as finished."""
        self._described["finished"] = self._described["finished"] or now()
        self._write()

    def tables(self) -> Tables:
        """Return what is there, typed."""
        found = [
            parse_csv(self._text(name), columns, Source(Path(name), ANOTHER))
            for name, columns in COLUMNS.items()
        ]
        return Tables(*found)

    def _text(self, name: str) -> str:
        # Cells that are found again stand where they belong, not behind the last checkpoint.
        rows = "".join(self._texts[name].get(cell, "") for cell in self._order)
        return csv_line([column.name for column in COLUMNS[name]]) + rows

    def _write(self) -> None:
        if self._folder is None:
            return
        make_folder(self._folder)
        for name in COLUMNS:
            write_atomically(self._folder / name, self._text(name))
        # Last: rows of a cell that it does not name are found again.
        text = json.dumps(self._described, indent=2) + "\n"
        write_atomically(self._folder / PROVENANCE_FILE, text)

    def _read(self, folder: Path) -> None:
        """Take the finished cells of an earlier start, if it was of the same request."""
        earlier = read_object(folder / PROVENANCE_FILE, ANOTHER)
        old, new = _identity(earlier), _identity(self._described)
        different = [key for key in new if old.get(key) != new[key]]
        if different:
            raise EvalkitError(
                f"expected the tables of this very request in {folder}, found others in "
                f"{', '.join(different)}; give the same request or {ANOTHER}"
            )
        done = _list_of(earlier, "done", folder)
        frames = {name: _read_frame(folder / name, columns) for name, columns in COLUMNS.items()}
        found = [Counter(_cells(frame)) for frame in frames.values()]
        # Tables that were written without the numbers of rows are taken as they are.
        earlier.setdefault("rows", [[count[tuple(cell)] for count in found] for cell in done])
        rows = _list_of(earlier, "rows", folder)
        # A cell that has lost rows, or has some twice, is found again: means over what is left
        # would look like those over all.
        whole = [
            (cell, counts)
            for cell, counts in zip(done, rows, strict=False)
            if counts == [count[tuple(cell)] for count in found]
        ]
        kept = {tuple(cell) for cell, _ in whole}
        for name, frame in frames.items():
            for cell, part in frame.groupby(["checkpoint", "batch"], sort=False):
                if cell in kept:
                    self._texts[name][cell] = csv_rows(part, COLUMNS[name])
        self._described |= {key: earlier.get(key) for key in ("started", "finished")}
        self._described |= {
            "done": [cell for cell, _ in whole],
            "rows": [counts for _, counts in whole],
        }


def _cells(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """Return the checkpoint and batch of each row."""
    return list(zip(frame["checkpoint"], frame["batch"], strict=True))


def _list_of(described: dict[str, Any], key: str, folder: Path) -> list[list[Any]]:
    """Return one of the lists of pairs that ``errors.json`` has, a pair for each finished cell."""
    found = described.get(key)
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and [type(part) for part in pair] in ([str, int], [int, int])
        for pair in found
    ):
        raise EvalkitError(
            f"expected a list '{key}' of pairs in {folder / PROVENANCE_FILE}, found another "
            f"value; {ANOTHER}"
        )
    return found


def _identity(described: dict[str, Any]) -> dict[str, Any]:
    """Return what a request is told from others by: all that rows depend on."""
    left_out = {"versions", "rates", "trajectory", "started", "finished", "seconds", "done", "rows"}
    found = {key: value for key, value in described.items() if key not in left_out}
    settings = found.get("settings")
    if isinstance(settings, dict):
        found["settings"] = {k: v for k, v in settings.items() if k != "threads"}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _read_frame(path: Path, columns: Sequence[Any]) -> pd.DataFrame:
    check_regular(path, ANOTHER)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalkitError(f"expected the table {path}, found {error}; {ANOTHER}") from error
    return parse_csv(text, columns, Source(path, ANOTHER))


def _table(cell: Cell, rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Return rows as columns, behind those of their cell."""
    listed = [asdict(cell) | asdict(row) for row in rows]
    return {key: [row[key] for row in listed] for key in (listed[0] if listed else ())}

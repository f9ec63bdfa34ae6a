"""Scores of a training that goes on: a RUN that grows by a checkpoint at a time.

What a callback of a library has to add is the model, the batches, and where the training is.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.callback.trainer_batches import Supervised, evaluated
from evalkit.checkpoints import Checkpoint
from evalkit.errors import EvalkitError
from evalkit.export.series import curves_of
from evalkit.linearization import Linearization
from evalkit.names import base_name
from evalkit.scoring import check_request
from evalkit.settings import Others, Settings
from evalkit.storage.run_folder import (
    PROVENANCE_FILE,
    drop_after,
    read_provenance,
    read_run,
    repair,
    sort_tables,
    update_provenance,
)
from evalkit.study.execute import Rows, execute
from evalkit.study.faults import attempted, is_proven, settled
from evalkit.study.identity import check_same_request, check_same_run
from evalkit.study.keeping import Keeper
from evalkit.study.plan import Unit, cells_of, plan
from evalkit.study.provenance import checkpoint_entry, describe_run, now, without_factors
from evalkit.study.store import Store
from evalkit.tasks.task import user_code
from evalkit.updates.optimizer_step import unwrapped
from evalkit.updates.registry import takes_optimizer

DEFAULT_BATCHES = 4
DEFAULT_BATCH_SIZE = 32
"""Of a callback: fewer and smaller than those of a study, as training waits for them."""


class RunningScores:
    """The run of a training that goes on.

    Args:
        folder: of the run.
        settings: what is scored.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self._store: Store | None = None
        self._seconds = 0.0

    @classmethod
    def of(
        cls,
        folder: str | Path,
        methods: Sequence[str] | str,
        damping: float | Sequence[float],
        batches: int,
        batch_size: int,
        seed: int,
        dtype: str | None,
        micro_batch_size: int | None,
        others: Others,
    ) -> RunningScores:
        """Return the run that a callback is asked for, by the arguments of the callbacks.

        Raises:
            EvalkitError: a method is unknown, or a number is out of range.
        """
        names, dampings = check_request(methods, damping, optimizer=True)
        sizes = batches, batch_size, seed
        settings = Settings(names, dampings, *sizes, dtype, micro_batch_size, others=others)
        return cls(Path(folder), settings)

    @property
    def takes_optimizer(self) -> bool:
        """Whether a method has the optimizer of the training as an input."""
        return any(takes_optimizer(base_name(name)) for name in self.settings.methods)

    def check_optimizer(self, optimizer: Any) -> None:
        """Refuse an optimizer that a method has as an input and that cannot be told its step.

        Raises:
            EvalkitError: it cannot.
        """
        if self.takes_optimizer:
            unwrapped(optimizer)

    def described(
        self, model: nn.Module, task: str, likelihood: str, place: str | Path, steps: int
    ) -> dict[str, Any]:
        """Return what ``run.json`` says of a training, checkpoints aside.

        Args:
            model: that is trained.
            task: what the run calls it.
            likelihood: what its outputs mean.
            place: where the training saves its checkpoints.
            steps: of the whole training.
        """
        described = describe_run(model, task, likelihood, self.settings, place, ())
        return {**described, "training_steps": steps}

    @property
    def is_open(self) -> bool:
        """Whether a training goes on."""
        return self._store is not None

    def begin(self, provenance: dict[str, Any], step: int) -> None:
        """Begin the run of a training, or go on with that of one that is resumed at ``step``.

        Args:
            provenance: what ``run.json`` says, checkpoints aside.
            step: of the training.

        Raises:
            EvalkitError: the folder holds another run.
        """
        self._go_on(provenance, step)
        self._store = Store(self.folder, provenance)

    def score(
        self,
        checkpoint: Callable[[], Checkpoint],
        name: str,
        model: nn.Module,
        draw: Callable[[int], Supervised],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> dict[str, float]:
        """Score what a checkpoint lacks and store it; what fails is a warning.

        Args:
            checkpoint: tells where the training is.
            name: of the checkpoint.
            model: as it is there.
            draw: returns the batch of a number, on the device of the model.
            optimizer: of the training, for methods that have it as an input.

        Returns:
            The means over batches at this checkpoint by the names that exports have
            (:class:`evalkit.export.series.Series`); nothing where nothing was added.
        """
        store = self._store
        assert store is not None
        started, added, step = time.monotonic(), False, None
        described = f"the scoring of '{name}'"
        with store, _as_warning(), user_code(described), evaluated(model):
            found = checkpoint()
            step, entry = found.step, checkpoint_entry(found)
            units = plan(cells_of([found], self.settings.batches), self.settings, store.finished)
            execution = partial(self._execute, model, draw, optimizer, store.provenance["task"])
            attempt = attempted(execution)
            made = ((unit, attempt(unit, False)) for unit in units)
            proven = is_proven(self.settings, store.finished)
            keeper = Keeper(store, self.settings)
            for unit, outcome in settled(made, units, attempt, proven):
                store.list_checkpoint(entry)
                keeper.keep(unit, outcome)
                added = True
        self._seconds += time.monotonic() - started
        if not added or step is None or not store.finished:
            return {}
        with _as_warning():
            return means_at(self.folder, step)
        return {}

    def end(self) -> None:
        """Sort the tables and mark the run as finished, where there is one."""
        self._store = None
        if (self.folder / PROVENANCE_FILE).exists():
            with _as_warning():
                sort_tables(self.folder)
                update_provenance(self.folder, finished=now(), seconds=round(self._seconds, 3))

    def _go_on(self, provenance: dict[str, Any], step: int) -> None:
        """Go on with the run of the training that is resumed at ``step``; refuse any other run."""
        if not (self.folder / PROVENANCE_FILE).exists():
            return
        earlier = read_provenance(self.folder)
        if step == 0:
            raise EvalkitError(
                f"expected a folder without a run for a training that starts, found a run in "
                f"'{self.folder}'; name another folder, or resume that training"
            )
        for name in ("trajectory", "training_steps", "shift_labels"):
            if earlier.get(name) != provenance.get(name):
                raise EvalkitError(
                    f"expected the run of the resumed training in '{self.folder}', found another "
                    f"{name.replace('_', ' ')}: {earlier.get(name)} instead of "
                    f"{provenance.get(name)}; name another folder"
                )
        kept = [item for item in earlier.get("checkpoints", ()) if item["step"] <= step]
        check_same_run(self.folder, earlier, {**provenance, "checkpoints": earlier["checkpoints"]})
        # The models of earlier checkpoints are gone: nothing can be added to their rows.
        check_same_request(self.folder, earlier, provenance)
        provenance["checkpoints"] = kept
        repair(self.folder)
        # Steps after the one that is resumed are taken again.
        drop_after(self.folder, step)
        changed = {"settings": provenance["settings"], "checkpoints": kept}
        update_provenance(self.folder, **changed, finished=None, seconds=None)

    def _execute(
        self,
        model: nn.Module,
        draw: Callable[[int], Supervised],
        optimizer: torch.optim.Optimizer | None,
        task: str,
        unit: Unit,
        shown: bool,
    ) -> Rows:
        batch = draw(unit.cell.batch)
        return execute(
            model,
            (batch.inputs, batch.targets),
            batch.likelihood,
            self.settings,
            unit,
            task,
            None,
            self._note,
            None,
            optimizer,
        )

    def _note(self, lin: Linearization, left_out: tuple[str, ...]) -> None:
        """Let ``run.json`` name the parameters without factors, once."""
        assert self._store is not None
        if "without_factors" not in self._store.provenance:
            self._store.note(without_factors(lin, self.settings, left_out))


def means_at(folder: Path, step: int) -> dict[str, float]:
    """Return the means over batches of a run at one step, by the names that exports have.

    Raises:
        EvalkitError: the run cannot be read, or has no finished batch.
    """
    run = read_run(folder)
    tables = {
        name: frame[frame["step"] == step]
        for name, frame in (("scores", run.scores), ("batches", run.batches))
    }
    return {
        series.name: point.value
        for series in (curves_of(replace(run, **tables)).series if len(tables["scores"]) else ())
        for point in series.points
    }


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the trainable parameters, the CPU where there is none."""
    trainable = (value.device for value in model.parameters() if value.requires_grad)
    return next(trainable, torch.device("cpu"))


def parameters_hash(model: nn.Module) -> str:
    """Return the SHA-256 of names and bytes of the trainable parameters, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if value.requires_grad:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _as_warning() -> Iterator[None]:
    try:
        yield
    except EvalkitError as error:
        warnings.warn(f"evalkit: {error}", stacklevel=3)

"""What a study of optimizers is, and its way: tune, train, score, compare."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from evalkit.cli import main
from evalkit.errors import EvalkitError
from evalkit.names import OPTIMIZERS, base_name
from evalkit.results.optimizer_ratios import OWN_STEP
from evalkit.results.trainings import final_loss
from evalkit.storage.training_folder import read_training
from evalkit.tasks import Task, load_task
from evalkit.training import train

TUNING_SEED = 1000
"""Of the trainings that a learning rate is chosen by; those that are compared have other seeds."""
_MOST_STEPS_BEYOND = 3
"""By how many values a grid grows at an end at which the best one lies."""


@dataclass(frozen=True)
class Candidate:
    """An optimizer and the learning rates to choose from.

    Attributes:
        optimizer: as ``evalkit train`` takes it.
        rates: of learning rates, rising by one factor; a single one is taken as it is.
        options: further arguments of ``evalkit.training.train``.
    """

    optimizer: str
    rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """What its folders are called."""
        return re.sub(r"[^\w.]+", "-", self.optimizer)

    @property
    def method(self) -> str:
        """The method whose gamma is its own."""
        stateful = base_name(self.optimizer) in OPTIMIZERS or self.options.get("momentum")
        return OWN_STEP if stateful else self.optimizer


@dataclass(frozen=True)
class Study:
    """Optimizers on one task.

    Attributes:
        name: of its folders.
        task: what is trained.
        candidates: the optimizers.
        settings: of the task.
        epochs: of each training.
        batch_size: samples per step.
        checkpoints: of each training, about so many beside the initialised model.
        seeds: trainings of each candidate.
        scored_seeds: of how many of these the trajectories are scored.
        batches: that each checkpoint is scored on.
        scored_batch_size: their samples.
        reference: the optimizer on whose first trajectory all methods are scored.
        sweep: dampings of a study of dampings on that trajectory.
        published: what a paper has of each optimizer, for the table.
        rates_of: whose learning rates those are that have no grid.
    """

    name: str
    task: str
    candidates: tuple[Candidate, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 64
    checkpoints: int = 10
    seeds: int = 3
    scored_seeds: int = 3
    batches: int = 5
    scored_batch_size: int = 160
    reference: str = "adamw"
    sweep: tuple[float, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    rates_of: str = "the paper's"

    @property
    def checkpoint_every(self) -> int:
        """Epochs between checkpoints."""
        return max(1, self.epochs // self.checkpoints)


@dataclass(frozen=True)
class Done:
    """What a study found, apart from its figures.

    Attributes:
        grid: columns optimizer, learning_rate, final_loss, chosen, failure.
        runs: scored trainings, and trainings alone.
        reference: the run of scores on the reference trajectory, None where its optimizer failed.
        baseline: the training whose trajectory that is.
        failures: a sentence for each training that failed.
    """

    grid: pd.DataFrame
    runs: tuple[Path, ...]
    reference: Path | None
    baseline: Path | None
    failures: tuple[str, ...]


def run(study: Study, folder: Path) -> Done:
    """Tune, train and score every candidate; what is there already is not done again.

    Args:
        study: what to do.
        folder: where trainings and scores go.
    """
    rows: list[dict[str, Any]] = []
    runs: list[Path] = []
    failures: list[str] = []
    reference = baseline = None
    for candidate in study.candidates:
        tried, rate = _tune(study, candidate, folder)
        rows += tried
        for seed in range(study.seeds if rate is not None else 0):
            assert rate is not None
            place = folder / "trainings" / f"{candidate.slug}-{rate:.3g}-{seed}"
            failure = _train(study, candidate, rate, seed, place)
            if failure:
                failures.append(f"{candidate.optimizer}, seed {seed}: {failure}")
                continue
            scores = folder / "scores" / place.name
            runs.append(place)
            if seed < study.scored_seeds and _score(study, candidate, place, scores):
                runs[-1] = scores
            if candidate.optimizer == study.reference and seed == 0:
                baseline = place
                reference = _score_reference(study, place, folder / "scores" / "reference")
    return Done(pd.DataFrame(rows), tuple(runs), reference, baseline, tuple(failures))


def _tune(
    study: Study, candidate: Candidate, folder: Path
) -> tuple[list[dict[str, Any]], float | None]:
    """Return what each learning rate came to, and the one with the lowest final training loss."""
    if len(candidate.rates) == 1:
        return [_grid_row(candidate, candidate.rates[0], math.nan, "")], candidate.rates[0]
    found: dict[float, tuple[float, str]] = {}
    rates = list(candidate.rates)
    factor = rates[1] / rates[0]
    for _ in range(1 + _MOST_STEPS_BEYOND):
        for rate in rates:
            if rate not in found:
                place = folder / "grid" / f"{candidate.slug}-{rate:.3g}"
                failure = _train(study, candidate, rate, TUNING_SEED, place)
                loss = math.inf if failure else final_loss(read_training(place))
                found[rate] = (loss, failure)
        best = min(rates, key=lambda rate: found[rate][0])
        if math.isinf(found[best][0]) or best not in (rates[0], rates[-1]):
            break
        down = best == rates[0]
        beyond = float(f"{best / factor if down else best * factor:.2g}")
        rates = [beyond, *rates] if down else [*rates, beyond]
    tried = [rate for rate in rates if rate in found]
    best = min(tried, key=lambda rate: found[rate][0])
    failed = math.isinf(found[best][0])
    rows = [_grid_row(candidate, rate, *found[rate], not failed and rate == best) for rate in tried]
    return rows, None if failed else best


def _grid_row(
    candidate: Candidate, rate: float, loss: float, failure: str, chosen: bool = True
) -> dict[str, Any]:
    return {
        "optimizer": candidate.optimizer,
        "learning_rate": rate,
        "final_loss": loss,
        "chosen": chosen,
        "failure": failure,
    }


def _train(study: Study, candidate: Candidate, rate: float, seed: int, folder: Path) -> str:
    """Train unless that is done; return why it failed, empty where it did not."""
    print(f"{study.name}: {candidate.optimizer}, rate {rate:.3g}, seed {seed}", flush=True)
    try:
        train(
            _task(study.task, tuple(study.settings.items())),
            folder=folder,
            optimizer=candidate.optimizer,
            learning_rate=rate,
            epochs=study.epochs,
            batch_size=study.batch_size,
            checkpoint_every=study.checkpoint_every,
            seed=seed,
            resume=True,
            **{"weight_decay": 0.0, **candidate.options},
        )
    except EvalkitError as error:
        print(f"{study.name}: {candidate.optimizer} failed: {error}", flush=True)
        return str(error)
    return ""


@cache
def _task(name: str, settings: tuple[tuple[str, str], ...]) -> Task:
    """Return a task that reads its data once for all of its trainings."""
    task = load_task(name, dict(settings))
    validation = None if task.validation is None else cache(task.validation)
    return replace(task, data=cache(task.data), validation=validation)


def _score(study: Study, candidate: Candidate, folder: Path, out: Path) -> bool:
    """Score the own steps of a training; return whether that went well."""
    damping = _summed(candidate, study.scored_batch_size)
    methods = list(dict.fromkeys(["sgd", candidate.method]))
    return _scored(study, folder, out, methods, [damping])


def _score_reference(study: Study, folder: Path, out: Path) -> Path | None:
    """Score the methods of all candidates on one trajectory; return the run."""
    plain = [one for one in study.candidates if one.method != OWN_STEP]
    dampings = sorted({1e-12, *(_summed(one, study.scored_batch_size) for one in plain)})
    methods = list(dict.fromkeys(["sgd", *(one.method for one in plain)]))
    own = next(one.method for one in study.candidates if one.optimizer == study.reference)
    if own not in methods and _scored(study, folder, out, [*methods, own], dampings):
        return out
    return out if _scored(study, folder, out, methods, dampings) else None


def _summed(candidate: Candidate, samples: int) -> float:
    """Return the damping of a candidate as scores take it: for sums over a batch, not means."""
    damping = candidate.options.get("damping")
    if damping is None:
        return 1e-12
    by_gram = base_name(candidate.optimizer) in ("ief", "ef", "sf", "fgn", "polyak")
    return float(damping) * samples ** (2 if by_gram else 1)


def _scored(
    study: Study, folder: Path, out: Path, methods: list[str], dampings: list[float]
) -> bool:
    command = ["score", str(folder), "--methods", ",".join(methods), "--out", str(out)]
    command += ["--batches", str(study.batches), "--batch-size", str(study.scored_batch_size)]
    command += ["--damping", ",".join(f"{damping:g}" for damping in dampings)]
    return main(command) == 0


def shortened(study: Study, **changes: Any) -> Study:
    """Return a study with some of its numbers replaced, those that are None left as they are."""
    return replace(study, **{name: value for name, value in changes.items() if value is not None})

"""Assertions on the quality of an approximation, for the tests of the library that computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.checkpoints import load_into, open_trajectory, trajectory_task
from evalkit.checkpoints.adapters import model_for
from evalkit.errors import EvalkitError
from evalkit.linearization import Linearization, linearize
from evalkit.scoring import score_linearization, score_update
from evalkit.settings import DEFAULT_DAMPING, Settings
from evalkit.storage.rows import Score
from evalkit.study.batches import draw
from evalkit.updates import Update, compute
from evalkit.updates.calling import accept

Direction = Callable[[Linearization, float], "Tensor | Update"]
Batches = Linearization | Iterable[Linearization | tuple[str, Linearization]]
REFERENCES = ("sgd", "ief")


def assert_quality(
    direction: Direction | str,
    batches: Batches,
    damping: float = DEFAULT_DAMPING,
    ratio_at_most: float | None = None,
    efficiency_at_least: float | None = None,
    seed: int = 0,
) -> None:
    """Assert that an approximation descends in every batch, and is as good there as it should be.

    A bound holds in every batch or is missed: no mean and no interval is taken, so that a single
    batch is enough.

    Args:
        direction: a function of (linearization, damping) that returns d with the sign of the
            gradient, (P,), or the name of a registered method.
        batches: what to compute it on: one linearization, or several, with names if wanted.
        damping: lambda, absolute, for summed losses.
        ratio_at_most: bound on gamma / gamma of SGD; 1 asks for no more than SGD.
        efficiency_at_least: bound on gamma_floor / gamma as a share; 1, which messages call 100%,
            is the best that any direction can be.
        seed: for registered methods that draw samples.

    Raises:
        AssertionError: a bound is missed; the message says by how much, and what sgd and ief reach
            in that batch.
        EvalkitError: there is no bound or no batch, or the function does not return a direction.
    """
    __tracebackhide__ = True
    if ratio_at_most is None and efficiency_at_least is None:
        raise EvalkitError(
            "expected a bound, found none; pass ratio_at_most or efficiency_at_least"
        )
    name = direction if isinstance(direction, str) else getattr(direction, "__name__", "direction")
    count = 0
    for place, lin in _named(batches):
        count += 1
        found = _score(name, direction, lin, damping, seed)
        complaint = _complaint(found, ratio_at_most, efficiency_at_least)
        if complaint:
            references = score_linearization(lin, REFERENCES, (damping,), seed)
            reached = ", ".join(f"{row.method} {_numbers(row)}" for row in references)
            raise AssertionError(
                f"{name} at damping {damping:g}, {place}: expected {complaint}; "
                f"obtained {_numbers(found)}; for comparison {reached}"
            )
    if count == 0:
        raise EvalkitError("expected at least one batch, found none; pass a linearization")


def checkpoint_batches(
    folder: str | Path,
    task: str | None = None,
    batches: int = 2,
    batch_size: int = Settings.batch_size,
    seed: int = 0,
) -> Iterator[tuple[str, Linearization]]:
    """Yield the first batches of every checkpoint of a trajectory, named, as ``score`` draws them.

    Args:
        folder: the folder of the checkpoints.
        task: as for ``evalkit score``; by default the one that the folder's manifest names.
        batches: per checkpoint.
        batch_size: samples per batch, or all training samples where there are fewer.
        seed: the seed of the batches.

    Raises:
        EvalkitError: the folder, the task or a number cannot be used.
    """
    settings = Settings(batches=batches, batch_size=batch_size, seed=seed)
    trajectory = open_trajectory(folder)
    loaded = trajectory_task(trajectory, task)
    samples = loaded.training_samples()
    for checkpoint in trajectory.checkpoints:
        # A model of its own each, since a linearization shares memory with its model.
        model = model_for(trajectory, loaded, seed).eval()
        load_into(model, checkpoint)
        fitting = loaded.fit_labels(samples, model)
        for batch in range(settings.batches):
            taken = draw(fitting, settings.batch_size, settings.seed, batch)
            lin = linearize(model, *taken, loaded.likelihood)
            yield f"{checkpoint.name}, batch {batch}", lin


def _named(batches: Batches) -> Iterator[tuple[str, Linearization]]:
    if isinstance(batches, Linearization):
        batches = (batches,)
    for number, item in enumerate(batches):
        yield item if isinstance(item, tuple) else (f"batch {number}", item)


def _score(
    name: str, direction: Direction | str, lin: Linearization, damping: float, seed: int
) -> Score:
    if isinstance(direction, str):
        return score_update(lin, name, damping, compute(direction, lin, damping, seed))
    result: Any = direction(lin, damping)
    return score_update(lin, name, damping, accept(name, result, lin))


def _complaint(found: Score, ratio_at_most: float | None, at_least: float | None) -> str:
    """Return what is expected and not so; NaN meets no bound."""
    if not found.slope > 0:
        return f"a direction of descent, d . g > 0, found {found.slope:.3g}"
    if ratio_at_most is not None and not found.ratio <= ratio_at_most:
        return f"a ratio to SGD of at most {ratio_at_most:g}"
    if at_least is not None and not found.efficiency >= at_least:
        return f"an efficiency of at least {_percent(at_least)}"
    return ""


def _numbers(row: Score) -> str:
    return f"ratio {row.ratio:.3g}, efficiency {_percent(row.efficiency)}"


def _percent(share: float) -> str:
    """Return a share as failures say it, with a digit more than tables: 61.5%."""
    return f"{100 * share:.3g}%"

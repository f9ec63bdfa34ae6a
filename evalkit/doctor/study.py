"""What the planned study can tell and takes: the floor, its batches, the solver, the time."""

from __future__ import annotations

import math

from evalkit.counts import counted
from evalkit.doctor.finding import Finding
from evalkit.doctor.layers import without_gradient
from evalkit.doctor.subject import Subject
from evalkit.doctor.trial import Trial, tried
from evalkit.given_settings import defaults_of
from evalkit.linearization import Linearization
from evalkit.machine import duration
from evalkit.names import base_name
from evalkit.solvers import Stopping
from evalkit.solvers.choice import cheapest, expected_seconds
from evalkit.study.estimate import cell_seconds, free_outputs, product_seconds
from evalkit.study.notes import notes_on
from evalkit.updates.parser import parse
from evalkit.updates.registry import registered

LONG = 86400.0
"""Seconds of a study from which on a shorter one is worth a thought."""


def floor(lin: Linearization) -> Finding:
    """Find whether a direction can reach the floor: no more free outputs than live parameters.

    Args:
        lin: of the batch.
    """
    unused, still = without_gradient(lin)
    sizes = {name: value.numel() for name, value in lin.parameters.items()}
    live = lin.num_params - sum(sizes[name] for name in (*unused, *still))
    outputs = free_outputs(lin)
    numbers = {"outputs": outputs, "parameters": live}
    notes = notes_on(
        {
            "settings": {"batch_size": lin.num_samples},
            "trainable_parameters": live,
            "outputs_per_sample": outputs / lin.num_samples,
        }
    )
    if notes:
        said, _, cure = notes[0].rpartition("; ")
        return Finding("floor", "warn", said, cure, numbers)
    found = f"{counted(outputs, 'free output')} of a batch, {counted(live, 'parameter')}"
    said = f"{found}: it can be reached"
    return Finding("floor", "ok", said, numbers=numbers)


def batches(subject: Subject) -> Finding:
    """Find whether batches share most of their samples."""
    settings = subject.settings
    notes = notes_on(
        {
            "settings": {"batch_size": settings.batch_size, "batches": settings.batches},
            "training_samples": subject.training_samples,
        }
    )
    numbers = {"batches": settings.batches, "training_samples": subject.training_samples}
    said = (
        f"{counted(settings.batches, 'batch')} of {settings.batch_size} from "
        f"{counted(subject.training_samples, 'sample')}"
    )
    # A study says it too, and goes on: intervals mean less, and scores mean what they say.
    said = notes[0].rpartition("; ")[0] if notes else said
    return Finding("batches", "ok", said, numbers=numbers)


def solver(subject: Subject, lin: Linearization) -> Finding:
    """Find how the exact natural gradient would be solved for, and how long that takes.

    Args:
        subject: whose methods may set it.
        lin: of the batch.
    """
    asked = [method for method in subject.settings.methods if base_name(method) == "ngd"]
    settings = {**defaults_of(registered("ngd")), **(parse(asked[0])[1] if asked else {})}
    stopping = Stopping(*(settings[n] for n in ("max_iterations", "tolerance", "floor_tolerance")))
    seconds = expected_seconds(lin, stopping)
    chosen = cheapest(lin, stopping) if settings["solver"] == "auto" else settings["solver"]
    others = ", ".join(
        f"{name} {duration(time)}" if math.isfinite(time) else f"{name} does not fit"
        for name, time in seconds.items()
        if name != chosen
    )
    said = (
        f"{'ngd' if asked else 'ngd, if asked for,'} by {chosen}, roughly "
        f"{duration(seconds[chosen])} a batch ({others})"
    )
    numbers = {"solver": chosen, "seconds": seconds}
    return Finding("solver", "ok", said, numbers=numbers)


def time(subject: Subject, one: Trial, processes: int) -> Finding:
    """Find how long the study takes.

    Args:
        subject: whose settings and checkpoints say how much it is.
        one: one batch, scored as the study does.
        processes: that share its batches.
    """
    settings = subject.settings
    cells = subject.checkpoints * settings.batches
    by_products = cell_seconds(product_seconds(one.lin), settings.methods, len(settings.dampings))
    total = cells * one.seconds / processes
    numbers = {
        "seconds": total,
        "batch_seconds": one.seconds,
        "batch_seconds_by_products": by_products,
        "cells": cells,
        "processes": processes,
    }
    said = (
        f"about {duration(total)} in {counted(processes, 'process')} for "
        f"{counted(subject.checkpoints, 'checkpoint')} and {counted(settings.batches, 'batch')} "
        f"each, by {duration(one.seconds)} for one"
    )
    left = [method for method in settings.methods if method not in tried(settings.methods)]
    if left:  # past tasks, or the saved state of an optimizer
        said += f", without {', '.join(left)}, which needs more than a batch and is not tried"
    if total < LONG:
        return Finding("time", "ok", said, numbers=numbers)
    fewer = max(3, int(settings.batches * LONG / total))
    cure = (
        f"set `batches={fewer}`, name fewer `methods`, keep fewer checkpoints, or take a GPU "
        "(`device=cuda`)"
    )
    return Finding("time", "warn", said, cure, numbers)

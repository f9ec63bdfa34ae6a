"""Every check on one subject, in an order in which each may rely on those before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import evalkit
from evalkit.doctor import study
from evalkit.doctor.companions import companions
from evalkit.doctor.finding import VERDICTS, Finding, Verdict, looked_at, refused
from evalkit.doctor.forward import determinism, forward
from evalkit.doctor.layers import layers
from evalkit.doctor.memory import Fit, memory
from evalkit.doctor.padding import padding
from evalkit.doctor.precision import precision
from evalkit.doctor.products import products
from evalkit.doctor.subject import Subject
from evalkit.doctor.trial import trial
from evalkit.doctor.values import values
from evalkit.errors import EvalkitError
from evalkit.linearization import linearize
from evalkit.study.processes import gains_from_processes, shared_by
from evalkit.updates.parser import parse
from evalkit.updates.registry import takes_past

_OWN = str(Path(evalkit.__file__).parent)
_TOLD = "samples influence each other"
"""How a warning begins of which findings say more."""
_TORCHS = "(Triggered internally"
"""What a warning of torch's own holds, whichever file it names."""

OnCheck = Callable[[str], None]
"""Called with the name of a check before it is made."""


@dataclass(frozen=True)
class Report:
    """What an examination has found.

    Attributes:
        findings: what is worst first, of one verdict in the order in which checks were made.
        left_out: checks that were not made, since nothing can be scored.
    """

    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        return self.findings[0].verdict if self.findings else "ok"

    @property
    def status(self) -> int:
        """The exit status: 0 fine, 1 something should be changed, 2 it cannot be scored."""
        return {"ok": 0, "warn": 1, "fail": 2}[self.verdict]


ON_FEW = {
    "forward": forward,
    "values": values,
    "determinism": determinism,
    "companions": companions,
    "padding": padding,
}
"""Checks of the forward, on a few samples."""
ON_BATCH = ("products", "memory", "parameters", "floor", "precision", "solver", "time", "batches")
"""Checks that linearize, the first two on a few samples too."""


def examine(subject: Subject, processes: int = 1, on_check: OnCheck = lambda name: None) -> Report:
    """Make every check.

    Where nothing can be scored, checks that would say the same again are left out.

    Args:
        subject: what is examined; its model is left as it was.
        processes: that the study may have where its model is small.
        on_check: called with the name of each check.
    """
    found: list[Finding] = []
    with _heard() as said:
        for finding in _findings(subject, processes, on_check):
            found.append(finding)
    found += [_of_warning(text) for text in dict.fromkeys(said) if not text.startswith(_TOLD)]
    made = {finding.name for finding in found}
    failed = any(finding.verdict == "fail" for finding in found)
    names = (*ON_FEW, *ON_BATCH)
    left_out = tuple(name for name in names if failed and name not in made)
    return Report(tuple(sorted(found, key=lambda one: VERDICTS.index(one.verdict))), left_out)


def _findings(subject: Subject, processes: int, on_check: OnCheck) -> Iterator[Finding]:
    """Yield findings as they are made; nothing follows one that stops a score."""
    mixed = False
    for name, check in ON_FEW.items():
        on_check(name)
        finding = looked_at(name, partial(check, subject))
        mixed = mixed or (name == "companions" and finding.verdict == "warn")
        yield finding
        if finding.verdict == "fail":
            return
    on_check("products")
    finding = looked_at("products", lambda: _products_of_few(subject))
    if mixed and finding.verdict == "warn":  # the same, said once
        finding = replace(finding, verdict="ok", cure="")
    yield finding
    if finding.verdict == "fail":
        return
    on_check("memory")
    fits: list[Fit] = []

    def measured() -> Finding:
        fits.append(memory(subject))
        return fits[0].finding

    finding = looked_at("memory", measured)
    yield finding
    if finding.verdict != "fail":
        yield from _of_batch(subject, fits[0].micro_batch_size, processes, on_check)


def _products_of_few(subject: Subject) -> Finding:
    few = subject.few
    given = subject.model, few.inputs, few.targets, subject.likelihood
    return products(linearize(*given, dtype=subject.dtype))


def _of_batch(
    subject: Subject, micro_batch_size: int | None, processes: int, on_check: OnCheck
) -> Iterator[Finding]:
    """Yield what the scores of the whole batch tell."""
    on_check("scoring of one batch")
    shared = _processes(subject, processes)  # before the trial lets torch have one thread
    try:
        with trial(subject, subject.batch, micro_batch_size) as one:
            for name, check in (
                ("parameters", lambda: layers(one.lin)),
                ("floor", lambda: study.floor(one.lin)),
                ("precision", lambda: precision(subject, one)),
                ("solver", lambda: study.solver(subject, one.lin)),
                ("time", lambda: study.time(subject, one, shared)),
                ("batches", lambda: study.batches(subject)),
            ):
                on_check(name)
                yield looked_at(name, check)
    except EvalkitError as error:
        yield refused("scoring", error)


def _processes(subject: Subject, processes: int) -> int:
    """Return in how many processes, of so many that it may have, the study is scored."""
    settings = subject.settings
    if processes < 2 or any(takes_past(parse(method)[0]) for method in settings.methods):
        return 1
    given = subject.model, subject.samples, subject.likelihood, settings
    cells = subject.checkpoints * settings.batches
    return shared_by(cells, processes) if gains_from_processes(*given) else 1


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Provide what evalkit warns of within the block, which findings take the place of."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    for one in caught:
        own = issubclass(one.category, UserWarning) and one.filename.startswith(_OWN)
        if own and _TORCHS not in str(one.message):
            texts.append(str(one.message))


def _of_warning(text: str) -> Finding:
    said, _, cure = text.removeprefix("evalkit: ").rpartition("; ")
    return Finding("warning", "warn", said or cure, cure if said else "")

"""What somebody does who has nothing but the wheel: every command, first without the extras."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from evalkit.extras import INSTALL
from evalkit.version import __version__
from tests.wheel.environment import ROOT, Environment


@dataclass(frozen=True)
class Step:
    """A command, and what becomes of it.

    Attributes:
        command: as it is typed.
        says: a part of what it prints.
        writes: a file that is there afterwards.
        extra: that it needs; where it is absent, one sentence says how to install it.
    """

    command: str
    says: str = ""
    writes: str = ""
    extra: str = ""


ALONE = (
    Step("evalkit --version", says=f"evalkit, version {__version__}"),
    Step("evalkit --help", says="Examples:"),
    Step("evalkit list", says="digits-mlp"),
    Step(
        "evalkit train digits-mlp --epochs 4 --checkpoint-every 2 --out checkpoints",
        writes="checkpoints/trajectory.json",
    ),
    Step("evalkit doctor checkpoints --batch-size 16", says="nothing has to be changed"),
    Step(
        "evalkit score checkpoints --batches 2 --batch-size 16 --out run",
        says="iEF",
        writes="run/scores.csv",
    ),
    Step("evalkit status run", says="done"),
    Step("evalkit report run --style paper", writes="run/report.html"),
    Step("evalkit compare run --out compared", writes="compared/comparison.csv"),
    Step("evalkit check run --baseline base.csv --update-baseline", writes="base.csv"),
    Step("evalkit check run --baseline base.csv --junit gate.xml", writes="gate.xml"),
    Step("evalkit toy logistic --out toy", writes="toy/toy.json"),
    Step("evalkit cost digits-mlp --methods sgd,ief --repetitions 1", says="iEF"),
    Step("evalkit errors checkpoints --methods kfac --batches 1 --batch-size 8", says="KFAC"),
)
"""What the wheel does with the packages that it needs."""
EXPORTS = tuple(
    Step(f"evalkit export run --to {tool} --out {tool}", writes=tool, extra="export")
    for tool in ("tensorboard", "wandb", "mlflow", "parquet")
)
PARQUET = Step(
    "evalkit score checkpoints --batches 1 --batch-size 16 --tables parquet --out large",
    writes="large/scores.parquet",
    extra="export",
)
FINE_TUNES = (
    Step("evalkit train glue-cola --out cola", extra="hf"),
    Step("evalkit train vit-cifar10 --out cifar", extra="hf"),
    Step("evalkit train digits-mlp --optimizer adafactor --out adafactor", extra="hf"),
)


def walk(environment: Environment) -> Iterator[str]:
    """Yield a line on each fault that is found."""
    if not _is_watched(environment):
        yield "reading from the repository is not seen"
    for step in ALONE:
        yield from _taken(environment, step)
    for step in (*EXPORTS, PARQUET, *FINE_TUNES):
        yield from _refused(environment, step)
    # The sentence's own command; the index is not asked for what is installed.
    environment.install(*shlex.split(INSTALL.format(extra="export"))[2:])
    for step in (*EXPORTS, PARQUET):
        yield from _taken(environment, step)
    for path in environment.reads():
        yield f"expected nothing to be read from the repository, found {path}"


def _is_watched(environment: Environment) -> bool:
    """Return whether a file of the repository that is read is noted, and forget it."""
    path = str(ROOT / "setup.cfg")
    environment.run(("python", "-c", f"open({path!r}).close()"))
    seen = environment.reads() == [path]
    environment.log.write_text("", encoding="utf-8")
    return seen


def _taken(environment: Environment, step: Step) -> Iterator[str]:
    """Take a step that succeeds."""
    print(step.command, flush=True)
    done = environment.run(shlex.split(step.command))
    said = done.stdout + done.stderr
    if done.returncode or "Traceback" in said:
        yield f"{step.command}: exit status {done.returncode}\n{said}"
    elif step.says not in said:
        yield f"{step.command}: expected '{step.says}', found\n{said}"
    elif step.writes and not (environment.working / step.writes).exists():
        yield f"{step.command}: expected {step.writes}, found none"


def _refused(environment: Environment, step: Step) -> Iterator[str]:
    """Take a step that needs an extra which is absent: one sentence, and status 2."""
    print(f"{step.command}    # without the extra {step.extra}", flush=True)
    done = environment.run(shlex.split(step.command))
    lines = done.stderr.splitlines()
    is_sentence = len(lines) == 1 and lines[0].startswith("evalkit: error: expected")
    if done.returncode != 2 or not is_sentence or INSTALL.format(extra=step.extra) not in lines[0]:
        yield f"{step.command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"

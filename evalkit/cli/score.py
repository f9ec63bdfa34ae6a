"""``evalkit score``: the main job."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evalkit.cli.console import say, say_wrapped
from evalkit.cli.early import check_names, check_there
from evalkit.cli.options import (
    BATCH_SIZE,
    CHECKPOINTS,
    DAMPINGS,
    DEVICE,
    DTYPE,
    KEY,
    LOAD,
    MICRO_BATCH_SIZE,
    OPTIMIZER,
    ORDER,
    OTHERS,
    PAST,
    PAST_BATCHES_OPTION,
    PAST_LABELS,
    SEED,
    SET,
    TASK,
    batch_count,
    method_names,
    out,
)
from evalkit.cli.ranks import SHARD, joined_ranks, launched_without, own_device, scored_cells
from evalkit.cli.ratios import print_ratios
from evalkit.cli.split import SPLIT_BATCH, joined_split
from evalkit.cli.wording import in_options
from evalkit.counts import counted
from evalkit.machine import own_processes
from evalkit.names import base_name
from evalkit.settings import Others, Settings

if TYPE_CHECKING:
    from evalkit.curvature import Labels
    from evalkit.launch import Shard
    from evalkit.linearization.split import Split
    from evalkit.study.ranks import Ranks

INCOMPLETE = 1
"""Exit status where batches could not be scored."""


@click.command(
    "score",
    short_help="Score every checkpoint in a folder.",
    epilog="""\b
Examples:
  evalkit score checkpoints/digits-mlp
  evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --out runs/digits-mlp
  evalkit score checkpoints/digits-mlp --damping 1e-12,1e-6,1e-3 --out runs/sweep
  evalkit score my-checkpoints --task my_task.py:task --batches 20 --batch-size 64
  evalkit score my-lora-run --task glue-cola --set data=my-data --batch-size 32
  evalkit score checkpoints/digits-mlp --load my_method.py --methods sgd,ief,mine
  evalkit score my-lora-run --methods sgd,ief,optimizer --task glue-cola
  evalkit score my-checkpoints --methods sgd,fopng --past past.py:task=past/final.pt
  torchrun --nproc-per-node 8 -m evalkit score my-checkpoints --device cuda
  evalkit score my-checkpoints --shard 3/8
  torchrun --nproc-per-node 8 -m evalkit score my-checkpoints --device cuda --split-batch
""",
)
@CHECKPOINTS
@TASK
@SET
@LOAD
@method_names("Methods, with settings if wanted: sf:labels_per_sample=4.")
@DAMPINGS
@batch_count("Batches per checkpoint.")
@BATCH_SIZE
@SEED
@ORDER
@KEY
@DTYPE
@MICRO_BATCH_SIZE
@DEVICE
@OTHERS
@OPTIMIZER
@PAST
@PAST_BATCHES_OPTION
@PAST_LABELS
@SHARD
@SPLIT_BATCH
@out("Folder of the tables; default: runs/<name of DIR>.", "run", "RUN")
@click.option(
    "--tables",
    type=click.Choice(("csv", "parquet")),
    help="Form of the tables: parquet for big studies; default: what RUN has, csv at first.",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Start over; the run that is there is kept as RUN.1, RUN.2, ...",
)
def command(
    folder: Path,
    task: str | None,
    task_settings: tuple[tuple[str, str], ...],
    code: tuple[str, ...],
    methods: tuple[str, ...],
    dampings: tuple[float, ...],
    batches: int,
    batch_size: int,
    seed: int,
    order: tuple[str, ...] | None,
    key: str | None,
    dtype: str | None,
    micro_batch_size: int | None,
    device: str,
    others: Others,
    optimizer: str | None,
    past: tuple[tuple[str, str], ...],
    past_batches: int,
    past_labels: Labels,
    shard: Shard | None,
    split_batch: bool,
    run: Path | None,
    tables: str | None,
    fresh: bool,
) -> int:
    """Score approximate updates at every checkpoint in DIR, on the same batches of training data.

    Writes scores.csv, batches.csv and run.json into RUN and prints, for every checkpoint and
    method, gamma as a ratio to SGD's with the efficiency in brackets. An interrupted run goes on
    where it stopped when the same command is given again; more methods, dampings, checkpoints and
    batches extend it. Under torchrun its processes share the batches. Exit status 1 says that some
    batches could not be scored; the same command tries them again.
    """
    launch = launched_without(shard, fresh)
    processes = own_processes() if launch is None else 1  # before torch is loaded
    with joined_ranks(launch) as ranks, joined_split(split_batch, launch, shard) as split:
        check_there(folder)
        check_names("method", methods, (*code, task))
        for _, path in past:
            check_there(Path(path))
        sizes, place = (batches, batch_size, seed), own_device(device, launch)
        settings = Settings(methods, dampings, *sizes, dtype, micro_batch_size, place, others)
        run = run if run is not None else Path("runs") / _run_name(folder)
        given = dict(task_settings)
        if optimizer is None and any(base_name(name) == "optimizer" for name in methods):
            optimizer = given.pop("optimizer", None)
        spec, before = (task, given), (past, past_batches, past_labels)
        sharing, kept = (processes, ranks, shard, split), (fresh, tables)
        _score((folder, order, key), spec, code, settings, run, before, optimizer, sharing, kept)
        # One process alone says so: torchrun ends all others when one fails.
        return _print_results(run, shard) if ranks is None or ranks.leads else 0


def _print_results(run: Path, shard: Shard | None) -> int:
    """Print ratios, or what a shard leaves to others, and return the exit status."""
    if shard is not None:
        done, failed, total = scored_cells(run)
        if done + failed < total:
            say(
                f"Shard {shard.number}/{shard.count} has ended; {done} of "
                f"{counted(total, 'batch')} in {run} {'is' if done == 1 else 'are'} scored, and "
                "the tables are there when the other shards have ended"
            )
            return INCOMPLETE if failed else 0
    shown = print_ratios(run)
    say(f"Tables in {run}; figures and page: evalkit report {run}")
    return INCOMPLETE if len(shown.failures) else 0


def _run_name(folder: Path) -> str:
    """Return what the run of a folder is called by default, or of one checkpoint file."""
    path = folder.resolve()
    return path.stem if path.is_file() else path.name


def _score(
    opened: tuple[Path, tuple[str, ...] | None, str | None],
    spec: tuple[str | None, dict[str, str]],
    code: tuple[str, ...],
    settings: Settings,
    run: Path,
    past: tuple[tuple[tuple[str, str], ...], int, Labels],
    optimizer: str | None,
    sharing: tuple[int, Ranks | None, Shard | None, Split | None],
    kept: tuple[bool, str | None],
) -> None:
    processes, ranks, shard, split = sharing
    leads = ranks is None or ranks.leads
    apart = ranks if split is None else None  # who are handed batches, each its own
    from evalkit.checkpoints import open_trajectory, trajectory_task
    from evalkit.cli.progress import NOT_SHOWN, duration, shown_progress
    from evalkit.study.past import PastRequest
    from evalkit.study.running import Progress, Start, run_study
    from evalkit.tasks.loading import load_code

    for location in code:
        load_code(location)
    trajectory = open_trajectory(*opened)
    for note in trajectory.notes if leads else ():
        say_wrapped(note)
    task = trajectory_task(trajectory, *spec)
    given, past_batches, past_labels = past
    before = [(open_trajectory(path), name) for name, path in given]
    tasks = tuple((opened, trajectory_task(opened, name)) for opened, name in before)
    asked = PastRequest(tasks, past_batches, past_labels) if tasks else None
    with shown_progress(task.name) if leads else nullcontext(NOT_SHOWN) as shown:

        def show(state: Progress) -> None:
            doing = f"{state.checkpoint}, iteration {state.iteration}"
            shown.update(state.done, state.total, doing if state.iteration else state.checkpoint)

        def begin(start: Start) -> None:
            for note in start.notes:
                shown.say(f"evalkit: note: {in_options(note)}")
            shown.say(
                f"evalkit: {counted(start.cells, 'batch')} to score, roughly "
                f"{duration(start.seconds)} by the time of one product"
            )

        def tell(sentence: str) -> None:
            shown.say(f"evalkit: note: {in_options(sentence)}")

        many = processes, asked, optimizer, apart, shard, *kept, tell, split
        run_study(trajectory, task, settings, run, show, begin, *many)

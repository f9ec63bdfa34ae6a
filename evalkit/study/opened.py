"""What a study scores with, opened and verified before the first score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from evalkit.checkpoints import Trajectory, verify_trajectory
from evalkit.checkpoints.adapters import model_for
from evalkit.evaluation.devices import check_device
from evalkit.linearization.split import Split
from evalkit.scoring import check_request
from evalkit.settings import Settings
from evalkit.storage.columns import check_name
from evalkit.study.batches import samples_to_score
from evalkit.study.past import OpenedPast, PastRequest, open_past
from evalkit.study.provenance import describe_study
from evalkit.study.steps import SavedSteps, open_steps
from evalkit.tasks import Samples, Task
from evalkit.tasks.samples import ItemSamples


@dataclass(frozen=True, eq=False)
class Opened:
    """A study whose parts are known to fit together.

    Attributes:
        trajectory: the checkpoints.
        task: the model and the data.
        settings: methods, dampings, batches, seed.
        model: of the task, in eval mode, on the device of the evaluation.
        samples: that batches are drawn from.
        past: past tasks, for methods that have them as an input.
        steps: the optimizers of the checkpoints, for the method of that name.
        split: the processes that share the samples of each batch, if there are several.
    """

    trajectory: Trajectory
    task: Task
    settings: Settings
    model: nn.Module
    samples: Samples | ItemSamples
    past: OpenedPast | None
    steps: SavedSteps | None
    split: Split | None = None

    def described(self) -> dict[str, Any]:
        """Return what ``run.json`` says of a study that starts now."""
        given = self.trajectory, self.task, self.settings, self.model, len(self.samples)
        past = {} if self.past is None else {"past": self.past.entries}
        steps = {} if self.steps is None else {"optimizers": self.steps.entries}
        return {**describe_study(*given), **past, **steps}


def open_study(
    trajectory: Trajectory,
    task: Task,
    settings: Settings,
    past: PastRequest | None = None,
    optimizer: str | None = None,
    rank: int = 0,
    world: int = 1,
) -> Opened:
    """Return what a study scores with; nothing is written.

    Args:
        trajectory: the checkpoints.
        task: the model and the training samples that batches are drawn from.
        settings: methods, dampings, batches, seed.
        past: past tasks, for methods that have them as an input.
        optimizer: the class of the saved optimizers; None to go by what their files say.
        rank: number of this process among those that score the study.
        world: how many those are: each verifies its part of the checkpoints.

    Raises:
        EvalkitError: the arguments do not fit together, or a checkpoint cannot be used.
    """
    check_request(settings.methods, settings.dampings, past is not None, optimizer=True)
    if past is not None:
        past.check(settings.methods)
    for checkpoint in trajectory.checkpoints:
        check_name("checkpoint", checkpoint.name)
    samples = samples_to_score(task, settings.batch_size)
    device = check_device(settings.device)
    model = model_for(trajectory, task, settings.seed).eval().to(device)
    samples = task.fit_labels(samples, model)
    verify_trajectory(replace(trajectory, checkpoints=trajectory.checkpoints[rank::world]), model)
    opened = None if past is None else open_past(past, settings, model)
    steps = open_steps(trajectory.checkpoints, settings.methods, model, optimizer)
    return Opened(trajectory, task, settings, model, samples, opened, steps)

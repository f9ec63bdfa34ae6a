"""Saved checkpoints of one training run: found, opened in order, verified, loaded into a model."""

from evalkit.checkpoints.loading import load_into, read_tensors, verify, verify_trajectory
from evalkit.checkpoints.trajectory import (
    Checkpoint,
    Trajectory,
    open_trajectory,
    trajectory_task,
)

__all__ = [
    "Checkpoint",
    "Trajectory",
    "load_into",
    "open_trajectory",
    "read_tensors",
    "trajectory_task",
    "verify",
    "verify_trajectory",
]

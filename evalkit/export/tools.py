"""What a run can be exported to."""

from __future__ import annotations

from typing import Literal, get_args

Tool = Literal["tensorboard", "wandb", "mlflow", "parquet"]
TOOLS: tuple[Tool, ...] = get_args(Tool)

"""Scores while the Trainer of transformers trains."""

from evalkit.callback.score_callback import ScoreCallback

__all__ = ["ScoreCallback"]

"""Scores of methods on one batch, each with its error, and what else is measured there."""

from evalkit.scoring.entry import check_request, score, to_frame
from evalkit.scoring.rows import Score, score_linearization, score_update

__all__ = ["Score", "check_request", "score", "score_linearization", "score_update", "to_frame"]

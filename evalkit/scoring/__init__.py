"""Scores of methods on one batch, each with its error, and what else is measured there."""

from evalkit.scoring.entry import check_request, score
from evalkit.scoring.rows import score_linearization, score_update

__all__ = ["check_request", "score", "score_linearization", "score_update"]

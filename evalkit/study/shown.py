"""How far a study is, as it is shown while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evalkit.study.ranks import Ranks


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: finished cells (one checkpoint, one batch), those of an earlier start included.
        total: cells of the study.
        checkpoint: the name of the checkpoint that is scored.
        iteration: the iteration of the solver that is running, 0 when none is.
    """

    done: int
    total: int
    checkpoint: str
    iteration: int = 0


@dataclass
class Shown:
    """What is shown of a study: how many cells are done, of how many, and what it is at."""

    on_progress: Callable[[Progress], None] | None
    total: int
    before: int
    ranks: Ranks | None
    own: int = 0
    is_planned: bool = False

    def planned(self, units: int) -> None:
        """Take in how many units are left for all ranks."""
        self.before, self.is_planned = self.total - units, True

    def finished(self, checkpoint: str) -> None:
        """Show that one more cell is done."""
        self.own += 1
        self.at(checkpoint)

    def waiting(self) -> None:
        """Show how far other ranks are."""
        self.at("waiting for other ranks")

    def at(self, checkpoint: str, iteration: int = 0, _: float = 0.0) -> None:
        """Show what is scored."""
        if self.on_progress is not None:
            # What others did before this rank knew of the plan is in what it has found finished.
            shared = self.ranks.done if self.ranks is not None and self.is_planned else self.own
            done = self.before + shared
            self.on_progress(Progress(min(done, self.total), self.total, checkpoint, iteration))

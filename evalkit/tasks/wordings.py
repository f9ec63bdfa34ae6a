"""How the seven GLUE tasks of the paper are put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Wording:
    """How the rows of a data set become text and a label.

    Attributes:
        columns: the columns of one sentence or of two.
        markers: before each sentence in a text-to-text input; empty for one sentence.
        words: the label words, by the number of the label.
        instruction: before the sentences in a text-to-text input.
    """

    columns: tuple[str, ...]
    markers: tuple[str, ...]
    words: tuple[str, ...]
    instruction: str

    def text(self, sentences: Sequence[str], instruction: str) -> str:
        """Return the text-to-text input of one row."""
        marked = [
            f"{mark}: {sentence}"
            for mark, sentence in zip(self.markers, sentences, strict=len(self.columns) > 1)
        ]
        return " ".join([instruction, *(marked or sentences)])


WORDINGS = {
    "cola": Wording(
        ("sentence",),
        (),
        ("unacceptable", "acceptable"),
        "Say whether the grammar of this sentence is acceptable or unacceptable.",
    ),
    "sst2": Wording(
        ("sentence",),
        (),
        ("negative", "positive"),
        "Say whether the opinion in this sentence is positive or negative.",
    ),
    "qqp": Wording(
        ("question1", "question2"),
        ("Q1", "Q2"),
        ("no", "yes"),
        "Answer yes if these two questions ask the same, no if they do not.",
    ),
    "mrpc": Wording(
        ("sentence1", "sentence2"),
        ("S1", "S2"),
        ("no", "yes"),
        "Answer yes if these two sentences mean the same, no if they do not.",
    ),
    "mnli": Wording(
        ("premise", "hypothesis"),
        ("premise", "hypothesis"),
        ("yes", "maybe", "no"),
        "Answer yes, maybe or no: does the hypothesis follow from the premise?",
    ),
    "qnli": Wording(
        ("question", "sentence"),
        ("Q", "S"),
        _YES_NO,
        "Answer yes if the sentence answers the question, no if it does not.",
    ),
    "rte": Wording(
        ("sentence1", "sentence2"),
        ("S1", "S2"),
        _YES_NO,
        "Answer yes if the second sentence follows from the first, no if it does not.",
    ),
}
EPOCHS = {"cola": 20, "sst2": 20, "qqp": 5, "mrpc": 30, "mnli": 5, "qnli": 15, "rte": 40}
"""As in the paper."""

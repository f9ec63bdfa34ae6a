"""The seven GLUE tasks of the paper, with LoRA or prompt tuning of a pretrained model."""

from __future__ import annotations

from collections.abc import Callable

from evalkit.tasks.pretrained import ADAPTERS, check_choice, check_number, recipe
from evalkit.tasks.registered import register_family
from evalkit.tasks.task import Task
from evalkit.tasks.text import Text, Wording, trim

_LABELS = ("all", "first")
_YES_NO = ("yes", "no")

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


def _maker(name: str) -> Callable[..., Task]:
    """Return the function that makes a GLUE task of its settings."""
    wording = WORDINGS[name]

    def make(
        model: str = "google-t5/t5-base",
        data: str = "nyu-mll/glue",
        tokenizer: str = "",
        adapter: str = "lora",
        labels: str = "all",
        instruction: str = wording.instruction,
        samples: int = 0,
        max_length: int = 128,
    ) -> Task:
        check_choice("adapter", adapter, ADAPTERS)
        check_choice("labels", labels, _LABELS)
        check_number("samples", samples, 0)
        check_number("max_length", max_length, 1)
        text = Text(
            wording=wording,
            configuration=name,
            validation="validation_matched" if name == "mnli" else "validation",
            model=model,
            data=data,
            tokenizer=tokenizer,
            adapter=adapter,
            instruction=instruction,
            first_label_only=labels == "first",
            samples=samples,
            max_length=max_length,
        )
        return Task(
            model=text.base if adapter == "none" else text.adapted,
            base=text.base,
            data=text.training,
            validation=text.validating,
            collate=trim,
            recipe=recipe(adapter, EPOCHS[name]),
        )

    return make


for _name in WORDINGS:
    register_family(f"glue-{_name}", _maker(_name))

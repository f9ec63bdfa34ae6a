"""The studies by name: which optimizers, on which task, with which grids of learning rates.

Those of the MLP on CIFAR-10 are the paper's (Wu et al., NeurIPS 2024, appendix H), with dampings
and schedules; grids are around what the paper takes, or what is usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.studies.study import Candidate, Study

FASHION_MNIST = {"samples": "5000", "size": "14", "widths": "64-32"}
"""Small enough for minutes on two cores: 14 x 14 pixels, 15,018 parameters."""
NORMALISED = {"normalise": True, "schedule": "linear"}
"""Of EF and SF, as in the paper: steps as long as the learning rate, which falls to 0."""
DAMPING = 1e-2
"""Of structured methods, for the mean loss; near zero the rank of a batch is too small for them."""
TEN_DAMPINGS = (1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e4)


def _grid(low: float, count: int, factor: float = 10**0.5) -> tuple[float, ...]:
    return tuple(float(f"{low * factor**place:.2g}") for place in range(count))


def _every() -> tuple[Candidate, ...]:
    """Return every optimizer, with grids for small perceptrons."""
    by_samples, by_layers = {"damping": 1e-12}, {"damping": DAMPING}
    return (
        Candidate("adamw", _grid(3.2e-3, 3), {"weight_decay": 0.01}),
        Candidate("adam", _grid(3.2e-3, 3)),
        Candidate("adafactor", _grid(3.2e-3, 3)),
        Candidate("muon", _grid(0.01, 3)),
        Candidate("sgd", _grid(0.1, 3)),
        Candidate("ief", _grid(10.0, 3), by_samples),
        Candidate("ef", _grid(0.1, 3), by_samples | NORMALISED),
        Candidate("sf", _grid(0.032, 4), by_samples | NORMALISED),
        Candidate("fgn", _grid(0.01, 3), by_samples),
        Candidate("polyak", _grid(0.1, 3), by_samples),
        Candidate("kfac", _grid(3.2e-3, 3), by_layers),
        Candidate("kfac:labels=improved", _grid(0.1, 3), by_layers),
        Candidate("ekfac", _grid(3.2e-3, 3), by_layers),
        Candidate("eva", _grid(3.2e-3, 3), by_layers),
        Candidate("shampoo:labels=empirical", _grid(0.01, 3), by_layers),
    )


def _paper(ief_damping: float = 1e-12, **rates: tuple[float, ...]) -> tuple[Candidate, ...]:
    """Return the paper's optimizers, and FGN."""
    options: Mapping[str, Mapping[str, Any]] = {
        "ief": {"damping": ief_damping},
        "fgn": {"damping": 1e-12},
        "ef": {"damping": 1e-12} | NORMALISED,
        "sf": {"damping": 1e-12} | NORMALISED,
    }
    return tuple(Candidate(name, grid, options.get(name, {})) for name, grid in rates.items())


_DECAYED = {"schedule": "step:at=0.25:factor=0.1"}
"""By 0.1 at epoch 15 of 60."""
_CIFAR10 = (
    Candidate("adam", (1e-4,), _DECAYED),
    Candidate("sgd", (0.1,), _DECAYED),
    *_paper(ief=(50.0,), sf=(0.1,), ef=(1e-4,)),
)
_TABLE_8 = {
    "ief": "58.8 ± 0.87 (58.6)",
    "adam": "56.3 ± 0.22 (56.6)",
    "sf": "54.8 ± 0.08 (55.2)",
    "sgd": "54.3 ± 0.66 (54.4)",
    "ef": "28.2 ± 1.43 (29.2)",
}
"""Validation (test) accuracy in percent, 3 seeds."""


LORA_DAMPING = 1e-7
"""Of iEF where LoRA is trained, as in the paper; nearer to zero its steps are too long there."""
_LORA_GRIDS = {
    "adamw": _grid(3.2e-4, 3),
    "sgd": _grid(0.1, 3),
    "ief": _grid(1.0, 3),
    "fgn": _grid(0.032, 3),
    "ef": _grid(0.01, 3),
    "sf": _grid(0.032, 3),
}
_CHOSEN_ON_COLA = {"adamw": 1e-3, "sgd": 0.32, "ief": 3.2, "fgn": 0.1, "ef": 0.032, "sf": 0.1}
"""Of these grids, for a task of the same kind and size: ``reports/studies/finetune/cola``."""


def _finetune(
    task: str, rates: Mapping[str, tuple[float, ...]], rates_of: str = "the paper's"
) -> Study:
    return Study(
        name=f"finetune/{task}",
        task=f"glue-{task}",
        candidates=_paper(ief_damping=LORA_DAMPING, **rates),
        settings={"adapter": "lora", "samples": "512", "validation_samples": "400"},
        epochs=8,
        checkpoints=4,
        batch_size=16,
        batches=3,
        scored_batch_size=64,
        scored_seeds=1,
        rates_of=rates_of,
    )


STUDIES: dict[str, Study] = {
    "e2/digits-mlp": Study(
        name="e2/digits-mlp",
        task="digits-mlp",
        candidates=_every(),
        epochs=20,
    ),
    "e2/mlp-fashion-mnist": Study(
        name="e2/mlp-fashion-mnist",
        task="mlp-fashion-mnist",
        candidates=_every(),
        settings=FASHION_MNIST,
        epochs=10,
    ),
    "mlp-cifar10": Study(
        name="mlp-cifar10",
        task="mlp-cifar10",
        candidates=_CIFAR10,
        settings={"validation_samples": "0"},
        epochs=60,
        scored_seeds=1,
        reference="adam",
        sweep=TEN_DAMPINGS,
        published=_TABLE_8,
    ),
    "finetune/cola": _finetune("cola", _LORA_GRIDS),
    "finetune/sst2": _finetune(
        "sst2",
        {name: (rate,) for name, rate in _CHOSEN_ON_COLA.items()},
        "that of CoLA's grid, on a task of the same kind and size",
    ),
}

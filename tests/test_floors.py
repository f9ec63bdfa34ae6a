"""Data flows one way: a module imports only from floors below its own."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

import evalkit

PACKAGE = Path(evalkit.__file__).parent
FLOORS = """
errors version machine quiet names notebooks interruption counts
registry extras settings reductions signs launch messages
group
storage.files given_settings
storage.json_files storage.rows storage.locks
storage.columns
likelihoods storage.tables storage.history
storage.parquet storage.run_json
storage.parts
next_token storage.run_folder storage.writers
storage.lost_rows storage.set_aside storage.history toy_tables overlap
storage.training_folder storage.run_status
storage
doubts
factor
layers factorization
evaluation.modules evaluation.precision evaluation.given evaluation.outputs evaluation.bags
evaluation.wrapped evaluation.substitutes evaluation.determinism
evaluation.failures evaluation.full_precision evaluation.devices
evaluation.forward
evaluation
linearization.broadcasts linearization.lost_ranks
linearization.recorder
linearization.graph_ends
linearization.recording
linearization.adjoint linearization.sample_axis linearization.by_parameter
linearization.ruled_rows linearization.per_sample
linearization.weighted_outputs linearization.through_outputs
linearization.tangents
linearization.micro_batches
linearization.callers_forward
linearization.gram
linearization.kept
linearization.linear_maps linearization.factors linearization.split
linearization.shares
linearization.gram_strips
linearization.split_gram linearization.split_kernel
linearization.loss_terms
linearization.sample_gradients
linearization.linearized
linearization.split_linearized
linearization.entry
linearization
indicator rounding work
solvers
curvature
updates
optim.recorded
optim
scoring
training.muon training.schedules training.registry
training.builders
training.optimizers
tasks
checkpoints
training
study.batches study.plan study.blocks study.estimate study.identity study.notes study.source_files
study.execute study.provenance study.past study.steps
study.faults
study.stored
study.store study.processes study.opened study.ranks study.loaded
study.keeping study.shown study.splitting
study.execution
study
diagnosis.blocks
diagnosis.matrix_errors
diagnosis.scales
diagnosis.running
diagnosis
testing toy bench
results.remembered
results.intervals results.spreads results.marks results.undefined results.history
results.summaries results.pairs results.diagnoses results.correlations results.trainings
results.sweeps results.training_curves
results.optimizer_ratios
results.rankings
results.comparisons
results
figures
gate report doctor
export.tools export.folder export.environment export.series
export.content
export.tensorboard_events export.wandb_run export.mlflow_store export.parquet_tables
export
callback
cli
"""
FLOOR = {name: height for height, line in enumerate(FLOORS.split("\n")) for name in line.split()}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or named(path))


def named(path: Path) -> bool:
    return not path.stem.startswith("__")


def home(path: Path) -> str:
    """Return the module or subpackage of evalkit with a floor that a file belongs to."""
    return floor_of(path.relative_to(PACKAGE).with_suffix("").parts)


def floor_of(parts: Sequence[str]) -> str:
    """Return the longest beginning of a dotted name, evalkit left out, that has a floor."""
    inner = ".".join(parts[:2])
    return inner if inner in FLOOR else parts[0]


def imported(path: Path) -> set[str]:
    """Return the modules and subpackages of evalkit that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {floor_of(name.split(".")[1:]) for name in names if name.startswith("evalkit.")}
    return {name for name in found if name in FLOOR}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below_its_own(path: Path) -> None:
    own = home(path)
    assert own in FLOOR, f"give '{own}' a floor"
    above = {name for name in imported(path) - {own} if FLOOR[name] >= FLOOR[own]}
    assert not above, f"{path.name} imports {sorted(above)}"


def test_every_floor_exists() -> None:
    assert set(FLOOR) == {home(path) for path in modules()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350

"""Checkpoints read, verified, and loaded into a model."""

from __future__ import annotations

import contextlib
import copy
import warnings

from torch import Tensor, nn

from evalkit.checkpoints.adapter_weights import base_notes, fit_to_adapter, load_adapter
from evalkit.checkpoints.fitting import Fitted, fit_to_model
from evalkit.checkpoints.layout import StateDict
from evalkit.checkpoints.saved import Saved, find_saved, read_saved_state, saved_hash
from evalkit.checkpoints.trajectory import Checkpoint, Trajectory, altered
from evalkit.errors import EvalkitError, reason


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint as they are in the file, on the CPU.

    Raises:
        EvalkitError: the file is not what it was when the folder was opened, or cannot be read; see
            :func:`evalkit.checkpoints.saved.read_saved`.
    """
    return _read_unaltered(checkpoint, find_saved(checkpoint.path)).tensors


def _read_unaltered(checkpoint: Checkpoint, saved: Saved) -> StateDict:
    if saved_hash(saved) != checkpoint.sha256:
        raise altered(checkpoint.path, "its trajectory")
    return read_saved_state(saved, checkpoint.key)


def verify(checkpoint: Checkpoint, model: nn.Module) -> tuple[str, ...]:
    """Check that a checkpoint can be loaded into ``model``, which is left as it is.

    Returns:
        Sentences for the user: what is taken and what is left out, where the file leaves a choice.

    Raises:
        EvalkitError: the file was altered or cannot be read, a tensor holds NaN or infinity, or
            names or shapes differ from those of ``model.state_dict()``, or of the adapter on it.
    """
    return _fitting_values(checkpoint, model)[0].notes


def verify_trajectory(trajectory: Trajectory, model: nn.Module) -> None:
    """Check every checkpoint as :func:`verify` does, before any is used.

    What files leave to choose is told by a warning, once for all checkpoints that are alike.
    """
    told = set()
    for checkpoint in trajectory.checkpoints:
        for note in verify(checkpoint, model):
            kind = note.replace(checkpoint.path.name, "")
            if kind not in told:
                warnings.warn(f"evalkit: {note}", stacklevel=2)
            told.add(kind)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the values of a checkpoint into ``model``, cast to the model's own dtypes.

    The values of an adapter go into the adapter on the model; see
    :func:`evalkit.checkpoints.adapters.model_for`. What is trainable stays as it is.

    Raises:
        EvalkitError: as for :func:`verify`, or the model refuses what it keeps beside its tensors;
            the model is then left as it was.
    """
    fitted, is_adapter = _fitting_values(checkpoint, model)
    if is_adapter:
        load_adapter(model, fitted.values)
        return
    has_extra = not all(isinstance(value, Tensor) for value in fitted.values.values())
    before = copy.deepcopy(model.state_dict()) if has_extra else None
    try:
        model.load_state_dict(fitted.values, strict=True)
    except Exception as error:  # set_extra_state is the model's own code
        if before is not None:
            with contextlib.suppress(Exception):
                model.load_state_dict(before)
        raise EvalkitError(
            f"expected {type(model).__name__} to take the state dict in '{checkpoint.path}', found "
            f"{reason(error)}; pass the task whose model was saved"
        ) from error


def _fitting_values(checkpoint: Checkpoint, model: nn.Module) -> tuple[Fitted, bool]:
    """Return the values of a checkpoint that is safe to load, and whether they are an adapter."""
    saved = find_saved(checkpoint.path)
    state = _read_unaltered(checkpoint, saved)
    if saved.is_adapter:
        values = fit_to_adapter(state.tensors, model, saved)
        return Fitted(values, (*state.notes, *base_notes(model, saved))), True
    return fit_to_model(state, model, checkpoint.path), False

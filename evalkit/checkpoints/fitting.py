"""The tensors of a checkpoint, fitted to those expected: names, shapes and finite values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from evalkit.checkpoints.current_names import in_current_names
from evalkit.errors import EvalkitError

# Wrappers that put their own name before every tensor's: data parallel, compiled, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_LISTED = 5


_ADVICE = "pass the task whose model was saved"


def fit_to_model(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors under exactly the names of ``model.state_dict()``; see :func:`fit`."""
    expected = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    if _matching_names(dict(tensors), expected).keys() != expected.keys():
        tensors = in_current_names(tensors, model)
    return fit(tensors, expected, path)


def fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: Path,
    advice: str = _ADVICE,
) -> dict[str, Tensor]:
    """Return the tensors under exactly the expected names.

    A prefix that a wrapper put before every name is taken off where the names then match better. A
    tensor that the model ties to another may be absent from the checkpoint.

    Args:
        tensors: as read from the checkpoint.
        expected: the model's own tensors, which are left as they are.
        path: the checkpoint, for the error sentence.
        advice: what to do about other names or shapes, for the error sentence.

    Raises:
        EvalkitError: missing or unexpected names, another shape or kind of number, NaN or infinity.
    """
    fitted = _matching_names(dict(tensors), expected)
    _check_names(fitted, expected, path, advice)
    for name, tensor in fitted.items():
        _check_kind(name, tensor, expected[name], path, advice)
        _check_finite(name, tensor, expected[name].dtype, path)
    return fitted


def _matching_names(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors under the model's names, without a wrapper's prefix where that helps."""
    candidates = [tensors]
    while prefix := next(
        (known for known in _PREFIXES if all(name.startswith(known) for name in candidates[-1])), ""
    ):
        candidates.append({name[len(prefix) :]: t for name, t in candidates[-1].items()})
    best = min(candidates, key=lambda candidate: len(candidate.keys() ^ expected.keys()))
    return best | _tied(best, expected)


def _check_names(
    fitted: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, advice: str
) -> None:
    missing = [name for name in expected if name not in fitted]
    unexpected = [name for name in fitted if name not in expected]
    found = [
        f"{kind} {list_names(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if found:
        raise EvalkitError(
            f"expected the tensors of the model in '{path}', found {' and '.join(found)}; {advice}"
        )


def _tied(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the absent tensors that the model ties to present ones: formats save those once."""
    present = {
        (value.data_ptr(), value.shape): name for name, value in expected.items() if name in tensors
    }
    absent = {name: value for name, value in expected.items() if name not in tensors}
    return {
        name: tensors[present[value.data_ptr(), value.shape]]
        for name, value in absent.items()
        if value.numel() and (value.data_ptr(), value.shape) in present
    }


def list_names(names: list[str]) -> str:
    """Return what an error sentence says of names: how many, and the first of them."""
    listed = ", ".join(repr(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} ({listed}{more})"


def _check_kind(name: str, tensor: Tensor, expected: Tensor, path: Path, advice: str) -> None:
    if tensor.shape != expected.shape:
        raise EvalkitError(
            f"expected shape {tuple(expected.shape)} for tensor '{name}' in '{path}', found "
            f"{tuple(tensor.shape)}; {advice}"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise EvalkitError(
            f"expected {expected.dtype} for tensor '{name}' in '{path}', found {tensor.dtype}; "
            f"{advice}"
        )


def _check_finite(name: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> None:
    if not tensor.is_floating_point():
        return
    # Cast as loading casts: a value beyond the range of the model's dtype turns infinite.
    values = tensor.to(dtype)
    nans, infinities = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
    if nans or infinities:
        raise EvalkitError(
            f"expected finite values in tensor '{name}' of '{path}', found {nans} NaN and "
            f"{infinities} Inf; pick a checkpoint from before training diverged"
        )

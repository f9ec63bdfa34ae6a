"""The tensors of a checkpoint, fitted to those expected: names, shapes and finite values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.current_names import in_current_names
from evalkit.checkpoints.layout import StateDict
from evalkit.checkpoints.names import Match, match, tied
from evalkit.errors import EvalkitError

_LISTED = 5
_WITH_EXTREMES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that torch finds the extremes of."""

_ADVICE = "pass the task whose model was saved"


@dataclass(frozen=True)
class Fitted:
    """The state dict of a checkpoint, for a model.

    Args:
        values: exactly the names of ``model.state_dict()``.
        notes: sentences for the user: what was left out of the file.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]


def fit_to_model(state: StateDict, model: nn.Module, path: Path) -> Fitted:
    """Return the values of a checkpoint under exactly the names of ``model.state_dict()``.

    What wrappers put into the names is taken off, and what training keeps beside a model, such as
    the weights of a loss or averages of the model's, is left out; see
    :mod:`evalkit.checkpoints.names`.

    Args:
        state: as read from the checkpoint.
        model: left as it is.
        path: the checkpoint, for sentences.

    Raises:
        EvalkitError: missing or unexpected names, several copies of the model, another shape or
            kind of number, NaN or infinity.
    """
    expected = dict(model.state_dict())
    found: dict[str, Any] = {**state.tensors, **state.extra}
    matches = match(found, expected, model)
    if not any(not one.hindrance for one in matches):
        renamed = {**in_current_names(state.tensors, model), **state.extra}
        if renamed.keys() != found.keys():
            matches = match(renamed, expected, model) or matches
            found = renamed
    usable = [one for one in matches if not one.hindrance]
    if len(usable) > 1 or (matches and not usable and any(one.prefix for one in matches)):
        raise _several(usable or matches, path)
    if not usable:
        _refuse_names(found, expected, path)
        values = fit(found, expected, path)
        return Fitted(values, state.notes)
    values = usable[0].values
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(expected[name], Tensor):
            _check_value(name, value, expected[name], path, _ADVICE)
    return Fitted(values, (*state.notes, *_left_out(usable[0], path)))


def _left_out(fitting: Match, path: Path) -> list[str]:
    names = list(fitting.beside)
    if not names:
        return []
    under = f" under '{fitting.prefix.rstrip('.')}'" if fitting.prefix else ""
    return [
        f"of '{path.name}' the model's weights{under} are scored; left out: {list_names(names)}"
    ]


def _several(matches: list[Match], path: Path) -> EvalkitError:
    places = ", ".join(f"'{one.prefix.rstrip('.') or 'the file itself'}'" for one in matches)
    if len(matches) > 1:
        found = f"{len(matches)} copies under {places}"
    else:
        others = list_names(list(matches[0].hindrance))
        found = f"them under {places} beside {others} that no part of the model explains"
    key = next(one.prefix.rstrip(".") for one in matches if one.prefix)
    return EvalkitError(
        f"expected the tensors of the model alone in '{path}', found {found}; {_ADVICE}, or choose "
        f"with `key`, as in `key={key}`"
    )


def _refuse_names(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Refuse names whose values only part of the checks below could look at."""
    extra = [name for name, value in expected.items() if not isinstance(value, Tensor)]
    missing = [name for name in extra if name not in found]
    if missing and not [name for name in expected if name not in found and name not in extra]:
        raise EvalkitError(
            f"expected what the model keeps beside its tensors in '{path}', found missing "
            f"{list_names(missing)}; save model.state_dict() with torch.save, which keeps it"
        )


def fit(
    tensors: Mapping[str, Any],
    expected: Mapping[str, Any],
    path: Path,
    advice: str = _ADVICE,
) -> dict[str, Any]:
    """Return the tensors under exactly the expected names.

    A first part that all names share is taken off where the names then match better. A tensor that
    the model ties to another may be absent from the checkpoint.

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
        if isinstance(tensor, Tensor) and isinstance(expected[name], Tensor):
            _check_value(name, tensor, expected[name], path, advice)
    return fitted


def _matching_names(tensors: dict[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors under the model's names, without a shared first part where that helps."""
    candidates = [tensors]
    while len(firsts := {name.split(".", 1)[0] for name in candidates[-1]}) == 1:
        if not all("." in name for name in candidates[-1]):
            break
        length = len(firsts.pop()) + 1
        candidates.append({name[length:]: t for name, t in candidates[-1].items()})
    best = min(candidates, key=lambda candidate: len(candidate.keys() ^ expected.keys()))
    return best | tied(best, expected)


def _check_names(
    fitted: Mapping[str, Any], expected: Mapping[str, Any], path: Path, advice: str
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


def list_names(names: list[str]) -> str:
    """Return what an error sentence says of names: how many, and the first of them."""
    listed = ", ".join(repr(name) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} ({listed}{more})"


def _check_value(name: str, tensor: Tensor, expected: Tensor, path: Path, advice: str) -> None:
    if tensor.shape != expected.shape:
        raise EvalkitError(
            f"expected shape {tuple(expected.shape)} for tensor '{name}' in '{path}', found "
            f"{tuple(tensor.shape)}; {advice}"
        )
    if _kind(tensor) != _kind(expected):
        raise EvalkitError(
            f"expected {expected.dtype} for tensor '{name}' in '{path}', found {tensor.dtype}; "
            f"{advice}"
        )
    _check_finite(name, tensor, expected.dtype, path)


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "whole"


def _check_finite(name: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> None:
    # Cast as loading casts: a value beyond the range of the model's dtype turns infinite.
    values = tensor.to(dtype)
    if _kind(tensor) == "whole":
        if dtype != torch.bool and not torch.equal(values.to(tensor.dtype), tensor):
            raise EvalkitError(
                f"expected values of {dtype} in tensor '{name}' of '{path}', found some beyond its "
                "range; pass the task whose model was saved"
            )
        return
    if _are_finite(values):
        return
    nans, infinities = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
    if nans or infinities:
        raise EvalkitError(
            f"expected finite values in tensor '{name}' of '{path}', found {nans} NaN and "
            f"{infinities} Inf; pick a checkpoint from before training diverged"
        )


def _are_finite(values: Tensor) -> bool:
    """Return whether all values are known to be finite, by one pass.

    The extremes carry every NaN and infinity, and take a fortieth of the time of counting them.
    """
    if not values.numel() or values.dtype not in _WITH_EXTREMES:
        return not values.numel()
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(values))

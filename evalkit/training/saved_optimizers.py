"""Saved optimizers, made again on the parameters of a model.

The settings of every group are in its saved state; the class is told by their names, or said by
the caller. The parameters are numbered in the file: names are taken where it has them, otherwise
they are those of the model in its order, of the Hugging Face Trainer first those with weight decay.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.optimizer_files import SavedOptimizer
from evalkit.errors import EvalkitError, reason
from evalkit.extras import required
from evalkit.registry import suggest
from evalkit.training import optimizers

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_TORCH = (
    "AdamW",
    "Adam",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "ASGD",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
)
_HF_ADAFACTOR = "adafactor-transformers"
# Settings that came to torch's optimizers later than they did.
_LATER = {"foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
# What schedules and libraries keep in a group, beside the settings of the optimizer.
_BESIDE = {
    "params",
    "param_names",
    "initial_lr",
    "swa_lr",
    "name",
    "max_lr",
    "min_lr",
    "max_momentum",
    "base_momentum",
}
_DECOUPLED = "decoupled_weight_decay"
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
# Names of parameters without decay, as the Trainer has them now, and as it had them before.
_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
_NO_DECAY_BEFORE = (r"bias",)


def classes() -> tuple[str, ...]:
    """Return the names of optimizers that a caller can say a saved state is of."""
    return (*(name.lower() for name in _TORCH), _HF_ADAFACTOR)


def check_class(name: str) -> str:
    """Return the name of a class of optimizers.

    Raises:
        EvalkitError: there is no such class; the sentence names the nearest.
    """
    if name.lower() not in classes():
        raise EvalkitError(
            f"expected the class of a saved optimizer, one of {', '.join(classes())}, as "
            f"`optimizer`, found '{name}'; {suggest(name, classes())}"
        )
    return name.lower()


def restored(
    saved: SavedOptimizer, model: nn.Module, class_name: str | None = None
) -> torch.optim.Optimizer:
    """Return a saved optimizer, on the parameters of a model.

    Args:
        saved: as it was read.
        model: whose parameters it was of; their values are left as they are.
        class_name: one of :func:`classes`; None to go by the names of the settings.

    Raises:
        EvalkitError: its class is not known, or the state does not fit the model.
    """
    named = dict(model.named_parameters())
    if saved.name is not None:
        if class_name is not None and class_name != saved.name:
            raise EvalkitError(
                f"expected no `optimizer` but '{saved.name}', which '{saved.path}' says, found "
                f"'{class_name}'; leave it out"
            )
        try:
            made = optimizers.build(saved.name, model, dict(saved.settings or {}))
        except EvalkitError:
            raise
        except Exception as error:  # whatever a builder makes of altered settings
            raise _unfit(saved, reason(error)) from error
        ids = {id(value): name for name, value in named.items()}
        names = [[ids.get(id(value), "") for value in g["params"]] for g in made.param_groups]
        if names != saved.names:
            raise _unfit(saved, "that of other parameters")
    else:
        names = _names(saved, model)
        make = _make(class_name or _class_of(saved))
        made = _built(saved, make, [[named[name] for name in group] for group in names])
    _check_shapes(saved, names, named)
    try:
        made.load_state_dict(dict(saved.state))
    except Exception as error:  # altered states fail in many ways; all mean the same
        raise _unfit(saved, reason(error)) from error
    return made


def _built(
    saved: SavedOptimizer, make: Make, groups: list[list[nn.Parameter]]
) -> torch.optim.Optimizer:
    every = [value for group in groups for value in group]
    try:
        made = make(every)
        first = made.param_groups[0]
        made.param_groups[:] = [{**first, "params": group} for group in groups]
    except Exception as error:
        raise _unfit(saved, reason(error)) from error
    missing = first.keys() - saved.groups[0].keys() - _LATER - _BESIDE
    if missing:
        raise _unfit(
            saved,
            f"one without {', '.join(sorted(missing))}, which {type(made).__name__} has",
            f"say its class with `optimizer`, one of {', '.join(classes())}",
        )
    return made


def _make(name: str) -> Make:
    if name == _HF_ADAFACTOR:
        transformers = required("transformers", f"the optimizer '{name}'")
        return lambda parameters: transformers.Adafactor(
            parameters, lr=1e-3, relative_step=False, scale_parameter=False
        )
    kind = getattr(torch.optim, next(one for one in _TORCH if one.lower() == name), None)
    if kind is None:
        raise EvalkitError(
            f"expected a torch that has the optimizer '{name}', found {torch.__version__}; upgrade "
            "torch"
        )
    if name == "sgd":
        return lambda parameters: kind(parameters, lr=1e-3)
    made: Make = kind
    return made


def _class_of(saved: SavedOptimizer) -> str:
    """Return the class whose settings those of the groups are.

    Raises:
        EvalkitError: there is none, or there are several.
    """
    group = saved.groups[0]
    found = [name for name in classes() if _is_of(name, group)]
    if len(found) == 2 and set(found) == {"adam", "adamw"} and _DECOUPLED in group:
        found = ["adamw" if group[_DECOUPLED] else "adam"]
    if len(found) != 1:
        what = f"those of {' or '.join(found)}" if found else "those of none of them"
        listed = ", ".join(sorted(map(str, group.keys() - {"params"})))
        raise EvalkitError(
            f"expected the settings of one class of optimizers in '{saved.path}', found {what} "
            f"({listed}); say which with `optimizer`, one of {', '.join(found or classes())}"
        )
    return found[0]


def _is_of(name: str, group: Mapping[str, Any]) -> bool:
    if name == _HF_ADAFACTOR:
        return "scale_parameter" in group and "relative_step" in group
    if not hasattr(torch.optim, next(one for one in _TORCH if one.lower() == name)):
        return False
    parameter = nn.Parameter(torch.zeros(1, 1))
    known = _make(name)([parameter]).param_groups[0].keys()
    given = {str(key) for key in group} - _BESIDE
    return given <= known and not known - given - _LATER - _BESIDE


def _names(saved: SavedOptimizer, model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each group of a state that numbers them.

    Raises:
        EvalkitError: they cannot be told, or are not the model's.
    """
    named = dict(model.named_parameters())
    trained = [name for name, value in named.items() if value.requires_grad]
    sizes = [len(group["params"]) for group in saved.groups]
    if saved.names is not None:
        unknown = [name for group in saved.names for name in group if name not in named]
        if unknown or [len(group) for group in saved.names] != sizes:
            raise _unfit(saved, f"that of other parameters ({', '.join(unknown[:3])})")
        return saved.names
    candidates = [_split(trained, sizes)] if len(sizes) == 1 else []
    if len(sizes) == 1:
        candidates.append(_split(list(named), sizes))
    if len(sizes) == 2 and saved.by_trainer:
        for patterns in (_NO_DECAY, _NO_DECAY_BEFORE):
            decayed = set(_with_decay(model, _norms(), patterns))
            candidates.append(
                [[n for n in trained if n in decayed], [n for n in trained if n not in decayed]]
            )
    fitting = [one for one in candidates if [len(group) for group in one] == sizes]
    if not fitting:
        listed = " and ".join(map(str, sizes))
        advice = (
            "pass the task whose model was trained, with the same parameters trainable"
            if candidates
            else "make the optimizer of model.named_parameters(), so that its state has names"
        )
        raise _unfit(
            saved, f"one of {listed} parameters, where the model trains {len(trained)}", advice
        )
    fits = [one for one in fitting if _misfit(saved, one, named) is None]
    return (fits or fitting)[0]


def _split(names: list[str], sizes: list[int]) -> list[list[str]]:
    return [names] if len(names) == sizes[0] else [[]]


def _norms() -> tuple[type[nn.Module], ...]:
    """Return the layers whose parameters the Trainer never decays."""
    library: Any = sys.modules.get("transformers.pytorch_utils")
    known = getattr(library, "ALL_LAYERNORM_LAYERS", [])
    return (nn.LayerNorm, *known)


def _with_decay(
    model: nn.Module, norms: tuple[type[nn.Module], ...], patterns: Iterable[str]
) -> list[str]:
    """Return the names of the parameters that the Hugging Face Trainer decays."""
    searched = [re.compile(pattern) for pattern in patterns]

    def plain(name: str) -> bool:
        return not any(one.search(name.lower()) for one in searched)

    found = []
    for prefix, child in model.named_children():
        if not isinstance(child, norms):
            inner = (f"{prefix}.{name}" for name in _with_decay(child, norms, patterns))
            found += [name for name in inner if plain(name)]
    return found + [name for name in model._parameters if plain(name)]


def _misfit(
    saved: SavedOptimizer, names: list[list[str]], named: Mapping[str, nn.Parameter]
) -> str | None:
    """Return what of a state has another shape than its parameter, None where nothing has."""
    for group, ours in zip(saved.groups, names, strict=True):
        for number, name in zip(group["params"], ours, strict=True):
            state = saved.state["state"].get(number)
            for key in _SHAPED if isinstance(state, Mapping) else ():
                value = state.get(key)
                if isinstance(value, Tensor) and value.dim() and value.shape != named[name].shape:
                    shapes = tuple(value.shape), tuple(named[name].shape)
                    return f"'{key}' of shape {shapes[0]} for '{name}' with shape {shapes[1]}"
    return None


def _check_shapes(
    saved: SavedOptimizer, names: list[list[str]], named: Mapping[str, nn.Parameter]
) -> None:
    sizes = [[len(group["params"]) for group in saved.groups], [len(group) for group in names]]
    found = f"groups of {sizes[0]} parameters instead of {sizes[1]}"
    misfit = found if sizes[0] != sizes[1] else _misfit(saved, names, named)
    if misfit is not None:
        raise _unfit(saved, misfit)


def _unfit(saved: SavedOptimizer, found: str, advice: str | None = None) -> EvalkitError:
    return EvalkitError(
        f"expected the state of an optimizer of the model's trainable parameters in "
        f"'{saved.path}', found {found}; {advice or 'pass the task whose model was trained'}"
    )

"""The values of an adapter in a model that PEFT put it on: what is expected, and how it loads."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.checkpoints.adapter_kinds import complete_when_saved
from evalkit.checkpoints.fitting import fit, list_names
from evalkit.checkpoints.saved import ADAPTER_CONFIG, Saved, read_adapter_config
from evalkit.errors import EvalkitError
from evalkit.extras import required


@contextmanager
def quiet_peft(path: Path) -> Iterator[Any]:
    """Yield the package ``peft``; what it warns of is checked and said in sentences here.

    Args:
        path: the path of the adapter that needs it, for the error sentence.

    Raises:
        EvalkitError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield required("peft", f"the adapter in '{path}'")


def advice(saved: Saved) -> str:
    """Return what to do when an adapter does not fit a model: the end of an error sentence."""
    name = read_adapter_config(saved).get("base_model_name_or_path")
    if not name:
        return (
            f"its {ADAPTER_CONFIG} names no base model: pass the task whose model it was trained on"
        )
    return (
        f"the adapter belongs to base model '{name}' according to its {ADAPTER_CONFIG}: pass the "
        "task that builds that model"
    )


def base_notes(model: nn.Module, saved: Saved) -> tuple[str, ...]:
    """Return a sentence where the base model is not the one that the adapter was trained on.

    Args:
        model: a ``peft.PeftModel``.
        saved: the checkpoint.
    """
    named = read_adapter_config(saved).get("base_model_name_or_path")
    loaded = loaded_from(model)
    if not named or loaded is None or same_place(loaded, named):
        return ()
    found = f"loaded from '{loaded}'" if loaded else "not loaded from saved weights"
    return (
        f"expected the base model '{named}', which the adapter in '{saved.path}' was trained on, "
        f"found one that was {found}; if its weights are others, scores are of another model: load "
        "the base model in the task by that name",
    )


def loaded_from(model: nn.Module) -> str | None:
    """Return where the weights of the base model under an adapter were loaded from.

    transformers keep it in a model's ``config.name_or_path``, which PEFT writes into the adapter's
    configuration; it is empty for weights that were not loaded, and other models say nothing.

    Args:
        model: a ``peft.PeftModel``.
    """
    config = getattr(model.get_base_model(), "config", None)  # type: ignore[operator]
    loaded = getattr(config, "name_or_path", None)
    return loaded if isinstance(loaded, str) else None


def same_place(one: str, other: str) -> bool:
    """Return whether two names of a model are one, or two paths of one folder."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def fit_to_adapter(
    tensors: Mapping[str, Tensor], model: nn.Module, saved: Saved
) -> dict[str, Tensor]:
    """Return the tensors under exactly the names that PEFT gives the adapter on ``model``.

    The embeddings of the base model may be among them, as PEFT saves them where they were resized.

    Args:
        tensors: as read from the checkpoint.
        model: a ``peft.PeftModel``; it is left as it is.
        saved: the checkpoint, for the error sentence.

    Raises:
        EvalkitError: the model carries no adapter, or trains what the adapter does not hold, or as
            for :func:`evalkit.checkpoints.fitting.fit`.
    """
    with quiet_peft(saved.path) as peft:
        if not isinstance(model, peft.PeftModel):
            raise EvalkitError(
                f"expected a model that carries an adapter for '{saved.path}', found "
                f"{type(model).__name__}; build it with evalkit.checkpoints.adapters.model_for"
            )
        expected = _state(peft, model, embeddings=False)
        _refuse_unsaved(model, expected, saved)
        if tensors.keys() - expected.keys():
            wider = _state(peft, model, embeddings=True)
            expected |= {name: wider[name] for name in wider if name in tensors}
    return fit(tensors, expected, saved.path, advice(saved))


def _refuse_unsaved(model: Any, expected: Mapping[str, Tensor], saved: Saved) -> None:
    """Refuse a model with trainable parameters that an adapter does not hold: theirs are unknown.

    Raises:
        EvalkitError: there are some.
    """
    held = {(value.data_ptr(), value.shape) for value in expected.values()}
    config = model.peft_config[active_adapter(model)]
    if config.is_prompt_learning and complete_when_saved(config):
        # PEFT returns a copy of the prompt, whose values are those of its one parameter.
        prompt = model.prompt_encoder[active_adapter(model)].embedding.weight
        held.add((prompt.data_ptr(), prompt.shape))
    unsaved = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and (value.data_ptr(), value.shape) not in held
    ]
    if unsaved:
        raise EvalkitError(
            f"expected the values of all trainable parameters in '{saved.path}', found none of "
            f"{list_names(unsaved)}, which are not part of the adapter "
            f"'{active_adapter(model)}'; freeze them in the task, or save model.state_dict() with "
            "torch.save"
        )


def _state(peft: Any, model: nn.Module, embeddings: bool) -> dict[str, Tensor]:
    return dict(
        peft.get_peft_model_state_dict(
            model, adapter_name=active_adapter(model), save_embedding_layers=embeddings
        )
    )


def active_adapter(model: Any) -> str:
    """Return the name of the adapter that a ``peft.PeftModel`` applies."""
    active = model.active_adapter
    return str(active if isinstance(active, str) else active[0])


def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the values of an adapter into ``model``, cast to the model's own dtypes.

    Args:
        model: a ``peft.PeftModel``.
        tensors: from :func:`fit_to_adapter`.

    Raises:
        EvalkitError: the installed PEFT makes other values of them.
    """
    with quiet_peft(Path()) as peft:
        peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=active_adapter(model))
        loaded = _state(peft, model, embeddings=True)
    other = [name for name, value in tensors.items() if not _same(loaded.get(name), value)]
    if other:
        raise EvalkitError(
            f"expected PEFT to load the values of the adapter as they were saved, found other "
            f"values of {list_names(other)}; install the version of peft that saved it"
        )


def _same(loaded: Tensor | None, saved: Tensor) -> bool:
    return loaded is not None and torch.equal(loaded.cpu(), saved.to(loaded.dtype).cpu())


def is_adapted(model: nn.Module) -> bool:
    """Return whether PEFT put an adapter on a model that holds, saved, all that is trained."""
    peft = sys.modules.get("peft")  # whoever put one on imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return False
    return complete_when_saved(model.peft_config[active_adapter(model)])


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter of a ``peft.PeftModel`` as PEFT does, without the model that it is on."""
    with quiet_peft(folder):
        model.save_pretrained(folder, save_embedding_layers=False)

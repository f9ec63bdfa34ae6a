"""The values of an adapter in a model that PEFT put it on: what is expected, and how it loads."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evalkit.checkpoints.fitting import fit
from evalkit.checkpoints.saved import ADAPTER_CONFIG, Saved, read_adapter_config
from evalkit.errors import EvalkitError
from evalkit.extras import required


@contextmanager
def quiet_peft(path: Path) -> Iterator[Any]:
    """Yield the package ``peft``; what it warns of is checked and said in sentences here.

    Args:
        path: of the adapter that needs it, for the error sentence.

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
        EvalkitError: the model carries no adapter, or as for
            :func:`evalkit.checkpoints.fitting.fit`.
    """
    with quiet_peft(saved.path) as peft:
        if not isinstance(model, peft.PeftModel):
            raise EvalkitError(
                f"expected a model that carries an adapter for '{saved.path}', found "
                f"{type(model).__name__}; build it with evalkit.checkpoints.adapters.model_for"
            )
        expected = _state(peft, model, embeddings=False)
        if tensors.keys() - expected.keys():
            wider = _state(peft, model, embeddings=True)
            expected |= {name: wider[name] for name in wider if name in tensors}
    return fit(tensors, expected, saved.path, advice(saved))


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
    """
    with quiet_peft(Path()) as peft:
        peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=active_adapter(model))


def is_adapted(model: nn.Module) -> bool:
    """Return whether PEFT put an adapter on a model."""
    peft = sys.modules.get("peft")  # whoever put one on imported it
    return peft is not None and isinstance(model, peft.PeftModel)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter of a ``peft.PeftModel`` as PEFT does, without the model that it is on."""
    with quiet_peft(folder):
        model.save_pretrained(folder, save_embedding_layers=False)

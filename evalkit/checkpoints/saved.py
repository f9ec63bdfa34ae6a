"""One saved model or adapter on disk: a file, or a folder as Hugging Face and PEFT write it.

Nothing here runs code that a checkpoint names: weights go through
:func:`evalkit.checkpoints.tensors.read_tensor_file`, and what else is read is JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from torch import Tensor

from evalkit.checkpoints.file_names import SUFFIXES, ending, is_writable_name
from evalkit.checkpoints.layout import StateDict
from evalkit.checkpoints.sharded import check_not_sharded
from evalkit.checkpoints.tensors import file_hash, read_state_dict
from evalkit.errors import EvalkitError, shortened
from evalkit.storage.json_files import read_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MODEL_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
    "pytorch_model.pt",
    "model.pt",
    "model.pth",
    "model.bin",
    "model.ckpt",
)
INDEX_SUFFIX = ".index.json"
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint on disk is made of.

    Args:
        path: the file or the folder.
        weights: the files with tensors, at least one.
        index: the file that says which shard holds which tensor, None for a single file.
        adapter_config: the configuration of an adapter, None for a whole model.
    """

    path: Path
    weights: tuple[Path, ...]
    index: Path | None = None
    adapter_config: Path | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter was saved, without the model that it is put on."""
        return self.adapter_config is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on."""
        others = (self.index, self.adapter_config)
        return (*self.weights, *(path for path in others if path is not None))


def holds_saved(folder: Path) -> bool:
    """Return whether a folder claims to be a saved model or adapter, complete or not."""
    names = (ADAPTER_CONFIG, *ADAPTER_FILES, *MODEL_FILES)
    indices = (name + INDEX_SUFFIX for name in MODEL_FILES)
    return any((folder / name).is_file() for name in (*names, *indices))


def named_adapters(folder: Path) -> tuple[Path, ...]:
    """Return the folders of adapters with a name of their own, which PEFT saves inside a folder.

    PEFT saves the adapter ``default`` in the folder itself, and any other in a folder of its name.
    """
    return tuple(path.parent for path in sorted(folder.glob(f"*/{ADAPTER_CONFIG}")))


def find_saved(path: Path) -> Saved:
    """Return what is saved at ``path``; where an adapter and a whole model lie, the adapter counts.

    An adapter with a name of its own lies in a folder of that name inside ``path``.

    Raises:
        EvalkitError: there is nothing, a part of it is missing, or there are several adapters.
    """
    if path.is_file():
        return Saved(path, (path,))
    has_default = any((path / name).is_file() for name in (ADAPTER_CONFIG, *ADAPTER_FILES))
    named = named_adapters(path)
    if len(named) + has_default > 1:
        found = ", ".join([*(["default"] if has_default else []), *(item.name for item in named)])
        raise EvalkitError(
            f"expected one adapter in '{path}', found {len(named) + has_default} ({found}), as "
            "PEFT saves all of a model, in use or not; move the folders of all but one elsewhere"
        )
    if has_default or named:
        return _adapter(path if has_default else named[0])
    for name in MODEL_FILES:
        if (path / name).is_file():
            return Saved(path, (path / name,))
        index = path / (name + INDEX_SUFFIX)
        if index.is_file():
            shards = sorted({path / shard for shard in _weight_map(index).values()})
            return Saved(path, tuple(shards), index)
    if path.is_dir():
        check_not_sharded(path)
    raise EvalkitError(
        f"expected a saved model or adapter in '{path}' ({', '.join(MODEL_FILES)}, "
        f"{', '.join(ADAPTER_FILES)} or shards with an index), found none; copy the folder again, "
        "or remove it"
    )


def _adapter(folder: Path) -> Saved:
    weights = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    config = folder / ADAPTER_CONFIG
    if weights is None:
        raise EvalkitError(
            f"expected the weights of an adapter beside '{config}' ({' or '.join(ADAPTER_FILES)}), "
            "found none; save the adapter again with save_pretrained"
        )
    if not config.is_file():
        raise EvalkitError(
            f"expected '{ADAPTER_CONFIG}' beside '{weights}', found no such file; save the adapter "
            "again with save_pretrained"
        )
    return Saved(folder, (weights,), adapter_config=config)


def saved_hash(saved: Saved) -> str:
    """Return the SHA-256 of a checkpoint in hexadecimal digits.

    For one file it is the hash of the file, for a folder that of the lines ``name sha256``, sorted
    by name, of the files that the content depends on.

    Raises:
        EvalkitError: a file cannot be read.
    """
    if saved.path in saved.weights:
        return file_hash(saved.path)
    lines = [f"{path.name} {file_hash(path)}\n" for path in sorted(saved.files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_saved(saved: Saved, key: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU; see :func:`read_saved_state`."""
    return read_saved_state(saved, key).tensors


def read_saved_state(saved: Saved, key: str | None = None) -> StateDict:
    """Return the state dict of a checkpoint, on the CPU.

    Args:
        saved: the checkpoint.
        key: where in its files; see :func:`evalkit.checkpoints.layout.state_dict_in`.

    Raises:
        EvalkitError: a file cannot be read, or a shard does not hold what the index lists.
    """
    if saved.index is None:
        return read_state_dict(saved.weights[0], key)
    shards = {path.name: read_state_dict(path, key) for path in saved.weights}
    listed = _weight_map(saved.index)
    prefix = "" if key is None else f"{key.rstrip('.')}."
    inner = {n.removeprefix(prefix): s for n, s in listed.items() if n.startswith(prefix)}
    for name, shard in inner.items():
        if name not in shards[shard].tensors:
            raise EvalkitError(
                f"expected tensor '{name}' in '{saved.path / shard}', as '{saved.index}' lists, "
                "found no such tensor; copy or save the whole folder again"
            )
    return StateDict({name: shards[shard].tensors[name] for name, shard in inner.items()}, {})


def _weight_map(index: Path) -> dict[str, str]:
    """Return the shard of every tensor by an index: files that lie beside it."""
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise EvalkitError(
            f"expected a 'weight_map' from tensors to files in '{index}', found "
            f"{shortened(repr(shards))}; copy or save the whole folder again"
        )
    for shard in shards.values():
        if not _is_plain_name(shard):
            raise EvalkitError(
                f"expected the name of a file beside '{index}' that ends in {', '.join(SUFFIXES)}, "
                f"found {shortened(repr(shard))}; copy or save the whole folder again"
            )
        if not (index.parent / shard).is_file():
            raise EvalkitError(
                f"expected the shard '{shard}' that '{index}' lists, found no such file; copy the "
                "whole folder again"
            )
    return shards


def _is_plain_name(value: Any) -> bool:
    # Read as a Windows path, both separators count and drive letters show.
    if not isinstance(value, str):
        return False
    path = PureWindowsPath(value)
    return path.name == value and ending(value) != "" and is_writable_name(value)


def read_adapter_config(saved: Saved) -> Mapping[str, Any]:
    """Return the configuration of a saved adapter, its kind and base model checked.

    Raises:
        EvalkitError: the file is no JSON object, or names no kind of adapter.
    """
    assert saved.adapter_config is not None
    config = read_object(saved.adapter_config)
    for name, kinds, expected in (
        ("peft_type", str, "the kind of adapter"),
        ("base_model_name_or_path", str | None, "the name of a model"),
    ):
        if not isinstance(config.get(name), kinds):
            raise EvalkitError(
                f"expected {expected} as '{name}' in '{saved.adapter_config}', found "
                f"{shortened(repr(config.get(name)))}; save the adapter again with save_pretrained"
            )
    return config

"""Models, tokenizers and data sets by hub name or local path, and the adapters put on models."""

from __future__ import annotations

import hashlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from evalkit.errors import EvalkitError, reason, shortened
from evalkit.extras import missing, required
from evalkit.quiet import quiet
from evalkit.tasks.task import Recipe

T = TypeVar("T")

ADAPTERS = ("lora", "prompt", "none")
RANK = 8
"""Of LoRA, as in the paper; its scale alpha is twice that."""
VIRTUAL_TOKENS = 20
"""Of prompt tuning, as in the paper."""
LORA_DROPOUT = 0.1
_ORDER_SEED = 0
_COUNTED = re.compile(r"layer(?!_norm)|block|depth|stage|expert")
_MOST_LAYERS = 10_000
_MOST_UNFOLDED = 16
_ALWAYS_UNFOLDED = 64 * 2**20
"""What a model may take, in the size of its files and in bytes."""
# The projections to queries and to values, as architectures call them.
_QUERIES_AND_VALUES = (
    ("q", "v"),
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("c_attn",),
    ("query_key_value",),
)


def load(kind: str, setting: str, name: str, loader: Callable[..., T], **arguments: Any) -> T:
    """Return what a loader of transformers or datasets makes of a name.

    Args:
        kind: what is loaded, as error sentences call it.
        setting: that the name comes from.
        name: on the hub, or a local path.
        loader: takes the name, ``local_files_only`` and the arguments.
        arguments: passed on.

    Raises:
        EvalkitError: there is nothing of that name, or it cannot be loaded.
    """
    path = Path(name).expanduser()
    is_path = path.exists()
    # Without a network the hub's client tries for half a minute before it says so.
    local = is_path or not _hub_is_reachable()
    try:
        with quiet(_library("transformers")):
            return loader(str(path) if is_path else name, local_files_only=local, **arguments)
    except ImportError as error:
        raise missing("every package", f"the {kind} '{name}'", error) from error
    except Exception as error:  # the libraries raise many kinds for a name or file that is not fit
        if local and not is_path:
            found = "no such path, and no network to ask the hub or copy of it in the cache"
        else:
            found = _not_loaded(error)
        raise EvalkitError(
            f"expected a {kind} at '{name}', a name on the hub or a local path, found {found}; "
            f"pass one as `settings={{'{setting}': PATH}}`"
        ) from error


def load_rows(name: str, configuration: str | None, split: str, most: int) -> Any:
    """Return rows of a data set with the columns of the hub.

    Args:
        name: on the hub, or a local path.
        configuration: the configuration of the data set, None where it has one only.
        split: to take rows of.
        most: rows at most, drawn at random, always the same; 0 for all.

    Raises:
        EvalkitError: there is no such data set or split.
    """
    datasets = _library("datasets")

    def loader(name: str, local_files_only: bool) -> Any:
        cache = _own_cache(Path(name), Path(datasets.config.HF_DATASETS_CACHE))
        before = datasets.config.HF_HUB_OFFLINE
        # The only switch that keeps this library from asking the hub, and from trying again.
        datasets.config.HF_HUB_OFFLINE = before or local_files_only
        bars = local_files_only and datasets.utils.is_progress_bar_enabled()
        if bars:  # of the conversion of local files, which takes seconds
            datasets.utils.disable_progress_bars()
        try:
            return datasets.load_dataset(name, configuration, split=split, cache_dir=cache)
        finally:
            datasets.config.HF_HUB_OFFLINE = before
            if bars:
                datasets.utils.enable_progress_bars()

    what = f"data set with a split '{split}'"
    if configuration is not None:
        what = f"data set '{configuration}' with a split '{split}'"
    rows = load(what, "data", name, loader)
    return rows.shuffle(seed=_ORDER_SEED).select(range(most)) if 0 < most < len(rows) else rows


def load_model(kind: str, name: str, **arguments: Any) -> nn.Module:
    """Return a pretrained model in float32.

    Args:
        kind: an automatic class of transformers, such as ``"AutoModelForSequenceClassification"``.
        name: the name of the model.
        arguments: the arguments of ``from_pretrained``.
    """
    _check_size(kind, name, load_configuration(name), arguments)
    loader = getattr(_library("transformers"), kind).from_pretrained
    arguments = {"dtype": torch.float32, "trust_remote_code": False, **arguments}
    model: nn.Module = load("model", "model", name, loader, **arguments)
    return model


def _check_size(kind: str, name: str, configuration: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a folder whose configuration asks for a model far larger than its weights.

    The model is built without memory, before any is allocated.

    Raises:
        EvalkitError: it does.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    for key, value in configuration.to_dict().items():
        if _COUNTED.search(key) and any(number > _MOST_LAYERS for number in _numbers(value)):
            raise EvalkitError(
                f"expected at most {_MOST_LAYERS} layers in the configuration of the model at "
                f"'{name}', found {shortened(repr(value))} as '{key}'; copy the folder again"
            )
    try:
        with quiet(_library("transformers")), torch.device("meta"):
            for key, value in arguments.items():
                if hasattr(configuration, key):
                    setattr(configuration, key, value)
            built = getattr(_library("transformers"), kind).from_config(configuration)
    except Exception:  # said when the model itself is built
        return
    needed = sum(4 * value.numel() for value in built.parameters())
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if needed > max(_ALWAYS_UNFOLDED, _MOST_UNFOLDED * there):
        raise EvalkitError(
            f"expected the weights of the model at '{name}' to fill it, found a configuration of "
            f"{needed / 2**20:,.3g} MiB beside files of {there / 2**20:,.3g} MiB; copy the folder "
            "again"
        )


def _numbers(value: Any) -> list[float]:
    listed = value if isinstance(value, list | tuple) else [value]
    return [one for one in listed if isinstance(one, int | float)]


def load_configuration(name: str) -> Any:
    """Return the configuration of a pretrained model.

    Raises:
        EvalkitError: there is none, or it asks for code that transformers would fetch.
    """
    loader = _library("transformers").AutoConfig.from_pretrained
    found = load("model", "model", name, loader, trust_remote_code=False)
    inner = [getattr(found, key, None) for key in getattr(found, "sub_configs", ())]
    for one in (found, *inner):
        for key in ("_attn_implementation", "_experts_implementation"):
            asked = str(getattr(one, key, None))
            if "/" in asked or asked.startswith("flash"):
                # A kernel of the hub is code, which transformers imports where it can.
                raise EvalkitError(
                    f"expected a model that is computed by transformers itself at '{name}', found "
                    f"{shortened(repr(asked))} as '{key[1:]}'; remove that from its config.json"
                )
    return found


def load_tokenizer(name: str) -> Any:
    """Return a tokenizer that pads on the right.

    Raises:
        EvalkitError: there is none, or it has no padding token.
    """
    loader = _library("transformers").AutoTokenizer.from_pretrained
    tokenizer = load("tokenizer", "tokenizer", name, loader, trust_remote_code=False)
    # Beside a model without its files the library makes an empty one that knows no word.
    known = set(tokenizer.get_vocab()) - set(tokenizer.added_tokens_encoder)
    if not any(letter.isalnum() for token in known for letter in token):
        raise EvalkitError(
            f"expected the files of a tokenizer at '{name}', found none that hold its vocabulary; "
            "pass another tokenizer as `settings={'tokenizer': PATH}`"
        )
    if tokenizer.pad_token_id is None:
        raise EvalkitError(
            f"expected a tokenizer with a padding token at '{name}', found none; set one in its "
            "files, or pass another tokenizer as `settings={'tokenizer': PATH}`"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def with_lora(model: nn.Module, purpose: str | None, bias: str, kept: Sequence[str]) -> nn.Module:
    """Return the model with LoRA on its queries and values, all else frozen (arXiv 2106.09685).

    Args:
        model: a pretrained model.
        purpose: peft's name of the kind of task, None for others than text.
        bias: which biases are trained, ``"none"`` or ``"lora_only"``.
        kept: modules that are trained as a whole, such as a new head.
    """
    peft = _library("peft")
    linear = {name.split(".")[-1] for name, _ in model.named_modules()}
    targets = next((names for names in _QUERIES_AND_VALUES if linear.issuperset(names)), None)
    if targets is None:
        raise EvalkitError(
            "expected a model with projections to queries and values that LoRA is put on, found "
            f"none of known names in {type(model).__name__}; make the adapter in a task of your own"
        )
    configuration = peft.LoraConfig(
        task_type=purpose,
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=LORA_DROPOUT,
        bias=bias,
        target_modules=list(targets),
        modules_to_save=list(kept) or None,
    )
    with quiet(_library("transformers")):
        adapted: nn.Module = peft.get_peft_model(model, configuration)
    return adapted


def with_prompt(model: nn.Module, purpose: str) -> nn.Module:
    """Return the model with virtual tokens before its input, all else frozen (arXiv 2104.08691).

    Args:
        model: a pretrained model of text.
        purpose: peft's name of the kind of task.
    """
    peft = _library("peft")
    configuration = peft.PromptTuningConfig(
        task_type=purpose, num_virtual_tokens=VIRTUAL_TOKENS, num_transformer_submodules=1
    )
    with quiet(_library("transformers")):
        adapted: nn.Module = peft.get_peft_model(model, configuration)
    return adapted


def recipe(adapter: str, epochs: int) -> Recipe:
    """Return how the paper trains its baselines (appendix H)."""
    if adapter == "prompt":
        return Recipe("adafactor", 0.3, 1e-5, epochs, batch_size=32, checkpoint_every=1)
    return Recipe("adamw", 1e-3, 1e-2, epochs, batch_size=32, checkpoint_every=1)


def check_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a setting that is not one of the choices."""
    if value not in choices:
        raise EvalkitError(
            f"expected {', '.join(choices[:-1])} or {choices[-1]} for the setting '{setting}', "
            f"found '{value}'; pass one of them"
        )


def check_number(setting: str, value: float, least: float, above: bool = False) -> None:
    """Refuse a setting that is less than ``least``, or that is not above it."""
    if value < least or (above and value == least):
        raise EvalkitError(
            f"expected a number {'above' if above else 'of at least'} {least} for the setting "
            f"'{setting}', found {value}; pass such a number"
        )


def _library(name: str) -> Any:
    return required(name, "this task")


def _own_cache(path: Path, cache: Path) -> str | None:
    """Return where what is read of a local data set is cached, None for one of the hub.

    The library knows a folder that describes its configurations by its last name and that
    description alone, and would return the rows of another such folder, or rows that were changed.
    """
    if not path.exists():
        return None
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    states = [(str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in files]
    key = hashlib.sha256(repr((str(path.resolve()), states)).encode()).hexdigest()[:16]
    return str(cache / f"local-{key}")


def _hub_is_reachable() -> bool:
    if urllib.request.getproxies():
        return True
    endpoint = _library("huggingface_hub").constants.ENDPOINT
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def _not_loaded(error: BaseException) -> str:
    """Return why a model or data set could not be loaded.

    What torch and transformers say of files with code, or of shapes, proposes what is not to be
    done or points to a report that is not shown.
    """
    text = str(error)
    if "weights_only" in text:
        return "a file that needs code to load, which is never run: save it as safetensors"
    if "ignore_mismatched_sizes" in text or "mismatch" in text:
        return "tensors of other shapes, as of a model with another number of labels"
    return reason(error)

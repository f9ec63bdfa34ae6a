"""The kinds of adapter that are scored, and which of them hold everything that was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evalkit.checkpoints.saved import Saved
from evalkit.errors import EvalkitError, shortened

SUPPORTED = {
    "LORA": "LoRA",
    "ADALORA": "AdaLoRA",
    "IA3": "IA3",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "OFT": "OFT",
    "BOFT": "BOFT",
    "HRA": "HRA",
    "LN_TUNING": "LN tuning",
    "PROMPT_TUNING": "prompt tuning",
    "PREFIX_TUNING": "prefix tuning",
}
"""By PEFT's own names. Each loads exactly what was saved; see ``tests/test_adapters.py``."""

# What may differ between checkpoints of one run.
INCIDENTAL = ("inference_mode", "revision", "peft_version", "auto_mapping", "runtime_config")
# What belongs to training or to start values alone, or what PEFT reads off the base model.
_OF_TRAINING = (
    "base_model_name_or_path",
    "task_type",
    "token_dim",
    "num_attention_heads",
    "num_layers",
    "lora_dropout",
    "vera_dropout",
    "boft_dropout",
    "module_dropout",
    "rank_dropout",
    "rank_dropout_scale",
    "init_lora_weights",
    "init_ia3_weights",
    "init_weights",
    "d_initial",
    "projection_prng_key",
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "encoder_hidden_size",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
)
# Starts that leave the base model as it is, and those that change it the same way every time.
_PLAIN_STARTS = ("True", "False", "gaussian", "orthogonal", "eva")
_REPEATABLE_STARTS = ("pissa", "olora")
# Fields that PEFT matches names of modules by, in values or in keys.
_PATTERNS = (
    "target_modules",
    "exclude_modules",
    "feedforward_modules",
    "layers_pattern",
    "target_parameters",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
)
_REPEATED_GROUP = re.compile(r"\)\s*(?:[*+]|\{)")
_REPEATED = re.compile(r"[*+]|\{\d*,\d*\}")
_MOST_REPEATED = 6
_INSTEAD = (
    "score it while it trains with evalkit.callback.ScoreCallback, or save model.state_dict() with "
    "torch.save, for a task that builds the model with its adapter"
)


def check_kind(content: Mapping[str, Any], saved: Saved) -> None:
    """Refuse a saved adapter from which the trained model cannot be had exactly.

    Args:
        content: the content of its configuration, as read.
        saved: the adapter, for the error sentence.

    Raises:
        EvalkitError: its kind is not supported, or PEFT does not save all that was trained.
    """
    kind = content["peft_type"]
    if kind == "P_TUNING":
        raise _incomplete(
            saved,
            "p-tuning, of which PEFT saves the prompt alone and not the encoder that was trained",
        )
    if kind not in SUPPORTED:
        raise EvalkitError(
            f"expected an adapter of a supported kind ({', '.join(SUPPORTED)}) in '{saved.path}', "
            f"found {kind}; {_INSTEAD}"
        )
    if kind == "PREFIX_TUNING" and content.get("prefix_projection"):
        raise _incomplete(
            saved,
            "'prefix_projection', with which PEFT saves the prefix alone and not the encoder that "
            "was trained",
        )
    if kind == "ADALORA" and _is_pruned(content.get("rank_pattern")):
        raise _incomplete(
            saved,
            "ranks pruned by 'rank_pattern', which were trained parameters and are not saved",
        )
    if kind == "VERA" and content.get("save_projection") is False:
        raise EvalkitError(
            f"expected an adapter with all that its outputs depend on in '{saved.path}', found "
            "'save_projection' false, as of random projections that another version of torch draws "
            "otherwise; load it with PEFT where it was trained, set save_projection=True and save "
            "it again"
        )
    if kind == "LORA":
        _check_start(content.get("init_lora_weights", True), saved)


def check_patterns(content: Mapping[str, Any], saved: Saved) -> None:
    """Refuse regular expressions that may take longer than anybody waits: PEFT matches them.

    A group that is repeated, and many repetitions in a row, take a time that grows as a power of
    the length of a module's name.

    Args:
        content: the content of an adapter's configuration, as read.
        saved: the adapter, for the error sentence.

    Raises:
        EvalkitError: there is one.
    """
    for name in _PATTERNS:
        value = content.get(name)
        texts = list(value) if isinstance(value, Mapping | list) else [value]
        for text in texts:
            if isinstance(text, str) and (
                _REPEATED_GROUP.search(text) or len(_REPEATED.findall(text)) > _MOST_REPEATED
            ):
                raise EvalkitError(
                    f"expected names of modules, or a regular expression without repeated groups "
                    f"and with at most {_MOST_REPEATED} repetitions, as '{name}' in "
                    f"'{saved.adapter_config}', found {shortened(repr(text))}; list the names of "
                    "the modules there"
                )


def _incomplete(saved: Saved, found: str) -> EvalkitError:
    return EvalkitError(
        f"expected an adapter with all that was trained in '{saved.path}', found {found}; "
        f"{_INSTEAD}"
    )


def _is_pruned(pattern: Any) -> bool:
    """Return whether a ``rank_pattern`` of AdaLoRA leaves out any rank."""
    if pattern is None:
        return False
    masks = pattern.values() if isinstance(pattern, Mapping) else [pattern]
    return not all(isinstance(mask, list) and all(mask) for mask in masks)


def _check_start(start: Any, saved: Saved) -> None:
    """Refuse a start of LoRA that changed the base model in a way that is not repeated exactly."""
    if not isinstance(start, str) or start.lower() in (*_PLAIN_STARTS, *_REPEATABLE_STARTS):
        return
    raise EvalkitError(
        f"expected an adapter on an unchanged base model in '{saved.path}', found "
        f"init_lora_weights '{start}', which may have changed the base model by what is not saved; "
        "save the adapter again with save_pretrained(..., path_initial_model_for_weight_conversion="
        "START), where START is the adapter as it was before training"
    )


def complete_when_saved(config: Any) -> bool:
    """Return whether an adapter that PEFT saves holds all that is trained.

    Args:
        config: PEFT's configuration of the adapter.
    """
    kind = kind_of(config)
    return kind != "P_TUNING" and not (
        kind == "PREFIX_TUNING" and getattr(config, "prefix_projection", False)
    )


def kind_of(config: Any) -> str:
    """Return PEFT's own name of the kind of an adapter."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def shared_fields(built: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return the fields that two adapters must share to compute alike, their kind first."""
    names = (built.keys() | saved.keys()) - {*INCIDENTAL, *_OF_TRAINING, "peft_type"}
    return ["peft_type", *sorted(names)]


def start_of(value: Any) -> str | None:
    """Return what a start of LoRA makes of the base model, None where it leaves it as it is."""
    return None if value is None or str(value) in _PLAIN_STARTS else str(value)

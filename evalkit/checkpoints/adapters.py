"""The model that a trajectory is scored on: the task's own, or with the saved adapter put on it."""

from __future__ import annotations

from typing import Any

from torch import nn

from evalkit.checkpoints.adapter_kinds import (
    INCIDENTAL,
    check_kind,
    check_patterns,
    kind_of,
    shared_fields,
    start_of,
)
from evalkit.checkpoints.adapter_weights import active_adapter, advice, quiet_peft
from evalkit.checkpoints.saved import ADAPTER_CONFIG, Saved, find_saved, read_adapter_config
from evalkit.checkpoints.trajectory import Trajectory
from evalkit.errors import EvalkitError, reason, shortened
from evalkit.tasks import Task
from evalkit.tasks.task import seeded


def model_for(trajectory: Trajectory, task: Task, seed: int) -> nn.Module:
    """Return the model that the checkpoints of a trajectory load into, in eval mode.

    For adapters it is the task's base model, all of it frozen, with an adapter like the first
    checkpoint's put on it by PEFT: only the adapter's own parameters and the modules saved with it
    are trainable, whether or not it was saved for inference. A model that the task already built
    with an adapter is used as it is.

    Args:
        trajectory: the checkpoints; their values are not loaded here.
        task: builds the model.
        seed: the seed of the initial values.

    Raises:
        EvalkitError: the task's code fails, PEFT is not installed, the adapters are of a kind that
            is not supported or does not hold all that was trained, or they differ, or do not fit
            the model.
    """
    model = task.build_base(seed).eval()
    if not trajectory.is_adapter:
        return model
    saved = [find_saved(checkpoint.path) for checkpoint in trajectory.checkpoints]
    with quiet_peft(saved[0].path) as peft:
        configs = [_config(peft, item) for item in saved]
        for item, config in zip(saved, configs, strict=True):
            _check_same(saved[0], configs[0], item, config)
        if isinstance(model, peft.PeftModel):
            _check_agrees(model, configs[0], saved[0], task)
            _check_in_use(peft, model, task)
            return model
        _check_bare(peft, model, task)
        model.requires_grad_(False)
        try:
            with seeded(seed):
                return peft.get_peft_model(model, configs[0]).eval()
        except Exception as error:  # the package refuses in many ways; all mean the same
            raise EvalkitError(
                f"expected the base model of task '{task.name}' to take the adapter in "
                f"'{saved[0].path}', found {type(model).__name__} ({reason(error)}); "
                f"{advice(saved[0])}"
            ) from error


def _config(peft: Any, saved: Saved) -> Any:
    """Return PEFT's configuration of a saved adapter, to be trained and without start values."""
    content = read_adapter_config(saved)
    check_kind(content, saved)
    check_patterns(content, saved)
    if content.get("megatron_config") is not None:
        # PEFT would import the module that the file names.
        raise EvalkitError(
            f"expected an adapter that imports no other code in '{saved.adapter_config}', found "
            "'megatron_config'; remove that field if the base model needs no Megatron layers"
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(saved.path))
    except Exception as error:  # wrong fields fail in many ways; all mean the same
        raise EvalkitError(
            f"expected the configuration of an adapter that PEFT can read in "
            f"'{saved.adapter_config}', found {reason(error)}; save the adapter again with "
            "save_pretrained, or upgrade peft"
        ) from error
    config.inference_mode = False
    if config.is_prompt_learning:
        # Sizes are the base model's, so that another model shows.
        config.token_dim = config.num_layers = config.num_attention_heads = None
    if kind_of(config) == "PROMPT_TUNING":
        # Text to start from needs a tokenizer, but the values are loaded anyway.
        config.prompt_tuning_init = peft.PromptTuningInit.RANDOM
    if kind_of(config) == "ADALORA":
        config.rank_pattern = None  # no rank is left out
    return config


def _check_same(first: Saved, expected: Any, saved: Saved, config: Any) -> None:
    """Refuse checkpoints of one trajectory whose adapters differ in more than their values."""
    ours, theirs = expected.to_dict(), config.to_dict()
    for name in sorted(ours.keys() | theirs.keys(), key=lambda name: (name != "peft_type", name)):
        if name not in INCIDENTAL and _plain(ours.get(name)) != _plain(theirs.get(name)):
            raise EvalkitError(
                f"expected the adapters of one run to be alike, found '{name}' "
                f"{_short(theirs.get(name))} in '{saved.path / ADAPTER_CONFIG}' but "
                f"{_short(ours.get(name))} in '{first.path / ADAPTER_CONFIG}'; move the "
                "checkpoints of other runs elsewhere"
            )


def _check_agrees(model: Any, config: Any, saved: Saved, task: Task) -> None:
    """Refuse a model whose own adapter is another than the checkpoint's."""
    built, other = model.peft_config[active_adapter(model)].to_dict(), config.to_dict()
    for name in (*shared_fields(built, other), "init_lora_weights"):
        ours, theirs = built.get(name), other.get(name)
        if name == "init_lora_weights":
            ours, theirs = start_of(ours), start_of(theirs)
        if _plain(ours) != _plain(theirs):
            raise EvalkitError(
                f"expected the model of task '{task.name}' to carry an adapter like that in "
                f"'{saved.path}' with '{name}' {_short(theirs)}, found {_short(ours)}; correct the "
                "task, or let it build the model without an adapter"
            )


def _check_in_use(peft: Any, model: nn.Module, task: Task) -> None:
    """Refuse an adapter that is merged into its base or switched off: values do nothing there."""
    for module in model.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and (
            module.merged or module.disable_adapters
        ):
            found, undo = ("switched off", "enable_adapter_layers()")
            if module.merged:
                found, undo = ("merged into its base", "unmerge_adapter()")
            raise EvalkitError(
                f"expected the model of task '{task.name}' to apply its adapter, found it {found}; "
                f"call {undo} on the model, or let the task build it without an adapter"
            )


def _check_bare(peft: Any, model: nn.Module, task: Task) -> None:
    """Refuse a model with an adapter further inside, whose tensors have other names."""
    inner = (peft.PeftModel, peft.tuners.tuners_utils.BaseTunerLayer)
    if any(isinstance(module, inner) for module in model.modules()):
        raise EvalkitError(
            f"expected task '{task.name}' to build a peft.PeftModel or a model without an adapter, "
            f"found an adapter inside {type(model).__name__}; return the PeftModel itself"
        )


def _plain(value: Any) -> Any:
    """Return a value such that what PEFT writes in any order, or as empty, compares equal."""
    if isinstance(value, set | frozenset | list | tuple):
        return sorted(map(str, value)) or None
    return str(getattr(value, "value", value)) if value not in (None, {}) else None


def _short(value: Any) -> str:
    plain = _plain(value)
    return shortened(", ".join(plain) if isinstance(plain, list) else str(plain))

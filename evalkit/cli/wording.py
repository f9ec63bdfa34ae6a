"""Sentences of the library in the words of the command line: options in place of arguments."""

from __future__ import annotations

import re

_OPTIONS = {
    "batch_size": "--batch-size",
    "batches": "--batches",
    "checkpoint_every": "--checkpoint-every",
    "damping": "--damping",
    "device": "--device",
    "dtype": "--dtype",
    "epochs": "--epochs",
    "folder": "--out",
    "fresh": "--fresh",
    "key": "--key",
    "learning_rate": "--learning-rate",
    "methods": "--methods",
    "micro_batch_size": "--micro-batch-size",
    "split_batch": "--split-batch",
    "momentum": "--momentum",
    "normalise": "--normalise",
    "on_failure": "--on-failure",
    "optimizer": "--optimizer",
    "order": "--order",
    "others": "--others",
    "out": "--out",
    "past": "--past",
    "past_batches": "--past-batches",
    "past_labels": "--past-labels",
    "probes": "--probes",
    "repetitions": "--repetitions",
    "resume": "--resume",
    "scales": "--scales",
    "schedule": "--schedule",
    "seed": "--seed",
    "slide": "--slide",
    "tables": "--tables",
    "to": "--to",
    "task": "--task",
    "update_baseline": "--update-baseline",
    "weight_decay": "--weight-decay",
}
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")
_IMPORT = re.compile(r"`import (\w+)`")
_SETTING = re.compile(r"\{'(\w+)': (\w+)\}")


def in_options(sentence: str) -> str:
    """Return a sentence with the options that stand for its arguments.

    `` `batch_size` `` is ``--batch-size``, `` `dtype=float64` `` is ``--dtype float64`` and
    `` `settings={'data': PATH}` `` is ``--set data=PATH``; `` `import FILE` `` is ``--load FILE``.
    """
    return _IMPORT.sub(r"--load \1", _ARGUMENT.sub(_option, sentence))


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    if name == "settings" and value is not None and (setting := _SETTING.fullmatch(value)):
        return f"--set {setting[1]}={setting[2]}"
    if name not in _OPTIONS:
        return found[0]
    return _OPTIONS[name] if value is None else f"{_OPTIONS[name]} {value}"

"""Folders in which every process saved its own part: told by their files, never read.

To put the parts together takes the library that wrote them, whose command the sentence names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evalkit.errors import EvalkitError

_DEEPSPEED_FILES = ("*_model_states.pt", "*_optim_states.pt")


def is_sharded(folder: Path, inside: bool = True) -> bool:
    """Return whether a folder, or one inside it, holds the parts that several processes saved."""
    return next(_advice(folder, inside), None) is not None


def check_not_sharded(folder: Path) -> None:
    """Refuse a folder without a whole model that holds parts of DeepSpeed, FSDP or torch.

    Raises:
        EvalkitError: it does; the sentence names the command that converts them.
    """
    found = next(_advice(folder, inside=True), None)
    if found is not None:
        kind, command = found
        raise EvalkitError(
            f"expected a whole model in '{folder}', found the sharded weights of {kind}; put them "
            f"together with {command}"
        )


def _advice(folder: Path, inside: bool) -> Iterator[tuple[str, str]]:
    """Yield what kinds of parts lie in a folder, each with the command that converts them."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if inside else []
    for place in (folder, *folders):
        if any(next(place.glob(pattern), None) for pattern in _DEEPSPEED_FILES):
            home = folder if place != folder else folder.parent
            tag = f" --tag {place.name}" if place.name != "checkpoint" else ""
            if tag and place == folder and not (home / "zero_to_fp32.py").is_file():
                home, tag = folder, ""
            yield (
                f"DeepSpeed ('{place.name}')",
                f"`python {home / 'zero_to_fp32.py'} {home} {home}{tag}`",
            )
        distributed = (place / ".metadata").is_file() or next(place.glob("*.distcp"), None)
        if not distributed:
            continue
        if place.name.startswith("pytorch_model_fsdp"):
            yield f"FSDP ('{place.name}')", f"`accelerate merge-weights {place} {place.parent}`"
        elif (place / "meta.pt").is_file():
            yield (
                f"FSDP as Lightning saves them ('{place.name}')",
                f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {place}`",
            )
        else:
            yield (
                f"torch.distributed.checkpoint ('{place.name}')",
                "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
                f"{place} {place.with_name(place.name + '.pt')}`",
            )
    ranks = sorted(folder.glob("pytorch_model_fsdp_rank*.bin"))
    if ranks:
        yield (
            f"FSDP by process ('{ranks[0].name}')",
            "a save under accelerate's `fsdp_state_dict_type: FULL_STATE_DICT`",
        )

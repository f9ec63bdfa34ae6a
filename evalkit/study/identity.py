"""What makes two starts the same run, and what an earlier run may be extended by.

Settings, task, code, and the data of every batch must be the same. Methods, dampings, checkpoints
and batches may be added: what is there is not scored again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError, shortened
from evalkit.names import task_name
from evalkit.settings import Settings
from evalkit.storage.run_json import PROVENANCE_FILE, asked_for, places_of

_SETTINGS = ("batch_size", "seed", "likelihood", "dtype", "others")
_BEFORE = {"others": Settings.others}
"""What runs were scored with that are older than a setting."""
_ORIGIN = ("evalkit", "task", "task_settings")


def check_same_run(
    folder: Path,
    earlier: Mapping[str, Any],
    provenance: Mapping[str, Any],
    code: Mapping[str, str] | None = None,
) -> None:
    """Check that a start goes on with what ``folder`` holds, or extends it.

    Args:
        folder: the folder of the run.
        earlier: what its ``run.json`` says.
        provenance: what it would say if the run started now.
        code: files by hash that rows of the earlier run depend on; by default all of now.

    Raises:
        EvalkitError: it differs in more than what a run may be extended by.
    """
    code = provenance.get("code", {}) if code is None else code
    try:
        before, now = _identity(earlier), _identity(provenance)
        known, present = _hashes(earlier), _hashes(provenance)
        recorded = {name: (earlier.get("code") or {}).get(name) for name in code}
    except (AttributeError, KeyError, TypeError) as error:
        raise EvalkitError(
            f"expected the {PROVENANCE_FILE} of a run in '{folder}', found one that does not list "
            "its settings and checkpoints; choose another folder"
        ) from error
    for name, found in now.items():
        if before[name] != found:
            raise _another(folder, name, *_differing(before[name], found))
    if earlier.get("past") and provenance.get("past"):
        _check_same_past(folder, earlier["past"], provenance["past"])
    _check_same_optimizers(folder, earlier.get("optimizers"), provenance.get("optimizers"))
    for name, digest in code.items():
        if recorded[name] != digest:
            was = recorded[name] or "none"
            raise _another(folder, f"code in {name}", f"SHA-256 {was:.8}", f"{digest:.8}")
    for name, digest in known.items():
        if name not in present:
            raise _another(folder, f"folder of checkpoints: '{name}' is", "in the run", "missing")
        if present[name] != digest:
            was, found = (text[:8] + text[64:] for text in (digest, present[name]))
            raise _another(folder, f"checkpoint '{name}'", f"SHA-256 {was}", found)


def _check_same_past(folder: Path, before: Any, now: Sequence[Mapping[str, Any]]) -> None:
    """Check that rows of both starts know the same past tasks, in the same order."""
    listed = before if isinstance(before, list) else []
    if len(listed) != len(now):
        raise _another(folder, "number of past tasks", len(listed), len(now))
    for place, (old, new) in enumerate(zip(listed, now, strict=True), start=1):
        for key, found in new.items():
            was = old.get(key) if isinstance(old, Mapping) else None
            if key == "task":
                was, found = task_name(str(was)), task_name(found)
            if was != found:
                raise _another(folder, f"past task {place} ({key})", was, found)


def _check_same_optimizers(folder: Path, before: Any, now: Any) -> None:
    """Check that rows of both starts are of the same state of the optimizer at each checkpoint."""
    listed = before if isinstance(before, list) else []
    known = {str(item.get("checkpoint")): item for item in listed if isinstance(item, Mapping)}
    for item in now or ():
        was = known.get(item["checkpoint"], item)
        for key in ("sha256", "class"):
            if was.get(key) != item[key]:
                what = f"optimizer at '{item['checkpoint']}' ({key})"
                raise _another(folder, what, was.get(key), item[key])


def check_same_request(
    folder: Path, earlier: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Check that a start asks for the methods and dampings of an earlier one.

    Raises:
        EvalkitError: it asks for others.
    """
    for name, before, now in zip(
        ("methods", "dampings"), asked_for(earlier), asked_for(provenance), strict=True
    ):
        if before != now:
            raise _another(folder, name, list(before), list(now))


def _another(folder: Path, what: str, before: object, found: object) -> EvalkitError:
    return EvalkitError(
        f"expected a new folder, or a run to go on with, found '{folder}' with another {what}: "
        f"{shortened(str(before), 60)} instead of {shortened(str(found), 60)}; choose another "
        "folder"
    )


def _differing(before: Any, found: Any) -> tuple[Any, Any]:
    """Return both without the entries that they have in common."""
    if not isinstance(before, Mapping) or not isinstance(found, Mapping):
        return before, found
    names = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    one, other = ({n: values[n] for n in names if n in values} for values in (before, found))
    return one or None, other or None


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal in two starts of the same run."""
    settings = provenance.get("settings", {})
    if type(settings["batches"]) is not int:
        raise TypeError("batches")
    identity = {name: settings.get(name, _BEFORE.get(name)) for name in _SETTINGS}
    identity |= {name: provenance.get(name) for name in _ORIGIN}
    identity["task"] = task_name(str(provenance.get("task")))
    return identity


def _hashes(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return which weights checkpoints hold, by name: the hash of the file, and where they lie."""
    return {
        str(item["name"]): f"{item['sha256']}" + (f", key {item['key']}" if item.get("key") else "")
        for item in provenance.get("checkpoints", ())
    }


def extension(earlier: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``run.json`` that change where a start extends an earlier run.

    A request that holds all that was asked for before gives the order of methods and dampings,
    so that a run that was extended is like one that was asked for everything at once; another
    request adds its own behind.

    Args:
        earlier: what ``run.json`` says.
        provenance: what it would say if the run started now.

    Returns:
        The changed entries, none where the run is not extended.
    """
    before, now = earlier["settings"], provenance["settings"]
    merged = [
        _merged(old, new)
        for old, new in zip(asked_for(earlier), asked_for(provenance), strict=True)
    ]
    batches = max(before["batches"], now["batches"])
    extended = (
        [set(one) for one in merged] != [set(one) for one in asked_for(earlier)]
        or batches > before["batches"]
        or places_of(provenance) != places_of(earlier)
    )
    past = provenance.get("past") if not earlier.get("past") else None
    optimizers = provenance.get("optimizers")
    told = optimizers is not None and optimizers != earlier.get("optimizers")
    if not extended and merged == list(asked_for(earlier)) and not past and not told:
        return {}
    names = dict(zip(("methods", "dampings"), map(list, merged), strict=True))
    changes: dict[str, Any] = {"settings": {**before, **names, "batches": batches}}
    changes |= {"past": past} if past else {}
    changes |= {"optimizers": optimizers} if told else {}
    if extended:
        changes |= {"checkpoints": provenance["checkpoints"], "finished": None}
        code = {**(earlier.get("code") or {}), **(provenance.get("code") or {})}
        changes |= {"code": code} if code else {}
    return changes


def _merged(before: Iterable[Any], now: Iterable[Any]) -> list[Any]:
    """Return both without repeats, in the order of the second if it holds all of the first."""
    before, now = list(before), list(now)
    return now if set(before) <= set(now) else [*before, *(one for one in now if one not in before)]


def check_same_data(folder: Path, batch: int, recorded: str | None, found: str) -> None:
    """Check that a batch holds the data that its earlier rows were scored on.

    Args:
        folder: the folder of the run.
        batch: its number.
        recorded: SHA-256 of the data then; None where it is not known.
        found: SHA-256 of the data as drawn now.

    Raises:
        EvalkitError: it holds other data.
    """
    if recorded is not None and recorded != found:
        raise EvalkitError(
            f"expected batch {batch} to hold the data that '{folder}' was scored on, found other "
            f"data (SHA-256 {found:.8} instead of {recorded:.8}); restore the data that the task "
            "reads, draw nothing at random when it is read, or choose another folder"
        )

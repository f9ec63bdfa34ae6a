"""Baselines: made from a run, and rewritten only when somebody asks for it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit.doubts import IMPOSSIBLE, MARKED, judge
from evalkit.errors import EvalkitError
from evalkit.gate.baseline_file import (
    COLUMNS,
    DEFAULTS,
    ERROR,
    IDENTITY,
    INFORMATION,
    KEY,
    NO_PAST,
    NUMBERS,
    Baseline,
    check_replaceable,
    parse,
    render,
)
from evalkit.results.marks import marks_of
from evalkit.storage.files import check_regular, unwritable, write_atomically
from evalkit.storage.lost_rows import lost_rows
from evalkit.storage.run_folder import PROVENANCE_FILE, Run
from evalkit.storage.tables import SCORE_AGAIN

_SETTLED = 1e-5
FEWEST_KEPT = 2
"""Batches of a baseline, at least: with two the gate can say what is the same."""


def baseline_of(run: Run) -> Baseline:
    """Return what a run scored in the form of a baseline.

    Raises:
        EvalkitError: ``run.json`` does not say how the scores were made.
    """
    path = run.folder / PROVENANCE_FILE
    listed = [name for name in IDENTITY + INFORMATION if name != "past tasks"]
    made_with = {name: _entry(run.provenance, name, path) for name in listed}
    made_with["past tasks"] = _past(run.provenance)
    known = _hashes(run.provenance)
    scored = run.scores.sort_values("step", kind="stable")["checkpoint"].drop_duplicates()
    for name in (*scored, *made_with.values()):
        if len(name.splitlines()) != 1:
            raise EvalkitError(
                f"expected names of one line in {run.folder}, found {name!r}; {SCORE_AGAIN}"
            )
    for name in scored:
        if name not in known:
            raise EvalkitError(
                f"expected the hash of checkpoint '{name}' in {path}, found none; {SCORE_AGAIN}"
            )
    cell = ["checkpoint", "batch"]
    losses = run.batches.drop_duplicates(cell)[[*cell, "loss"]]
    scores = run.scores.drop_duplicates(list(KEY))
    rows = judge(scores).merge(losses, on=cell)
    rows = rows.assign(
        descends=rows["slope"] > 0, impossible=rows[list(IMPOSSIBLE)].any(axis="columns")
    )
    left = rows[["unconverged", "tolerance"]].any(axis="columns")
    rows = rows.assign(noise=rows[ERROR].where(~left, MARKED))
    rows = rows[[*COLUMNS, ERROR, "noise", "impossible"]]
    hashes = {name: known[name] for name in scored}
    return Baseline(made_with, hashes, rows, marks_of(scores).sentences)


def _entry(provenance: Mapping[str, Any], name: str, path: Path) -> str:
    """Return one entry of ``run.json``, which keeps them in three places."""
    place = {"task": "", "evalkit": "", "torch": "versions"}.get(name, "settings")
    entries = provenance.get(place) if place else provenance
    key = name.replace(" ", "_")
    value = entries.get(key, DEFAULTS.get(key)) if isinstance(entries, Mapping) else None
    if value is None:
        raise EvalkitError(f"expected '{key}' in {path}, found none; {SCORE_AGAIN}")
    return str(value)


def _past(provenance: Mapping[str, Any]) -> str:
    """Return what stands for the checkpoints and the data of past tasks, whatever their code."""
    listed = provenance.get("past")
    if not isinstance(listed, list) or not listed:
        return NO_PAST
    kept = [
        {key: value for key, value in one.items() if key not in ("task", "code")}
        for one in listed
        if isinstance(one, Mapping)
    ]
    text = json.dumps(kept, sort_keys=True, default=str)
    return f"SHA-256 {hashlib.sha256(text.encode()).hexdigest():.16}"


def _hashes(provenance: Mapping[str, Any]) -> dict[str, str]:
    listed = provenance.get("checkpoints")
    return {
        str(item["name"]): str(item["sha256"])
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, Mapping) and item.get("name") and item.get("sha256")
    }


def update_baseline(path: str | os.PathLike[str], run: Run) -> str:
    """Write the scores of a run as the new baseline and return how the text changed.

    Rows that agree with the old ones to five digits keep the old digits, and the old error unless
    it passes :data:`evalkit.doubts.MARKED`, so that a diff shows what changed and not how numbers
    round elsewhere.

    Args:
        path: the path of the baseline, new or old; its folder is made when missing.
        run: finished, with several batches per checkpoint.

    Returns:
        A unified diff; empty when nothing changed.

    Raises:
        EvalkitError: the run cannot serve as a baseline, or the file cannot be written, or holds
            something else.
    """
    path = Path(path)
    baseline = baseline_of(run)
    _check_enough(run, baseline)
    check_regular(path, "name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise unwritable(path, error) from error
    check_replaceable(before, path)
    with contextlib.suppress(EvalkitError):  # no old baseline, or none that can be read
        baseline = _settled(baseline, parse(before, path))
    after = render(baseline)
    if after != before:
        write_atomically(path, after)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(path), str(path), lineterm="", n=0
    )
    return "\n".join(lines)


def _check_enough(run: Run, baseline: Baseline) -> None:
    """Refuse a run that is not whole, or too short to compare with."""
    # What failed would fail again in a start that only went on.
    if not run.provenance.get("finished") and run.failures.empty:
        raise EvalkitError(
            f"expected a finished run as a baseline, found '{run.folder}' unfinished; run the same "
            "'evalkit score' command to the end first"
        )
    lost = lost_rows(run)
    if lost:
        raise EvalkitError(f"expected every row of the run as a baseline, found that {lost}")
    fewest = int(baseline.rows.groupby("checkpoint")["batch"].nunique().min())
    if fewest < FEWEST_KEPT:
        raise EvalkitError(
            f"expected at least {FEWEST_KEPT} batches per checkpoint in a baseline, found "
            f"{fewest} in '{run.folder}'; score more, as with `batches=5`"
        )


def _settled(new: Baseline, old: Baseline) -> Baseline:
    """Return ``new`` with the numbers of ``old`` in rows that agree."""
    rows = new.rows.merge(old.rows, on=list(KEY), how="left", suffixes=("", "_old"))
    agree = rows["descends"] == rows["descends_old"]
    for name in NUMBERS:
        now, before = rows[name], rows[f"{name}_old"]
        near = (now - before).abs() <= _SETTLED * before.abs()
        agree &= near | (now == before) | (now.isna() & before.isna())
    for name in NUMBERS:
        rows[name] = rows[f"{name}_old"].where(agree, rows[name])
    now, before = rows[ERROR], rows[f"{ERROR}_old"]
    same_side = before.notna() & now.notna() & ((now > MARKED) == (before > MARKED))
    rows[ERROR] = before.where(agree & same_side, now)
    return replace(new, rows=rows[list(new.rows.columns)])

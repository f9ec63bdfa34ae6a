"""The short form of the fuzzer: some changed inputs for each quick reader, always the same ones.

The long form is ``python -m tests.fuzz --inputs 10000 --seed 0``, over all readers.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.checkpoints.manifest import MANIFEST_NAME, read_manifest
from evalkit.checkpoints.order import named_step, order_by_names
from evalkit.errors import EvalkitError
from evalkit.gate.baseline_file import parse
from evalkit.storage.columns import Source, parse_csv
from evalkit.storage.tables import SCORES_FILE, TABLES
from evalkit.storage.training_folder import read_training
from tests.fuzz import guards
from tests.fuzz.readers import READERS, whole_input
from tests.fuzz.running import judge, make

QUICK = (
    "safetensors",
    "pickles",
    "old pickles",
    "sharded",
    "trainer folders",
    "manifests",
    "optimizer states",
    "runs",
    "settings",
    "idx data",
)
SOME = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=12,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(SOME, max_examples=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40)
FIELDS = st.text(max_size=8) | st.sampled_from(["1", "0.5", "-1", "nan", "inf", "1e400", ",", '"'])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("name", QUICK)
def test_changed_files_are_read_or_refused(name: str, home: Path, tmp_path: Path) -> None:
    reader = READERS[name]
    whole_input(name, home)

    @SOME
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        told = make(reader, random.Random(seed), home, tmp_path / "input")
        finding, _ = judge(reader, seed, tmp_path / "input")
        assert finding is None, f"{told}\n{finding}"

    check()


@pytest.mark.parametrize("name", QUICK)
def test_whole_files_are_read(name: str, home: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_input(name, home), tmp_path / "given")
    READERS[name].read(tmp_path / "given")


@MANY
@given(JSON)
def test_any_json_is_a_manifest_or_none(tmp_path: Path, content: Any) -> None:
    path = tmp_path / MANIFEST_NAME
    whole = {"format": 1, "recipe": {"optimizer": "sgd"}, "checkpoints": content}
    for written in (content, whole, {**whole, "settings": content, "recipe": content}):
        path.write_text(json.dumps(written), encoding="utf-8")
        for read in (read_manifest, lambda path: read_training(path.parent)):
            with contextlib.suppress(EvalkitError):
                read(path)


@MANY
@given(st.lists(st.lists(FIELDS, max_size=20), max_size=4))
def test_any_text_is_a_table_or_none(lines: list[list[str]]) -> None:
    columns = TABLES[SCORES_FILE]
    head = ",".join(column.name for column in columns)
    body = "\n".join(",".join(line) for line in lines)
    for text in (body, f"{head}\n{body}\n"):
        with contextlib.suppress(EvalkitError):
            parse_csv(text, columns, Source(Path("scores.csv"), "do so"))
        with contextlib.suppress(EvalkitError):
            parse(f"# evalkit baseline: 1\n{text}", Path("baseline.csv"))


@MANY
@given(st.lists(NAMES, min_size=2, max_size=5, unique=True))
def test_any_names_have_an_order_or_none(names: list[str]) -> None:
    for name in names:
        named_step(name)
    with contextlib.suppress(EvalkitError):
        order_by_names(names, "folder")


def test_the_guards_see_what_they_should(tmp_path: Path) -> None:
    inside, outside = tmp_path / "given", tmp_path / "outside"
    inside.mkdir()
    with guards.watched(inside) as watch:
        (inside / "file").write_text("x")
        (inside / "file").read_text()
    assert watch.offences == []
    code = f"{guards.CANARY} = 1"
    for act in (
        lambda: outside.write_text("x"),
        outside.read_text,
        outside.unlink,
        outside.mkdir,
        lambda: compile(code, "x", "exec"),
        lambda: exec(compile("1", str(inside / "file.py"), "exec")),
        lambda: __import__(guards.CANARY),
    ):
        with guards.watched(inside) as watch, contextlib.suppress(ImportError):
            act()
        assert watch.offences
    with pytest.raises(guards.Hang), guards.watched(inside, seconds=1):
        forever()


def forever() -> None:
    while True:
        pass

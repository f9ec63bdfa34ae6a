"""The library names arguments, the command line its options."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

import evalkit
from evalkit.cli import main
from evalkit.cli.main import COMMANDS, commands
from evalkit.cli.wording import _OPTIONS, in_options
from evalkit.counts import counted
from evalkit.errors import EvalkitError
from evalkit.settings import Settings
from tests.support.folders import BUNDLED

PACKAGE = Path(evalkit.__file__).parent
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if "cli" not in path.parts]
# Of a script of DeepSpeed.
OTHERS = {"checkpoints/sharded.py": {"--tag"}, "doctor/finding.py": {"--debug"}}


def texts(path: Path) -> list[str]:
    """Return the texts of a module, its docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_library_names_no_option(path: Path) -> None:
    found = {name for text in texts(path) for name in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)}
    assert found <= OTHERS.get(path.relative_to(PACKAGE).as_posix(), set())


@pytest.mark.parametrize(
    ("count", "thing", "said"),
    [
        (0, "row", "0 rows"),
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (2, "process", "2 processes"),
        (2, "epoch", "2 epochs"),
        (1, "free output", "1 free output"),
        (1437, "sample", "1,437 samples"),
    ],
)
def test_numbers_agree_with_what_they_count(count: int, thing: str, said: str) -> None:
    assert counted(count, thing) == said


def test_every_option_that_sentences_name_exists() -> None:
    context = click.Context(commands)
    known = set()
    for name in COMMANDS:
        command = commands.get_command(context, name)
        assert command is not None
        known |= {option for parameter in command.params for option in parameter.opts}
    assert set(_OPTIONS.values()) <= known


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("lower `batch_size`, please", "lower --batch-size, please"),
        ("give `dtype=float64`.", "give --dtype float64."),
        ("as in `methods=ngd:max_iterations=8`", "as in --methods ngd:max_iterations=8"),
        ("as `settings={'data': DIR}`", "as --set data=DIR"),
        ("`import FILE` adds your own", "--load FILE adds your own"),
        ("write it with `update_baseline`", "write it with --update-baseline"),
        ("make one with `evalkit train`", "make one with `evalkit train`"),
        ("no option is `shift_labels`", "no option is `shift_labels`"),
        ("a `lone quote", "a `lone quote"),
    ],
)
def test_arguments_become_options(sentence: str, said: str) -> None:
    assert in_options(sentence) == said


def test_each_caller_is_spoken_to_in_its_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EvalkitError, match="set `batches` to 1 or more"):
        Settings(batches=0)
    command = ["score", str(BUNDLED), "--batches", "0", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "set --batches to 1 or more" in capsys.readouterr().err

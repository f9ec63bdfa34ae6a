"""The commands of every page: they parse, name what exists, and the cheap ones run."""

from __future__ import annotations

import configparser
import importlib.util
import re
from pathlib import Path
from typing import Any

import click
import pytest

from evalkit.cli import main
from evalkit.cli.main import commands
from evalkit.names import base_name
from evalkit.storage.run_folder import read_run
from evalkit.tasks import setting_names, task_names
from evalkit.training import optimizers, schedules
from evalkit.updates import methods
from evalkit.updates.parser import parse
from tests.support.documents import PAGES, README, ROOT, command_lines, page, python_files

GROUP = click.Context(commands, info_name="evalkit")
WITH_COMMANDS = [path for path in PAGES if "    evalkit " in page(path)]


def known_command(name: str) -> click.Command:
    command = commands.get_command(GROUP, name)
    assert command is not None, name
    return command


def parsed(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a command of evalkit and its arguments; what does not parse raises."""
    command = known_command(words[1])
    context = click.Context(command, info_name=words[1], parent=GROUP)
    given, _, order = command.make_parser(context).parse_args(list(words[2:]))
    for parameter in set(order):
        value = given[parameter.name]
        for one in value if parameter.multiple or parameter.nargs != 1 else [value]:
            parameter.type.convert(one, parameter, context)
    positional = [p.name for p in command.params if isinstance(p, click.Argument)]
    options = {name: value for name, value in given.items() if name not in positional}
    arguments = [given[name] for name in positional]
    return options, [x for v in arguments for x in (v if isinstance(v, tuple | list) else [v])]


def own(text: str, decorator: str) -> set[str]:
    """Return the names that files of a page, or of the README, register."""
    files = "\n".join([*python_files(text).values(), *python_files(README).values()])
    return set(re.findall(rf"@(?:\w+\.)*{decorator}\(\"([^\"]+)\"", files))


def check_methods(names: str, text: str) -> None:
    for name in names.split(","):
        if base_name(name) not in own(text, "method"):
            parse(name)


@pytest.mark.parametrize("path", WITH_COMMANDS)
def test_commands_name_what_exists(path: str) -> None:
    text = page(path)
    for words in command_lines(text):
        if words[0] != "evalkit":
            continue
        options, arguments = parsed(words)
        for option in ("methods", "scales"):
            if isinstance(options.get(option), str):
                check_methods(options[option], text)
        for pair in (options.get("pairs") or "").split(","):
            check_methods(",".join(filter(None, re.split(r"/|@[^/]+", pair))) or "sgd", text)
        chosen = options.get("optimizer")
        if chosen and words[1] == "train" and chosen not in own(text, "optimizer"):
            optimizers.get(chosen)
        schedules.find(options.get("schedule") or "constant")
        tasks = [options.get("task"), *(arguments if words[1] in ("train", "cost") else [])]
        for task in filter(None, tasks):
            assert task in task_names() or re.fullmatch(r"[\w/]+\.py:\w+", task), words
            names = {setting.partition("=")[0] for setting in options.get("settings") or ()}
            assert ".py:" in task or names <= set(setting_names(task)), words


@pytest.mark.parametrize("path", PAGES)
def test_other_commands_name_what_exists(path: str) -> None:
    makefile = page("Makefile")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for words in command_lines(page(path)):
        if words[0] == "make":
            for target in (word for word in words[1:] if "=" not in word):
                assert re.search(rf"^(?:.* )?{target}(?: .*)?:", makefile, re.MULTILINE), words
            for name in (word.split("=")[0] for word in words[1:] if "=" in word):
                assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), words
        if words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert extra in setup["options.extras_require"], words
        if words[0].endswith("python") and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words
            paths = [word.split("::")[0] for word in words if word.startswith("tests/")]
            assert [name for name in paths if not (ROOT / name).exists()] == []


OTHERS = {
    *("--data", "--device", "--help", "--only", "--problem", "--version", "--write"),
    *("--debug", "--nproc-per-node", "--numprocesses", "--tag", "--constraint", "--epochs"),
    *("--alone", "--boundaries", "--inputs", "--max-restarts", "--ranks", "--shards"),
    *("--logdir", "--backend-store-uri", "--folder", "--limit", "--scale", "--wheels"),
}
"""Options of pytest, torchrun, pip, TensorBoard, MLflow, the benchmarks and their kin."""


@pytest.mark.parametrize("path", PAGES)
def test_options_that_pages_name_exist(path: str) -> None:
    group = [known_command(name) for name in commands.list_commands(GROUP)]
    known = {name for command in group for option in command.params for name in option.opts}
    code = " ".join(re.findall(r"`[^`\n]+`", page(path)))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", code)) <= known | OTHERS


CHEAP = {"docs/guides/damping.md": ["--methods", "sgd,ief"], "docs/guides/method.md": []}
"""Pages whose scores are run, with what makes less of each."""
LESS = ["--batches", "1", "--batch-size", "8"]


@pytest.mark.parametrize("path", CHEAP)
def test_the_scores_of_a_page_run(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(path)
    for name, content in python_files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in command_lines(text):
        if words[:2] == ["evalkit", "score"] and not any("curvlinops" in word for word in words):
            assert main([*words[1:], *LESS, *CHEAP[path]]) == 0
            assert len(read_run(words[words.index("--out") + 1]).batches) == 11
            ran += 1
    assert ran


def test_every_page_with_commands_is_found() -> None:
    assert len(WITH_COMMANDS) >= 10
    assert len(methods()) > 20

"""The README's own examples, run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.run import read_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = {
    match.group(1): match.group(2)
    for match in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL)
}


def commands(containing: str) -> list[list[str]]:
    """Return the README's evalkit commands that mention a text, comments left out."""
    lines = [line.split("#")[0].split() for line in README.splitlines()]
    return [
        words[1:] for words in lines if words[:1] == ["evalkit"] and containing in " ".join(words)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder with the README's files and the bundled trajectory."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bring_your_own(folder: Path) -> None:
    for command in [*commands("my_task.py"), *commands("report runs/mine")]:
        few = ["--batches", "2"] if command[0] == "score" else []
        assert main([*command, *few]) == 0
    assert (folder / "runs/mine/report.html").is_file()
    assert len(read_run("runs/mine").scores) > 0


def test_bring_your_own_is_about_15_lines() -> None:
    lines = [line for line in FILES["my_task.py"].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_add_a_method(folder: Path) -> None:
    (command,) = commands("my_method.py")
    assert main([*command, "--batches", "2"]) == 0
    run = command[command.index("--out") + 1]
    assert set(read_run(run).scores["method"]) == {"sgd", "ief", "scaled"}
    assert len(FILES["my_method.py"].splitlines()) <= 10


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

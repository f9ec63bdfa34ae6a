"""How evalkit is installed: what a wheel holds, and that all who say how say the same."""

from __future__ import annotations

import email.parser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.message import Message
from pathlib import Path

import pytest

from evalkit.extras import INSTALL
from tests.support.documents import README

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for pattern in (
        "*.md",
        "Makefile",
        "docs/**/*.md",
        "docs/**/*.py",
        "evalkit/**/*.py",
        "tests/**/*.py",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and path != Path(__file__)
]
USED = ("hf", "export", "lightning")
"""The extras that evalkit imports from; the others are for its own development."""


def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_the_distribution_has_a_name_of_its_own() -> None:
    """On the index, evalkit is another project; import and command keep the name."""
    assert setup()["metadata"]["name"] == "evalkit-fisher"
    assert "evalkit = evalkit.cli:main" in setup()["options.entry_points"]["console_scripts"]


def test_what_is_said_to_install_exists() -> None:
    extras = setup()["options.extras_require"]
    for extra in USED:
        assert re.findall(r"\[(\w+)\]", INSTALL.format(extra=extra)) == [extra]
        assert extra in extras


def test_nothing_says_to_install_the_other_project() -> None:
    # By its name alone, with an extra, or with a version; `version(...)` looks it up by name.
    wrong = re.compile(r"pip install ['\"]?evalkit['\"\[=<>~ \n]|version\(\"evalkit\"\)")
    assert TEXTS
    found = [path for path in TEXTS if wrong.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in found] == []


def bounds() -> list[str]:
    """Return the requirements of evalkit and of the extras that it uses, as setup.cfg has them."""
    options, extras = setup()["options"], setup()["options.extras_require"]
    listed = [options["install_requires"], *(extras[name] for name in USED)]
    lines = [line for text in listed for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_lowest_version_of_each_requirement_is_stated_and_taken() -> None:
    """``make minimum`` takes each; one that it overlooked would be tested in its newest version."""
    found = re.search(r"sed -n '(s/\^ \*.*)' setup\.cfg >", (ROOT / "Makefile").read_text())
    assert found
    command = ["sed", "-n", found[1].replace("$$", "$"), str(ROOT / "setup.cfg")]
    pinned = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {line.replace(">=", "==") for line in bounds()} <= set(pinned)


# --- what is built -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a source distribution and a wheel, as the backend makes them."""
    source = tmp_path_factory.mktemp("built") / "source"
    source.mkdir()
    for name in ("evalkit", "tests"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=hidden)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    backend = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    command = [sys.executable, "-c", backend]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return source.parent


def metadata(built: Path) -> Message:
    """Return what the wheel says of itself."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return email.parser.Parser().parsestr(wheel.read(name).decode())


def files_of_the_package() -> set[str]:
    """Return the files in the folder of the package, templates too."""
    paths = {path for path in (ROOT / "evalkit").rglob("*") if path.is_file()}
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert names == files_of_the_package()
    assert len(licences) == 1


def test_the_source_distribution_holds_no_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        paths = [Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()]
    names = {str(path) for path in paths if "egg-info" not in path.parts[0]}
    metadata = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
    assert names == files_of_the_package() | metadata | {"pyproject.toml", "setup.cfg"}


def test_the_wheel_says_what_it_is(built: Path) -> None:
    said = metadata(built)
    assert said["License-Expression"] == "MIT"
    assert said["Requires-Python"] == setup()["options"]["python_requires"]
    assert said["Description-Content-Type"] == "text/markdown"
    assert str(said.get_payload()).strip() == README.strip()
    needed = {line.split(";")[0].strip() for line in said.get_all("Requires-Dist", [])}
    assert set(bounds()) <= needed
    assert set(said.get_all("Provides-Extra", [])) == set(setup()["options.extras_require"])

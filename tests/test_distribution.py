"""How evalkit is installed: under a name of its own, and told so wherever it is said."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from evalkit.extras import INSTALL

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for pattern in ("*.md", "Makefile", "docs/**/*.*", "evalkit/**/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
    if path.is_file() and path != Path(__file__)
]


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
    for extra in ("hf", "export"):
        assert re.findall(r"\[(\w+)\]", INSTALL.format(extra=extra)) == [extra]
        assert extra in extras


def test_nothing_says_to_install_the_other_project() -> None:
    # By its name alone, with an extra, or with a version; `version(...)` looks it up by name.
    wrong = re.compile(r"pip install ['\"]?evalkit['\"\[=<>~ \n]|version\(\"evalkit\"\)")
    assert TEXTS
    found = [path for path in TEXTS if wrong.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in found] == []

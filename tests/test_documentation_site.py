"""The documentation as a site: built with warnings as errors, whole, and without a network."""

from __future__ import annotations

import html
import json
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import evalkit
from evalkit import likelihoods, optim, testing, updates
from evalkit.cli.main import COMMANDS
from evalkit.names import KNOWN
from tests.support.documents import PAGES, ROOT

pytest.importorskip("material", reason="the site needs the extra docs: pip install '.[docs]'")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs: pip install '.[docs]'")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


class Loaded(HTMLParser):
    """What a page makes a browser load: scripts, styles, pictures, frames."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "audio", "video") and given.get("src"):
            self.found.append(str(given["src"]))
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.found.append(str(given["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    warned: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    logging.getLogger("mkdocs").removeHandler(listener)
    assert warned == []
    return folder


def text_of(site: Path, page: str) -> str:
    return html.unescape((site / page).read_text(encoding="utf-8"))


def test_every_page_is_there(site: Path) -> None:
    places = {"README.md": "index", "CONTRIBUTING.md": "contributing"}
    for path in PAGES:
        name = places.get(path, path.removeprefix("docs/").removesuffix(".md"))
        assert (site / f"{name}.html").is_file(), path


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        if "reports" in path.relative_to(site).parts and path.name == "report.html":
            continue  # a report's own page, which tests/test_browser.py holds to the same
        text = path.read_text(encoding="utf-8")
        assert [link for link in Loaded(text).found if re.match(r"(?:https?:)?//", link)] == []
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", path.read_text(encoding="utf-8")), path


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = "\n".join(text_of(site, str(p.relative_to(site))) for p in site.glob("reference/*.html"))
    places = {
        "evalkit": set(evalkit.__all__) - {"__version__"},
        "evalkit.optim": set(optim.__all__),
        "evalkit.updates": set(updates.__all__) - set(evalkit.__all__) - {"compute"},
        "evalkit.likelihoods": {"Likelihood", "Categorical", "Bernoulli", "Gaussian", "register"},
        "evalkit.testing": {"assert_quality", "checkpoint_batches"},
        "evalkit.callback": {"LightningScoreCallback", "ScoreCallback"},
    }
    assert set(likelihoods.__all__) >= places["evalkit.likelihoods"]
    assert all(hasattr(testing, name) for name in places["evalkit.testing"])
    wanted = [f"{room}.{name}" for room, names in places.items() for name in sorted(names)]
    assert [name for name in wanted if f'id="{name}"' not in text] == []


def test_names_in_docstrings_are_no_roles_of_another_tool(site: Path) -> None:
    for path in site.glob("reference/*.html"):
        assert not re.search(r":(?:attr|class|data|func|meth|mod):<", path.read_text("utf-8"))


def test_the_reference_has_every_command_and_method(site: Path) -> None:
    commands, methods = (
        text_of(site, f"reference/{name}.html") for name in ("command-line", "methods")
    )
    assert [name for name in COMMANDS if f"evalkit {name} [OPTIONS]" not in commands] == []
    assert "--micro-batch-size" in commands
    assert [name for name in KNOWN if f"<code>{name}</code>" not in methods] == []


def test_search_finds_pages_and_names_without_a_server(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"] for entry in index["docs"]}
    assert {"concepts/glossary.html", "reference/evalkit.html#evalkit.score"} <= places
    assert "iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "search/search_index.js").is_file()


@pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium with its chromedriver; Debian has both: chromium, chromium-driver",
)
def test_search_works_from_disk(site: Path, tmp_path: Path) -> None:
    """A browser starts no worker for a page from disk; a frame takes its place."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    wide = "--window-size=1280,900"  # below 960 pixels the field is behind a button
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", wide):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path}")
    with Chrome(options=options, service=ChromeService(DRIVER)) as browser:
        browser.get((site / "index.html").as_uri())
        field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
        browser.execute_script("arguments[0].focus()", field)
        field.send_keys("Fisher-vector")
        found = WebDriverWait(browser, 30, 0.1).until(
            lambda _: browser.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        links = [str(link.get_attribute("href")) for link in found]
        assert any("glossary" in link for link in links), links


def test_links_out_of_the_pages_came_along(site: Path) -> None:
    assert (site / "reports/digits-mlp/figures/ratio.png").is_file()
    assert 'src="reports/digits-mlp/figures/ratio.png"' in text_of(site, "index.html")
    assert "benchmarks.html" in text_of(site, "index.html")

"""The page of 15 methods and 30 checkpoints: searched, grouped, by keyboard, read aloud."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from evalkit.names import display_name
from evalkit.report.page import render_page
from evalkit.report.writing import derived_of
from evalkit.storage.run_folder import read_run
from tests.support.browser import chromium, complaints, needs_browser, show
from tests.support.written_runs import cell, ngd_row, score_row, write_run

pytestmark = needs_browser
METHODS = (
    *("sgd", "ef", "ief", "ief-tikhonov", "fgn", "sf", "kfac", "kfac:labels=empirical"),
    *("kfac:labels=exact", "ekfac", "shampoo", "eva", "diagonal", "block"),
)
RATIOS = dict(
    zip(
        METHODS,
        (1.0, 300.0, 0.7, 0.6, 0.8, 1.5, 0.5, 2.0, 0.4, 0.45, 0.9, 1.2, 1.1, 0.3),
        strict=True,
    )
)
CHECKPOINTS = 30
AXE = os.environ.get("AXE_CORE", "")
"""The file axe.min.js of the npm package axe-core."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows = [
        *(score_row(method, ratio, error=0.0, dtype="float64") for method, ratio in RATIOS.items()),
        ngd_row(0.25, solver="cg", error=0.0, dtype="float64"),
    ]
    last = CHECKPOINTS - 1
    write_run(
        folder, [cell(f"step-{step}", step, step / last, 0, rows) for step in range(CHECKPOINTS)]
    )
    run = read_run(folder)
    path = folder / "report.html"
    path.write_text(render_page(run, derived_of(run)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[Chrome]:
    """A browser that shows the page."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        show(driver, page)
        yield driver


def tools(browser: Chrome, part: str, place: int = 0) -> WebElement:
    """Return an element above a table, by default the first one."""
    return browser.find_elements(By.CSS_SELECTOR, ".tools")[place].find_element(
        By.CSS_SELECTOR, part
    )


def seen(browser: Chrome, kind: str) -> list[str]:
    """Return what is shown of the first table: of rows and groups their head, of columns theirs."""
    asked = f"""return [...document.querySelector("table.sortable").querySelectorAll("{kind}")]
      .filter((item) => item.checkVisibility()).map((item) => item.firstChild.textContent.trim())"""
    found: list[str] = browser.execute_script(asked)
    return found


ROWS, GROUPS, COLUMNS = "tbody th[scope=row]", "tr.group th span", "thead th"


def by_ratio(*methods: str) -> list[str]:
    """Return methods as they are shown, the smallest ratio first."""
    ratios = RATIOS | {"ngd": 0.25}
    return [display_name(method) for method in sorted(methods, key=ratios.__getitem__)]


def test_rows_are_found_by_their_words(browser: Chrome) -> None:
    field, told = tools(browser, "input"), tools(browser, "output")
    assert len(seen(browser, ROWS)) == 15
    field.send_keys("kfac EXACT")
    assert seen(browser, ROWS) == ["KFAC (exact)"]
    assert seen(browser, GROUPS) == ["KFAC"]
    assert told.text == "1 of 15 rows"
    field.clear()
    field.send_keys("sample")  # in the title of two families
    assert seen(browser, GROUPS) == ["sample weights", "sampled labels"]
    assert len(seen(browser, ROWS)) == 5
    field.send_keys("x")
    assert (seen(browser, ROWS), seen(browser, GROUPS)) == ([], [])
    assert told.text == "0 of 15 rows"
    field.send_keys(Keys.ESCAPE)
    assert len(seen(browser, ROWS)) == 15
    assert told.text == ""


def test_rows_are_sorted_in_families_or_as_one_list(browser: Chrome) -> None:
    table = browser.find_element(By.CSS_SELECTOR, "table.sortable")
    head = table.find_elements(By.CSS_SELECTOR, "thead th:not(.spare) button")[-1]
    families = seen(browser, GROUPS)
    head.click()
    assert seen(browser, GROUPS) == families
    assert seen(browser, ROWS)[1:5] == by_ratio("ef", "ief", "ief-tikhonov", "fgn")
    together = tools(browser, ".by-group")
    together.send_keys(Keys.SPACE)
    assert together.get_attribute("aria-pressed") == "false"
    assert seen(browser, GROUPS) == []
    assert seen(browser, ROWS) == by_ratio(*METHODS, "ngd")
    tools(browser, "input").send_keys("sampled labels")  # a family is searched without its head
    assert seen(browser, ROWS) == ["SF"]
    tools(browser, "input").send_keys(Keys.ESCAPE)
    together.click()
    assert seen(browser, GROUPS) == families
    assert seen(browser, ROWS)[1:5] == by_ratio("ef", "ief", "ief-tikhonov", "fgn")


def test_some_checkpoints_are_shown_until_all_are_asked_for(browser: Chrome) -> None:
    every = tools(browser, ".every")
    assert every.text.endswith("all 30 checkpoints")
    some = seen(browser, COLUMNS)
    assert (some[0], some[1], some[-1]) == ("method", "step-0 (0.00)", "step-29 (1.00)")
    assert len(some) == 8
    every.click()
    assert len(seen(browser, COLUMNS)) == 1 + CHECKPOINTS
    assert every.get_attribute("aria-pressed") == "true"
    every.click()
    assert seen(browser, COLUMNS) == some


def test_each_family_has_a_panel(browser: Chrome) -> None:
    panels = browser.find_elements(By.CSS_SELECTOR, ".panels:first-of-type h3")
    titles = [panel.text for panel in panels]
    assert titles[:4] == ["sample weights", "sampled labels", "KFAC", "other layerwise"]
    said = browser.find_element(By.ID, "said-ratio-2").get_attribute("textContent")
    assert said.startswith("From the first to the last checkpoint: SGD 1.00 to 1.00; KFAC 0.500 to")


RECORD = """window.stops = [];
document.addEventListener("focusin", (event) => {
  const at = event.composedPath()[0];
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const shown = at.checkVisibility() && outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
  at.dataset.reached = "yes";
  stops.push([at.outerHTML.slice(0, 80), shown]);
}, true)"""
MISSED = """return [...document.querySelectorAll("a, button, input, .scroll")]
  .filter((item) => item.checkVisibility() && !item.dataset.reached)
  .map((item) => item.outerHTML.slice(0, 80))"""


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Chrome, page: Path) -> None:
    show(browser, page)
    browser.execute_script(RECORD)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    ActionChains(browser).send_keys(Keys.TAB * 250).perform()
    stops = browser.execute_script("return stops")
    assert stops[0][0].startswith('<a class="skip"')
    assert [stop for stop, shown in stops if not shown] == []
    assert browser.execute_script(MISSED) == []
    skip = browser.find_element(By.CSS_SELECTOR, ".skip")
    browser.execute_script("arguments[0].focus()", skip)
    skip.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "scores"


NAMED = {"button", "link", "searchbox", "table", "region", "navigation", "figure", "image"}


def test_everything_has_a_name_for_a_screen_reader(browser: Chrome) -> None:
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in tree if not node["ignored"]]
    roles = [node["role"]["value"] for node in shown]
    assert {"main", "navigation", "contentinfo", "status", "searchbox", "rowheader"} <= set(roles)
    assert roles.count("table") == len(browser.find_elements(By.TAG_NAME, "table"))
    nameless = [
        node["role"]["value"]
        for node in shown
        if node["role"]["value"] in NAMED - {"figure"} and not node["name"].get("value")
    ]
    assert nameless == []
    charts = [node for node in shown if node["name"].get("value", "").startswith("Gamma relative")]
    assert all("From the first" in node["description"]["value"] for node in charts)
    assert charts


@pytest.mark.skipif(
    not Path(AXE or "/").is_file(),
    reason="no axe: 'npm pack axe-core', and name its axe.min.js as AXE_CORE",
)
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_axe_finds_no_violation(browser: Chrome, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    found = browser.execute_async_script(
        Path(AXE).read_text(encoding="utf-8") + "; const done = arguments[arguments.length - 1];"
        "axe.run().then(({ violations }) => done(violations), (error) => done([String(error)]))"
    )
    assert found == []
    assert complaints(browser) == []
